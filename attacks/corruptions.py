"""Random corruptions, which use no knowledge of the model: Gaussian noise, salt and pepper."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind, Knowledge
from adversarial_lightning.attacks.core.checks import at_least
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Gaussian noise: x + N(0, std^2 I), clipped to [0, 1].

    Args:
        std: standard deviation in pixels of [0, 1].
    """

    kind: ClassVar[Kind] = "corruption"
    knowledge: ClassVar[Knowledge] = "none"
    std: float = 0.1

    def __post_init__(self) -> None:
        at_least(0, std=self.std)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return x + self.std * noise.normal(x)


@dataclass(frozen=True)
class SaltAndPepper(Attack):
    """Salt-and-pepper noise: a pixel (all its channels) turns black or white with probability `density` / 2 each.

    On MNIST, density 0.25 gives mean l1 98.1 and l2 9.7 (MALADE, Fig. C.14, prints 98.02 and 9.70).

    Args:
        density: expected share of the pixels replaced, in [0, 1].
    """

    kind: ClassVar[Kind] = "corruption"
    knowledge: ClassVar[Knowledge] = "none"
    density: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.density <= 1:
            raise UserError(f"density must lie in [0, 1], not {self.density}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        u = noise.uniform(x[:, :1])
        return torch.where(u < self.density / 2, 0.0, torch.where(u < self.density, 1.0, x)).to(x.dtype)
