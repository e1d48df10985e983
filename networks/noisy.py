"""Noise before every convolution, in training and at inference (Random Self-Ensemble, Liu et al. 2018)."""

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError


class GaussianNoise(nn.Module):
    """Gaussian noise x + N(0, std^2), in every mode.

    It comes from `noise`, which `attacks.noise_for` sets, or else from torch's global generator.

    Args:
        std: standard deviation of the noise, in the units of the input.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        if not std >= 0:
            raise UserError(f"std must be at least 0, not {std}")
        self.std, self.stochastic = std, std > 0
        self.noise: object = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.std:
            return x
        drawn: Tensor = torch.randn_like(x) if self.noise is None else self.noise.normal(x.detach())  # type: ignore[attr-defined]
        return x + self.std * drawn


class NoisyConvolutions(nn.Module):
    """Network with `GaussianNoise` before each of its convolutions: images in [0, 1] -> logits of one draw.

    The method predicts by the mean of the probabilities over several draws: use ``defenses.Voting`` with ``mode:
    mean_probs``. Raises ValueError for a network without convolutions.

    Args:
        network: images in [0, 1] -> logits.
        init: standard deviation before the first convolution, in the units of the image as the network normalises it:
            on a network that scales images to [-1, 1], twice the number is the same share of the pixels' range.
        inner: standard deviation before all others. The code of Liu et al. has 0.2 and 0.1 for colour images, that of
            Li et al. 2021 (ER-Classifier) 0.8 and 0.4 for MNIST, both on pixels in [0, 1] that no layer normalises.
    """

    def __init__(self, network: nn.Module, init: float = 0.2, inner: float = 0.1) -> None:
        super().__init__()
        self.num_classes = getattr(network, "num_classes", None)
        convolutions = [
            (parent, name, child)
            for parent in list(network.modules())
            for name, child in parent.named_children()
            if isinstance(child, nn.Conv2d)
        ]
        if not convolutions:
            raise UserError(f"{type(network).__name__} has no convolutions to put noise before")
        for place, (parent, name, child) in enumerate(convolutions):
            setattr(parent, name, nn.Sequential(GaussianNoise(inner if place else init), child))
        self.network, self.init, self.inner = network, init, inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits
