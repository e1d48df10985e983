"""Normalisation as the first layer of a network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError


class Normalize(nn.Module):
    """Normalisation (x - mean) / std of each channel, so that all images outside the network are in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise UserError(f"mean {list(mean)} and std {list(std)} need one value a channel, std above 0")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def first(mean: list[float] | None, std: list[float] | None) -> nn.Module:
    """First layer of a network: `Normalize`, or the identity if neither mean nor std is given."""
    if mean is None and std is None:
        return nn.Identity()
    n = len(mean or std or [])
    return Normalize(mean or [0.0] * n, std or [1.0] * n)
