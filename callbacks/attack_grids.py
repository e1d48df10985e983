"""What targeted attacks turn images into: every class into every other, and with rising confidence (Matyasko 2020)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchvision.utils import make_grid

from attacks import Attack, HighConfidence, Noise, guard
from callbacks.adversarial_images import caption
from callbacks.due import due
from lightning_modules.base import Classifier, global_seed


def target_grid(network: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    """A picture (3, H', W'): image i of `x` (N, C, H, W) in row i, attacked towards class j in column j (Fig. 4.2).

    `attack` is targeted. Under the class y_i the image is shown as it is; an attack that failed leaves a blank.
    """
    with guard(network), torch.no_grad():
        classes = network(x[:1]).shape[1]
    sources, targets = x.repeat_interleave(classes, 0), torch.arange(classes, device=x.device).repeat(len(x))
    own = y.repeat_interleave(classes) == targets
    z = sources.clone()
    noise = Noise.keyed(global_seed(), torch.arange(len(z), device=x.device))
    z[~own] = attack(network, sources[~own], targets[~own], noise[~own])
    failed = ~own & (z == sources).flatten(1).all(1)
    z[failed] = 0
    grid: Tensor = make_grid(z.cpu(), nrow=classes, padding=2, pad_value=0.5)
    return grid


def confidence_grid(
    network: nn.Module, attack: HighConfidence, x: Tensor, y: Tensor, confidences: Sequence[float]
) -> Tensor:
    """A picture (3, H', W'): a column for each of `x` (N, C, H, W), below it attacks of rising confidence (Fig. 4.4).

    The number below each row is the mean confidence of its predictions. The target is that of `attack` at the image.
    """
    scale = max(1, -(-56 // x.shape[-1]))  # small images are enlarged so that the captions fit
    strips = []
    for confidence in (None, *confidences):
        z = x if confidence is None else replace(attack, confidence=confidence)(network, x, y)
        with guard(network), torch.no_grad():
            reached = float(network(z).softmax(1).amax(1).mean())
        big = z.cpu().expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        row = make_grid(big, nrow=len(x), padding=2, pad_value=0.5)
        text = f"{'images' if confidence is None else f'attacked to {confidence:.0%}'}: confidence {reached:.0%}"
        strips += [row, caption(text, row.shape[2])]
    return torch.cat(strips, 1)


class AttackGrids(pl.Callback):
    """Logs both pictures of held-out images, the first of each class, after validation.

    Args:
        targeted: makes the pictures of every class turned into every other; none: HighConfidence to 0.95.
        rising: makes those of rising confidence; none: HighConfidence as it is.
        confidences: of these, ascending, in (1/K, 1); the lowest is about the class boundary.
        every_n_epochs: epochs from one set of pictures to the next.
    """

    def __init__(
        self,
        targeted: Attack | None = None,
        rising: HighConfidence | None = None,
        confidences: Sequence[float] = (0.35, 0.6, 0.98),
        every_n_epochs: int = 10,
    ) -> None:
        targeted = targeted or HighConfidence(confidence=0.95, targeted=True)
        rising = rising or HighConfidence()
        if not getattr(targeted, "targeted", True) or rising.targeted:
            raise ValueError("targeted must be an attack with targeted: true, and rising one that chooses its target")
        if every_n_epochs < 1 or not confidences or sorted(confidences) != list(confidences):
            raise ValueError(
                f"every_n_epochs ({every_n_epochs}) must be at least 1 and confidences ({confidences}) must ascend"
            )
        self.targeted, self.rising, self.confidences = targeted, rising, list(confidences)
        self.every_n_epochs = every_n_epochs

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, Classifier)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        network, images = pl_module.network, data.dataset("val")
        firsts = [(images.labels == k).nonzero()[:1, 0] for k in range(data.num_classes)]
        x, y, _ = images.__getitems__(torch.cat(firsts).tolist())
        x, y = x.to(pl_module.device), y.to(pl_module.device)
        pictures = {
            "val/targets": target_grid(network, self.targeted, x, y),
            "val/confidence": confidence_grid(network, self.rising, x, y, self.confidences),
        }
        for logger in loggers:
            for name, picture in pictures.items():
                logger.experiment.add_image(name, picture, trainer.global_step)
