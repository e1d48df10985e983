"""Base of all training methods: network, optimizers, schedules, keyed randomness and the content of checkpoints."""

import warnings
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise, check_images
from adversarial_lightning.checkpoints.spec import plain, room_of
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.seed import global_seed

Batch = tuple[Tensor, Tensor, Tensor]
# A module, the optimizer of its parameters, and the schedule of that optimizer's learning rate.
Optimized = tuple[nn.Module, OptimizerCallable, Schedule | None]


class TrainingMethod(pl.LightningModule):
    """Abstract base: trains `network` on images (B, C, H, W) in [0, 1]; batches are ``(x, y, index)``.

    All randomness is a function of (seed, epoch, batch, sample): a run that is interrupted and resumed, after an epoch
    or within it, gives the same weights to the bit as an uninterrupted one. A process without samples gets one row with
    index < 0, which counts nowhere.

    Contract of subclasses with several optimizers, to be kept in `__init__` after ``super().__init__``:

    - `extra_networks` lists submodules that have an optimizer of their own, such as a critic. Their parameters are
      taken from the main optimizer, which keeps all others.
    - `extra_optimizers` lists further optimizers of parameters that keep their first one.

    `self.optimizers()` then gives the main optimizer, those of `extra_networks` and those of `extra_optimizers`, in
    this order; `self.lr_schedulers()` gives the schedulers of those with a schedule, in the same order. With more than
    one optimizer a subclass trains by manual optimisation, and steps its schedulers itself.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerCallable, schedule: Schedule | None) -> None:
        super().__init__()
        # The first call finds the arguments of the subclass, and warns of modules among them; the second replaces them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.save_hyperparameters()
        self.save_hyperparameters({name: _plain(value) for name, value in self.hparams.items()})
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.extra_networks: list[Optimized] = []
        self.extra_optimizers: list[Optimized] = []

    def forward(self, x: Tensor) -> Tensor:
        # Some networks write into their input, which losses use again; where it requires gradients, that is an error.
        output: Tensor = self.network(x if x.requires_grad else x.clone())
        return output

    def setup(self, stage: str) -> None:
        if self.trainer.precision not in ("32-true", "16-mixed", "bf16-mixed"):
            raise UserError(
                f"{type(self).__name__} keeps its weights in float32, not in {self.trainer.precision}: use "
                "--trainer.precision bf16-mixed for speed, or 32-true"
            )

    def noise(self, index: Tensor) -> Noise:
        """Noise keyed by seed, sample number `index` (B,) and epoch: the same on any number of processes."""
        return Noise.keyed(global_seed(), index).fork(self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:
            check_images(batch[0])
        counters = (global_seed(), self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(sum(c * 1_000_003**i for i, c in enumerate(counters)) % 2**63)  # dropout and the like

    def on_validation_start(self) -> None:
        """Broadcast buffers, so that all processes validate one model: DDP does not in manual optimisation."""
        if dist.is_available() and dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)

    def configure_optimizers(self) -> Any:
        """Make the optimizers and schedulers in the order that the class documents."""
        separate = {id(p) for module, _, _ in self.extra_networks for p in module.parameters()}
        own = [p for p in self.parameters() if id(p) not in separate]
        rest = [(list(m.parameters()), o, s) for m, o, s in [*self.extra_networks, *self.extra_optimizers]]
        all_of_them = [(own, self.optimizer, self.schedule), *rest]
        found = []
        for parameters, make, schedule in all_of_them:
            entry: dict[str, Any] = {"optimizer": make(parameters)}
            if schedule is not None:
                scheduler = torch.optim.lr_scheduler.LambdaLR(entry["optimizer"], partial(self._rate, schedule))
                entry["lr_scheduler"] = {"scheduler": scheduler, "interval": "step"}
            found.append(entry)
        return found

    def _rate(self, schedule: Schedule, step: int) -> float:
        """Multiplier of the learning rate after `step` optimizer steps."""
        # Step 0 comes before a checkpoint is restored, and `estimated_stepping_batches` would then set up the data too
        # early.
        return schedule.factor(min(1.0, step / self.trainer.estimated_stepping_batches) if step else 0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the specs of network and data, from which evaluation rebuilds them, and the name of the method."""
        data = getattr(self.trainer, "datamodule", None)
        checkpoint["catalogue"] = {
            "network": _plain(self.network),
            "data": None if data is None else _plain(data),
            "method": f"{room_of(type(self)) or type(self).__module__}.{type(self).__name__}",
        }


def require_find_unused_parameters(strategy: Any, what: str) -> None:
    """Raise ValueError if DDP expects gradients of all parameters; `what` is the method that updates them in turn."""
    ddp: dict[str, Any] | None = getattr(strategy, "_ddp_kwargs", None)
    if ddp is not None and not ddp.get("find_unused_parameters"):
        raise UserError(
            f"{what}, so each backward pass leaves parameters unused: use --trainer.strategy "
            "ddp_find_unused_parameters_true"
        )


def _plain(value: Any) -> Any:
    """Convert `value` to plain types, or to its repr where it has no spec (an optimizer made in Python)."""
    try:
        return plain(value)
    except ValueError:
        return repr(value)
