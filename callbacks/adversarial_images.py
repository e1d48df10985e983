"""Pictures of an attack in TensorBoard: clean image, adversarial image and perturbation."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid

from adversarial_lightning.attacks import Attack, Noise
from adversarial_lightning.attacks.core.norms import divisor
from adversarial_lightning.callbacks.attacked_model import attacked_model
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.report.grids import caption
from adversarial_lightning.evaluation.report.subject import class_name
from adversarial_lightning.lightning_modules.training_method import Batch
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.seed import global_seed

_LETTER = 7  # at most so many pixels a letter of a caption


def picture(
    x: Tensor, z: Tensor, y: Tensor, before: Tensor, after: Tensor, names: Sequence[str] | None = None
) -> Tensor:
    """Grid (3, H', W') with a column for each sample; rows: clean, adversarial, perturbation, caption.

    The perturbation is drawn around grey and scaled to its own largest value. `names` are those of the classes.
    """
    d = z - x
    shown = 0.5 + 0.5 * d / divisor(d.abs().amax())
    triples = [[class_name(int(c), names) for c in triple] for triple in zip(y, before, after, strict=True)]
    texts = [f"{label}: {clean}>{attacked}" for label, clean, attacked in triples]
    width = max(56, *(_LETTER * len(text) for text in texts))
    scale = max(1, -(-width // x.shape[-1]))  # small images are enlarged so that the captions fit
    rows = [t.expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3) for t in (x, z, shown)]
    strips = torch.stack([caption(t, rows[0].shape[-1]) for t in texts])
    columns = torch.cat([*rows, strips], dim=2)
    grid: Tensor = make_grid(columns, nrow=len(x), padding=2)
    return grid


class AdversarialImages(pl.Callback):
    """Logs a grid of attacked validation images; what is attacked is said by `attacked_model`.

    Captions read ``label: clean prediction > adversarial prediction``, by name where the data module names its classes.

    Args:
        attack: makes the adversarial images.
        n: number of images, the first of the validation set.
        every_n_epochs: number of epochs between two grids.
    """

    def __init__(self, attack: Attack, n: int = 8, every_n_epochs: int = 1) -> None:
        if n < 1 or every_n_epochs < 1:
            raise UserError(f"n ({n}) and every_n_epochs ({every_n_epochs}) must be at least 1")
        self.attack, self.n, self.every_n_epochs = attack, n, every_n_epochs

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        due = batch_idx == dataloader_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking
        if not due or trainer.current_epoch % self.every_n_epochs:
            return
        x, y, index = (t[: self.n] for t in batch)
        model = attacked_model(pl_module, x, index)
        z = self.attack(model, x, y, Noise.keyed(global_seed(), index))
        with frozen_eval(model), torch.no_grad():
            before, after = model(x.clone()).argmax(1), model(z.clone()).argmax(1)
        names = getattr(getattr(trainer, "datamodule", None), "classes", None)
        x, z, y, before, after = (t.cpu() for t in (x, z, y, before, after))
        grid = picture(x, z, y, before, after, names)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/adversarial", grid, trainer.global_step)
