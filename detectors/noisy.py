"""Noisy images as far from the clean ones as adversarial images, so that a detector does not learn "any noise"."""

import torch
from torch import Tensor

from adversarial_lightning.attacks import Noise
from adversarial_lightning.attacks.core.norms import distance


def noisy_copies(x: Tensor, z: Tensor, noise: Noise, norm: str | None = None) -> tuple[Tensor, float]:
    """Noisy versions of `x` (B, ...) with the mean l2 length of ``z - x``, and the noise's standard deviation.

    Feinman et al. 2017 and Ma et al. 2018: Gaussian noise of one standard deviation, clipped to [0, 1]; here the
    standard deviation is bisected until clipped noise has that length. For an attack of `norm` l0, as many random
    pixels of each image become 1 as `z` changes (the number returned is their mean). Where `z` is `x`, nothing changes.
    """
    if norm == "l0":
        count = distance("l0", z - x)
        ranks = noise.uniform(x).flatten(1).argsort(1).argsort(1)
        return torch.where(ranks < count[:, None], 1.0, x.flatten(1)).view_as(x), float(count.float().mean())
    normal, target = noise.normal(x), float(distance("l2", z - x).mean())

    def copies(std: float) -> Tensor:
        return (x + std * normal).clamp(0, 1)

    if not target > 0:  # also without any image
        return x.clone(), 0.0
    low, high = 0.0, 1.0
    while float(distance("l2", copies(high) - x).mean()) < target and high < 1e3:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        short = float(distance("l2", copies(middle) - x).mean()) < target
        low, high = (middle, high) if short else (low, middle)
    return copies(high), high
