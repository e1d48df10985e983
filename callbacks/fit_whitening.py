"""Fit of whitening layers to the training images."""

from typing import cast

import pytorch_lightning as pl

from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.subset import random_subset
from adversarial_lightning.lightning_modules.base import Classifier
from adversarial_lightning.networks import Whiten


class FitWhitening(pl.Callback):
    """Fits each `networks.Whiten` layer to the training images when training starts, unless it is already fitted.

    Args:
        limit: number of training images to use, a random subset (`random_subset`); none: all.
        sample_seed: seed of the subset.
    """

    def __init__(self, limit: int | None = None, sample_seed: int = 0) -> None:
        if limit is not None and limit < 2:
            raise UserError(f"limit must be at least 2, not {limit}")
        self.limit, self.sample_seed = limit, sample_seed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        layers = [m for m in cast(Classifier, pl_module).network.modules() if isinstance(m, Whiten)]
        if not layers:
            raise UserError("FitWhitening found no Whiten in the network: set its whiten to true, or drop the callback")
        data = getattr(trainer, "datamodule", None)
        for layer in layers:
            if not layer.fitted and data is not None:
                images = data.dataset("train")
                chosen = random_subset(images.indices, self.limit, self.sample_seed)
                layer.fit(images.fetch(images.indices[chosen]))
            if not layer.fitted:
                raise UserError("FitWhitening needs a datamodule: call fit of the network's Whiten by hand")
