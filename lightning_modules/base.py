"""What every training method shares: network, optimizer, schedule, keyed randomness, exact clean accuracy."""

import os
import warnings
from abc import abstractmethod
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from adversarial_lightning.attacks import Noise, check_images, noise_for
from adversarial_lightning.checkpoints.load import check_fit
from adversarial_lightning.checkpoints.spec import plain
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.schedules import Schedule

Batch = tuple[Tensor, Tensor, Tensor]


def global_seed() -> int:
    """The seed of `seed_everything`, 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class TrainingMethod(pl.LightningModule):
    """Abstract base: trains `network` on images (B, C, H, W) in [0, 1]; batches are ``(x, y, index)``.

    All randomness is a function of (seed, epoch, batch, sample): a run that was interrupted and resumed, from the
    end of an epoch or its middle, ends with the bits of one that was not. Rows with index < 0 fill up the shard of a
    process that has no sample and count nowhere.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerCallable, schedule: Schedule | None) -> None:
        super().__init__()
        with warnings.catch_warnings():  # about a module among the arguments: the second call replaces it
            warnings.simplefilter("ignore")
            self.save_hyperparameters()
        self.save_hyperparameters({name: _plain(value) for name, value in self.hparams.items()})
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.extra_networks: list[
            tuple[nn.Module, OptimizerCallable, Schedule | None]
        ] = []  # with optimizers of their own
        self.extra_optimizers: list[
            tuple[nn.Module, OptimizerCallable, Schedule | None]
        ] = []  # second optimizers of a module

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x)
        return output

    def noise(self, index: Tensor) -> Noise:
        """Random numbers of the samples `index` in this epoch, the same on any number of processes."""
        return Noise.keyed(global_seed(), index).fork(self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:
            check_images(batch[0])
        counters = (global_seed(), self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(sum(c * 1_000_003**i for i, c in enumerate(counters)) % 2**63)  # dropout and the like

    def on_validation_start(self) -> None:
        """All processes validate the model of the checkpoint: DDP leaves buffers apart in manual optimisation."""
        if dist.is_available() and dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)

    def configure_optimizers(self) -> Any:
        """One optimizer and scheduler for what no opponent owns, then one for each opponent, then the further ones."""
        theirs = {id(p) for module, _, _ in self.extra_networks for p in module.parameters()}
        own = [p for p in self.parameters() if id(p) not in theirs]
        rest = [(list(m.parameters()), o, s) for m, o, s in [*self.extra_networks, *self.extra_optimizers]]
        players = [(own, self.optimizer, self.schedule), *rest]
        found = []
        for parameters, make, schedule in players:
            entry: dict[str, Any] = {"optimizer": make(parameters)}
            if schedule is not None:
                scheduler = torch.optim.lr_scheduler.LambdaLR(entry["optimizer"], partial(self._rate, schedule))
                entry["lr_scheduler"] = {"scheduler": scheduler, "interval": "step"}
            found.append(entry)
        return found

    def _rate(self, schedule: Schedule, step: int) -> float:
        """The schedule's multiplier after `step` optimizer steps."""
        # Step 0 is asked for before a checkpoint is restored; the total would set up the data too early for that.
        return schedule.factor(min(1.0, step / self.trainer.estimated_stepping_batches) if step else 0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what evaluation needs to rebuild network and data, in plain values."""
        data = getattr(self.trainer, "datamodule", None)
        checkpoint["catalogue"] = {"network": _plain(self.network), "data": None if data is None else _plain(data)}


class Classifier(TrainingMethod):
    """Abstract base: images (B, C, H, W) in [0, 1] -> logits (B, K)."""

    def __init__(self, network: nn.Module, optimizer: OptimizerCallable, schedule: Schedule | None) -> None:
        super().__init__(network, optimizer, schedule)
        self.accuracy = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})
        self.mean_loss = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})

    def setup(self, stage: str) -> None:
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
        """The logits; random layers draw numbers of the samples, the same in every epoch."""
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
    """Abstract base of methods that are one loss: leaves write `losses`."""

    @abstractmethod
    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Named scalars of one batch; ``loss`` is minimised, all are logged."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        losses = self.losses(x, y, self.noise(index))
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return losses["loss"]


def require_find_unused_parameters(strategy: Any, what: str) -> None:
    """Raise ValueError where DDP would wait for gradients that `what`, updates in turn, does not make each time."""
    ddp: dict[str, Any] | None = getattr(strategy, "_ddp_kwargs", None)
    if ddp is not None and not ddp.get("find_unused_parameters"):
        raise UserError(
            f"{what}, so each backward pass leaves parameters unused: use --trainer.strategy "
            "ddp_find_unused_parameters_true"
        )


def _plain(value: Any) -> Any:
    """`value` in plain types; by its repr where it has no description (an optimizer built in Python)."""
    try:
        return plain(value)
    except ValueError:
        return repr(value)
