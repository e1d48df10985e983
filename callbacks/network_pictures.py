"""Pictures of a network on held-out images in TensorBoard: embeddings, codes with their prior, loss surfaces."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from adversarial_lightning.attacks import Attack, Noise
from adversarial_lightning.callbacks.held_out import held_out, should_run
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.report.embeddings import views
from adversarial_lightning.lightning_modules.base import Classifier
from adversarial_lightning.lightning_modules.training_method import Batch
from adversarial_lightning.seed import global_seed


class NetworkPictures(pl.Callback):
    """Logs the pictures of `evaluation.report.embeddings.views` for held-out images, during validation.

    A network without a submodule called encoder has loss surfaces only. The prior is the module's, or N(0, 1).

    Args:
        attack: makes the attacked images, in a ball of linf, l2 or l1.
        limit: number of held-out images, a random subset (`random_subset`); t-SNE takes about 3 s for
            300, clean and attacked.
        every_n_epochs: number of epochs between two sets of pictures.
        sample_seed: seed of the subset.
    """

    def __init__(self, attack: Attack, limit: int = 300, every_n_epochs: int = 10, sample_seed: int = 0) -> None:
        if limit < 10 or every_n_epochs < 1:
            raise UserError(f"limit ({limit}) must be at least 10 and every_n_epochs ({every_n_epochs}) at least 1")
        self.attack, self.limit, self.every_n_epochs = attack, limit, every_n_epochs
        self.sample_seed = sample_seed

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not should_run(trainer, self.every_n_epochs, batch_idx, dataloader_idx):
            return
        assert isinstance(pl_module, Classifier)
        images, rows = held_out(trainer, self.limit, self.sample_seed)
        prior = getattr(pl_module, "prior", None)
        known: dict[str, Any] = {} if prior is None else {"prior": prior, "prior_name": "the prior"}
        known["names"] = getattr(getattr(trainer, "datamodule", None), "classes", None)
        with torch.inference_mode(False):  # validate() is in it, and loss surfaces need gradients
            x, y, index = (t.to(pl_module.device) for t in images.__getitems__(rows.tolist()))
            noise = Noise.keyed(global_seed(), index)
            for picture in views(pl_module.network, x, y, noise, self.attack, **known):
                for logger in loggers:
                    logger.experiment.add_image(picture.name, picture.pixels(), trainer.global_step, dataformats="HWC")
