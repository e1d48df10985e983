"""Comparison of codes with their prior: histograms and distances of held-out images in TensorBoard."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.callbacks.held_out import held_out, should_run
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.er_classifier import sliced_w1
from adversarial_lightning.lightning_modules.training_method import Batch
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.seed import global_seed


@runtime_checkable
class Regularised(Protocol):
    """Protocol of a module that regularises the codes of `network.encoder` towards a `prior`.

    The prior is a function of noise and codes (B, k) that returns draws of their shape. The critic, if there is one,
    has weights in [-clip, clip].
    """

    network: Any
    prior: Callable[[Noise, Tensor], Tensor]
    critic: nn.Module | None
    clip: float


def distances(module: Regularised, codes: Tensor, z: Tensor) -> dict[str, float]:
    """Distances between `codes` (B, k) and draws `z` (B, k) of the prior, with the codes' mean and standard deviation.

    ``sliced_w1`` uses 128 directions and needs no critic. With a critic, ``w1_hat`` is its estimate of W1 up to an
    unknown factor, ``critic_gradient`` the mean length of its gradient at the codes, and ``critic_at_clip`` the share
    of its weights that are clipped.
    """
    directions = Noise.keyed(0, torch.arange(128, device=codes.device)).normal(codes.new_zeros(128, codes.shape[1]))
    found = {
        "sliced_w1": sliced_w1(z, codes, directions),
        "code_mean": codes.mean(),
        "code_std": codes.std(),
    }
    if module.critic is not None:
        codes = codes.detach().requires_grad_()
        score = module.critic(codes)
        (gradient,) = torch.autograd.grad(score.sum(), codes)
        weights = torch.cat([p.flatten() for p in module.critic.parameters()]).abs()
        found |= {
            "w1_hat": module.critic(z).mean() - score.mean(),
            "critic_gradient": gradient.norm(dim=1).mean(),
            "critic_at_clip": (weights >= module.clip).float().mean(),
        }
    return {name: float(value.detach()) for name, value in found.items()}


class EmbeddingPrior(pl.Callback):
    """Logs histograms of the codes' coordinates and of the prior, and their `distances`, during validation.

    Args:
        limit: number of held-out images, a random subset (`random_subset`).
        every_n_epochs: number of epochs between two logs.
        sample_seed: seed of the subset.
    """

    def __init__(self, limit: int = 1000, every_n_epochs: int = 1, sample_seed: int = 0) -> None:
        if limit < 2 or every_n_epochs < 1:
            raise UserError(f"limit ({limit}) must be at least 2 and every_n_epochs ({every_n_epochs}) at least 1")
        self.limit, self.every_n_epochs, self.sample_seed = limit, every_n_epochs, sample_seed

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not should_run(trainer, self.every_n_epochs, batch_idx, dataloader_idx):
            return
        if not isinstance(pl_module, Regularised):
            raise UserError(
                "EmbeddingPrior needs codes that are regularised towards a prior, such as those of "
                f"lightning_modules.ERClassifier; {type(pl_module).__name__} has none"
            )
        images, rows = held_out(trainer, self.limit, self.sample_seed)
        with frozen_eval(pl_module):
            encode = pl_module.network.encoder
            with torch.no_grad():
                parts = [encode(images.__getitems__(part.tolist())[0].to(pl_module.device)) for part in rows.split(256)]
            codes = torch.cat(parts)
            z = pl_module.prior(Noise.keyed(global_seed(), torch.arange(len(codes), device=codes.device)), codes)
            found = distances(pl_module, codes, z)
        for logger in trainer.loggers:
            logger.log_metrics({f"embedding/{name}": value for name, value in found.items()}, trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                for k in range(codes.shape[1]):
                    logger.experiment.add_histogram(f"embedding/code_{k}", codes[:, k], trainer.global_step)
                logger.experiment.add_histogram("embedding/prior", z.clamp(-10, 10), trainer.global_step)
