"""Adversary critic (Matyasko 2020, section 4.4): real images of a class against images attacked to resemble it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.initialize import initialize


class Critic(nn.Module):
    """Critic: images (B, C, H, W) in [0, 1] and classes (B,) -> logit (B,) of "real"; its sigmoid is the thesis' D_y.

    Dense layers with leaky ReLU and with Gaussian noise on the input of each, of the public code's sizes. The noise is
    added in every mode; it comes from `noise`, which `attacks.noise_for` sets, or else from torch's global generator.

    Args:
        num_classes: number of classes, the classifier's.
        features: number of values of an image, C x H x W.
        hidden: widths of the hidden layers.
        label: head has one output for each class and returns that of y; layers feeds y to every layer, as earlier
            work on joint distributions does (the thesis found it less stable).
        input_noise: standard deviation of the noise on the image.
        hidden_noise: standard deviation of the noise on each hidden layer's output.
        slope: slope of the leaky ReLU below zero.
    """

    stochastic = True

    def __init__(
        self,
        num_classes: int = 10,
        features: int = 784,
        hidden: Sequence[int] = (1200, 1200),
        label: Literal["head", "layers"] = "head",
        input_noise: float = 0.1,
        hidden_noise: float = 0.5,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        if num_classes < 2 or min(input_noise, hidden_noise) < 0:
            raise UserError(
                f"a critic needs num_classes >= 2 and noise >= 0, not {num_classes} and {input_noise}, {hidden_noise}"
            )
        self.num_classes, self.features, self.hidden, self.label = num_classes, features, list(hidden), label
        self.input_noise, self.hidden_noise, self.slope = input_noise, hidden_noise, slope
        extra = num_classes if label == "layers" else 0
        widths = [features, *self.hidden, num_classes if label == "head" else 1]
        self.layers = nn.ModuleList(nn.Linear(a + extra, b) for a, b in pairwise(widths))
        self.noise: object = None
        initialize(self, "he")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x.flatten(1)
        for i, layer in enumerate(self.layers):
            std = self.hidden_noise if i else self.input_noise
            h = h + std * self._normal(h) if std else h
            if self.label == "layers":
                h = torch.cat([h, F.one_hot(y, self.num_classes).to(h)], 1)
            h = layer(h)
            if i + 1 < len(self.layers):
                h = F.leaky_relu(h, self.slope)
        return h.gather(1, y[:, None])[:, 0] if self.label == "head" else h[:, 0]

    def _normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape of `like`, from `noise` if it is set."""
        if self.noise is None:
            return torch.randn_like(like)
        drawn: Tensor = self.noise.normal(like.detach())  # type: ignore[attr-defined]
        return drawn
