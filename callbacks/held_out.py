"""Held-out images that callbacks use during validation, and when they do."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from adversarial_lightning.evaluation.outcomes.subset import random_subset


def should_run(trainer: pl.Trainer, every_n_epochs: int, batch_idx: int, dataloader_idx: int) -> bool:
    """True at the first batch of validation, on the first process, given a logger and data, in the epochs that are due.

    These are every `every_n_epochs`-th and the last. At the first batch the module has the weights that are validated:
    callbacks that average weights put them in before, and take them out before validation has ended.
    """
    epoch = trainer.current_epoch + 1
    ready = trainer.is_global_zero and trainer.loggers and getattr(trainer, "datamodule", None) is not None
    first = batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking
    return bool(ready) and first and (epoch % every_n_epochs == 0 or epoch == trainer.max_epochs)


def held_out(trainer: pl.Trainer, n: int, sample_seed: int) -> tuple[Any, Tensor]:
    """Validation images of the data module, and positions in them of a random subset of `n` (see `random_subset`)."""
    images = trainer.datamodule.dataset("val")  # type: ignore[attr-defined]
    return images, random_subset(images.indices, n, sample_seed)
