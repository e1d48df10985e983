"""Standard training: cross-entropy on clean images, the baseline of every table."""

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.lightning_modules.base import LossClassifier
from adversarial_lightning.lightning_modules.schedules import Schedule


class Standard(LossClassifier):
    """Minimises the mean cross-entropy of clean images.

    Args:
        network: images in [0, 1] -> logits.
        optimizer: of the network's parameters; the default is ATENT's SGD baseline on MNIST.
        schedule: of the learning rate; none: constant.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)

    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self(x), y)}
