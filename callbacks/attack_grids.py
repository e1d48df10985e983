"""Pictures of targeted attacks: every class into every other, and with rising confidence (Matyasko 2020)."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from adversarial_lightning.attacks import Attack, HighConfidence
from adversarial_lightning.attacks.core.checks import between
from adversarial_lightning.callbacks.held_out import should_run
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.report.grids import CONFIDENCES, confidence_grid, target_grid
from adversarial_lightning.lightning_modules.base import Classifier
from adversarial_lightning.lightning_modules.training_method import Batch
from adversarial_lightning.seed import global_seed


class AttackGrids(pl.Callback):
    """Logs both pictures of held-out images, the first of each class, during validation.

    Args:
        targeted: attack for the pictures of every class turned into every other; none: HighConfidence to 0.95 (the
            thesis uses C&W).
        rising: attack for the pictures of rising confidence; none: HighConfidence with its defaults.
        confidences: confidences of the second picture, ascending, in (1/K, 1); the lowest is near the class boundary.
        every_n_epochs: number of epochs between two sets of pictures.
    """

    def __init__(
        self,
        targeted: Attack | None = None,
        rising: HighConfidence | None = None,
        confidences: Sequence[float] = CONFIDENCES,
        every_n_epochs: int = 10,
    ) -> None:
        targeted = targeted or HighConfidence(confidence=0.95, targeted=True)
        rising = rising or HighConfidence()
        if not getattr(targeted, "targeted", True) or rising.targeted:
            raise UserError("targeted must be an attack with targeted: true, and rising one that chooses its target")
        if every_n_epochs < 1 or not confidences or sorted(confidences) != list(confidences):
            raise UserError(
                f"every_n_epochs ({every_n_epochs}) must be at least 1 and confidences ({confidences}) must ascend"
            )
        between(0, 1, **{f"confidences[{i}]": c for i, c in enumerate(confidences)})
        self.targeted, self.rising, self.confidences = targeted, rising, list(confidences)
        self.every_n_epochs = every_n_epochs

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
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        network, images = pl_module.network, data.dataset("val")
        firsts = [(images.labels == k).nonzero()[:1, 0] for k in range(data.num_classes)]
        x, y, _ = images.__getitems__(torch.cat(firsts).tolist())
        x, y = x.to(pl_module.device), y.to(pl_module.device)
        pictures = {
            "val/targets": target_grid(network, self.targeted, x, y, global_seed()),
            "val/confidence": confidence_grid(network, self.rising, x, y, self.confidences),
        }
        for logger in loggers:
            for name, picture in pictures.items():
                logger.experiment.add_image(name, picture, trainer.global_step)
