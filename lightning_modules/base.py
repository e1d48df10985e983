"""Bases of classifiers: exact clean accuracy on any number of processes, and the training step of a single loss."""

from abc import abstractmethod

import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.checkpoints.load import check_fit
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.lightning_modules.training_method import Batch, TrainingMethod
from adversarial_lightning.seed import global_seed


class Classifier(TrainingMethod):
    """Abstract base: images (B, C, H, W) in [0, 1] -> logits (B, K)."""

    def __init__(self, network: nn.Module, optimizer: OptimizerCallable, schedule: Schedule | None) -> None:
        super().__init__(network, optimizer, schedule)
        self.accuracy = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})
        self.mean_loss = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "num_classes") and hasattr(data, "image_shape"):
            check_fit(self.network, data)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Logits and sample numbers of one batch."""
        keep = batch[2] >= 0
        return {"index": batch[2][keep], "logits": self._answer(batch)[keep]}

    def _answer(self, batch: Batch) -> Tensor:
        """Logits (B, K); random layers draw noise keyed by sample, the same in every epoch."""
        with noise_for(self.network, Noise.keyed(global_seed(), batch[2])):
            logits: Tensor = self(batch[0])
        return logits

    def _evaluate(self, stage: str, batch: Batch) -> None:
        _, y, index = batch
        logits, counts = self._answer(batch), (index >= 0).float()
        for metrics, name, value in (
            (self.accuracy, "acc", (logits.argmax(1) == y).float()),
            (self.mean_loss, "loss", F.cross_entropy(logits, y, reduction="none")),
        ):
            metrics[stage].update(value, counts)  # type: ignore[operator]
            self.log(f"{stage}/{name}", metrics[stage], prog_bar=name == "acc", on_epoch=True)  # type: ignore[arg-type]


class LossClassifier(Classifier):
    """Abstract base of methods that minimise one loss: leaves write `losses`."""

    @abstractmethod
    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Named scalars of one batch; ``loss`` is minimised, all are logged."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        losses = self.losses(x, y, self.noise(index))
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return losses["loss"]
