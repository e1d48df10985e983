"""Warm-up of the training radius: at a large radius, adversarial training may stay at chance for long without it."""

import pytorch_lightning as pl

from adversarial_lightning.attacks import Attack, scale_eps
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.training_method import Batch


class EpsilonWarmup(pl.Callback):
    """Raises the radius of the module's training attack linearly to its full value, batch by batch.

    Whether training needs it depends on network, attack and optimizer. On MNIST at linf 0.3 ATENT with SGD on SmallCNN
    left chance after about 120 batches with 3 long steps, and not within 160 with 10 shorter ones. No paper of this
    project names a warm-up: it is our choice, and a row that has it is trained in another way than one that has not.

    It scales every attribute of the module that is an attack, including attacks inside combinations. Step sizes and the
    attacks of other callbacks do not change.

    Args:
        share: share of training, in batches, after which the radius is full, in (0, 1].
        start: multiplier of the radius at the first batch, in [0, 1].
    """

    def __init__(self, share: float = 0.4, start: float = 0.0) -> None:
        if not 0 < share <= 1 or not 0 <= start <= 1:
            raise UserError(f"share must lie in (0, 1] and start in [0, 1], not {share} and {start}")
        self.share, self.start = share, start
        self.full: dict[str, Attack] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.full = {name: value for name, value in vars(pl_module).items() if isinstance(value, Attack)}
        if not self.full:
            raise UserError(f"EpsilonWarmup found no attack in {type(pl_module).__name__}: remove the callback")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
        done = (trainer.current_epoch * trainer.num_training_batches + batch_idx) / (self.share * batches)
        factor = min(1.0, self.start + (1 - self.start) * done)
        for name, attack in self.full.items():
            setattr(pl_module, name, scale_eps(attack, factor) if factor < 1 else attack)
        pl_module.log("train/eps_factor", factor)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for name, attack in self.full.items():
            setattr(pl_module, name, attack)
