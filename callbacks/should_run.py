"""When a callback that looks at held-out images has its turn."""

import pytorch_lightning as pl


def should_run(trainer: pl.Trainer, every_n_epochs: int) -> bool:
    """After every so many epochs and after the last, on the first process, where there are a logger and data."""
    epoch = trainer.current_epoch + 1
    ready = trainer.is_global_zero and trainer.loggers and getattr(trainer, "datamodule", None) is not None
    return bool(ready) and not trainer.sanity_checking and (epoch % every_n_epochs == 0 or epoch == trainer.max_epochs)
