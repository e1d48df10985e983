"""Guard against collapsed training: accuracy at chance, or a loss that is not finite."""

from typing import Any

import pytorch_lightning as pl
import torch

from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.training_method import Batch


class TrainingCollapsed(RuntimeError):
    """Error for training that will not recover; the message says why and what to change."""


class CollapseGuard(pl.Callback):
    """Raises `TrainingCollapsed` if validation accuracy stays at chance or a training loss is not finite.

    Adversarial training that starts with a large radius often ends at chance and does not recover.

    Args:
        patience: number of validation epochs in a row at chance.
        factor: accuracy counts as chance up to factor / num_classes.
        check_every_n_batches: number of batches between two checks of the loss; each check waits for the device.
        num_classes: number of classes; none: the data module's.
    """

    def __init__(
        self, patience: int = 5, factor: float = 1.5, check_every_n_batches: int = 10, num_classes: int | None = None
    ) -> None:
        if patience < 1 or check_every_n_batches < 1:
            raise UserError(f"patience ({patience}) and check_every_n_batches ({check_every_n_batches}) must be >= 1")
        self.patience, self.factor, self.check_every_n_batches = patience, factor, check_every_n_batches
        self.num_classes, self.at_chance = num_classes, 0
        self._finite: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        finite = outputs["loss"].detach().isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        if (batch_idx + 1) % self.check_every_n_batches and batch_idx + 1 != trainer.num_training_batches:
            return
        ok, self._finite = bool(self._finite), None
        # All processes decide together: one that stopped alone would leave the others waiting.
        if not trainer.strategy.reduce_boolean_decision(ok, all=True):
            for checkpoint in trainer.checkpoint_callbacks:
                checkpoint.save_on_exception = False  # type: ignore[attr-defined]  # keep the last healthy one
            raise TrainingCollapsed(
                f"the training loss is not finite (epoch {trainer.current_epoch}, within batches up to {batch_idx}): "
                "lower the learning rate or warm it up; the checkpoints written before stay as they are"
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = trainer.callback_metrics.get("val/acc")
        if trainer.state.fn != "fit" or accuracy is None:
            return
        classes = self.num_classes or getattr(getattr(trainer, "datamodule", None), "num_classes", None)
        if classes is None:
            raise UserError("CollapseGuard needs the number of classes to know what chance is: set its num_classes")
        if trainer.sanity_checking:
            return
        self.at_chance = self.at_chance + 1 if float(accuracy) <= self.factor / classes else 0
        if self.at_chance >= self.patience:
            raise TrainingCollapsed(
                f"validation accuracy has been at chance ({float(accuracy):.1%}) for {self.at_chance} epochs: training "
                "has collapsed. Let the radius grow (callbacks.EpsilonWarmup), lower it, or lower the learning rate"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"at_chance": self.at_chance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.at_chance = state_dict["at_chance"]
