"""Condition for callbacks that use held-out images after validation."""

import pytorch_lightning as pl


def should_run(trainer: pl.Trainer, every_n_epochs: int) -> bool:
    """True every `every_n_epochs` epochs and after the last, on the first process, given a logger and data."""
    epoch = trainer.current_epoch + 1
    ready = trainer.is_global_zero and trainer.loggers and getattr(trainer, "datamodule", None) is not None
    return bool(ready) and not trainer.sanity_checking and (epoch % every_n_epochs == 0 or epoch == trainer.max_epochs)
