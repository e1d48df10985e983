"""Penalties on perturbations and their proximal operators, for proximal gradient attacks.

``penalty.prox(v, weight, metric)`` is ``argmin_u weight * phi(u) + 1/2 sum_i metric_i (u_i - v_i)^2``, row by row: `v`
and `metric` are (B, ...), `metric` positive, `weight` (B,) at least 0. A penalty is anything with these two methods.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.checks import check_choices
from adversarial_lightning.attacks.core.norms import NORMS, batch_view, l0_distance


class Penalty(ABC):
    """Function phi of each row of a perturbation, with its proximal operator in a diagonal metric."""

    @abstractmethod
    def distance(self, d: Tensor) -> Tensor:
        """Length (B,) of `d` (B, ...) that attacks with this penalty minimise: phi, or the count that it replaces."""

    @abstractmethod
    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        """Proximal operator: ``argmin_u weight * phi(u) + 1/2 sum_i metric_i (u_i - v_i)^2``."""


@dataclass(frozen=True)
class LinfPenalty(Penalty):
    """Largest entry; the prox clips at the level t with ``sum_i metric_i (|v_i| - t)_+ = weight``.

    With a constant metric it is Moreau's ``v - P(v)``, P the projection on the l1 ball (thesis, eq. 5.11).
    """

    def distance(self, d: Tensor) -> Tensor:
        return NORMS["linf"].distance(d)

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        size, order = v.flatten(1).abs().sort(1, descending=True)
        share = metric.expand_as(v).flatten(1).gather(1, order)
        # The level if exactly the j largest entries are clipped, for every j; the true level is the largest of these.
        levels = ((share * size).cumsum(1) - weight[:, None]) / share.cumsum(1)
        level = batch_view(levels.amax(1).clamp_min(0), v)
        return torch.maximum(torch.minimum(v, level), -level)


@dataclass(frozen=True)
class L2Penalty(Penalty):
    """Euclidean length; in a constant metric its prox is the block soft threshold."""

    def distance(self, d: Tensor) -> Tensor:
        return NORMS["l2"].distance(d)

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        # u_i = a_i / (metric_i + weight / n) with a = metric v; n = ||u|| solves ||a / (metric n + weight)|| = 1.
        # Newton on 1/||.|| - 1, which is nearly linear in n and concave: from n = 0 it converges within a few steps.
        scale = metric.expand_as(v).flatten(1).amax(1)  # of each row, so that tiny and huge metrics do not overflow
        share = metric.expand_as(v).flatten(1) / scale[:, None]
        a, w = share * v.flatten(1), weight / scale
        n = torch.zeros_like(w)
        positive = torch.linalg.vector_norm(a, dim=1) > w  # else u = 0
        # A weight below the rounding of v changes nothing, but a weight of 0 would be a division by 0.
        finfo = torch.finfo(v.dtype)
        w, tiny = w.maximum(finfo.eps**2 * torch.linalg.vector_norm(a, dim=1)).clamp_min(finfo.tiny), finfo.tiny
        for _ in range(12):
            below = share * n[:, None] + w[:, None]
            f = torch.linalg.vector_norm(a / below, dim=1).clamp_min(tiny)
            slope = ((a / below / f[:, None]) ** 2 * (share / below)).sum(1) * f
            n = (n + f * (f - 1) / slope.clamp_min(tiny)).clamp_min(0)
        u = a * n[:, None] / (share * n[:, None] + w[:, None])
        return torch.where(positive[:, None], u, 0).view_as(v)


class Separable(Penalty):
    """Sum of a penalty over entries; a metric changes only the weight of each entry."""

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        return self.shrink(v, batch_view(weight, v) / metric)

    @abstractmethod
    def shrink(self, v: Tensor, mu: Tensor) -> Tensor:
        """Prox of one entry, ``argmin_u mu phi(u) + 1/2 (u - v)^2``; `mu` broadcasts to `v`."""


@dataclass(frozen=True)
class L1Penalty(Separable):
    """Sum of absolute values; the prox is the soft threshold (thesis, eq. 5.13)."""

    def distance(self, d: Tensor) -> Tensor:
        return NORMS["l1"].distance(d)

    def shrink(self, v: Tensor, mu: Tensor) -> Tensor:
        return v.sign() * (v.abs() - mu).clamp_min(0)


@dataclass(frozen=True)
class L0Penalty(Separable):
    """Number of non-zero entries; the prox is the hard threshold at sqrt(2 mu) (thesis, eq. 5.14)."""

    def distance(self, d: Tensor) -> Tensor:
        return l0_distance(d)

    def shrink(self, v: Tensor, mu: Tensor) -> Tensor:
        return torch.where(v * v > 2 * mu, v, 0)


@dataclass(frozen=True)
class QuasinormPenalty(Separable):
    """Quasinorm ``sum_i |u_i|^q`` for q = 2/3 or 1/2, which finds sparser points than the count of entries.

    Its `distance` is the number of non-zero entries. The prox is in closed form: for 2/3 by Cao et al. 2013, for
    1/2 by Xu et al. 2012.

    Args:
        q: exponent.
    """

    q: Literal["2/3", "1/2"] = "2/3"

    def __post_init__(self) -> None:
        check_choices(self)

    def distance(self, d: Tensor) -> Tensor:
        return l0_distance(d)

    def shrink(self, v: Tensor, mu: Tensor) -> Tensor:
        mu, size = mu.clamp_min(torch.finfo(v.dtype).tiny).expand_as(v), v.abs()
        if self.q == "1/2":
            kept = size > 1.5 * mu ** (2 / 3)
            size = size.where(kept, 1)
            cosine = (3**1.5 / 4 * mu * size**-1.5).where(kept, 0).clamp(-1, 1)
            return torch.where(kept, 2 / 3 * v * (1 + torch.cos(2 / 3 * torch.arccos(-cosine))), 0)
        # b is the larger real root of the quartic's resolvent; all is scaled by |v| against under- and overflow.
        kept = size > 2 * (2 * mu / 3) ** 0.75
        size = size.where(kept, 1)
        c = (mu.where(kept, 0) / size ** (4 / 3)) ** 3 * (8 / 729)
        root = (1 / 256 - c).clamp_min(0).sqrt()
        b = (1 / 16 + root) ** (1 / 3) + (1 / 16 - root).clamp_min(0) ** (1 / 3)
        half = (2 * b).sqrt()
        u = (half + (2 / half - 2 * b).clamp_min(0).sqrt()) ** 3 / 8
        return torch.where(kept, v * u, 0)


@dataclass(frozen=True)
class GroupL0Penalty(Penalty):
    """Number of non-zero pixels; the channels of a pixel (dimension 1) count as one.

    The prox keeps pixels with ``sum_c metric_c v_c^2 > 2 weight``. The thesis (eq. 5.16) compares only the largest
    channel, which removes pixels that the minimiser keeps; `rule` "max" does that.

    Args:
        rule: exact, or max.
    """

    rule: Literal["exact", "max"] = "exact"

    def __post_init__(self) -> None:
        check_choices(self)

    def distance(self, d: Tensor) -> Tensor:
        return l0_distance((d != 0).any(1, keepdim=True).to(d))

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        energy = metric * v * v
        energy = energy.sum(1, keepdim=True) if self.rule == "exact" else energy.amax(1, keepdim=True)
        return torch.where(energy > 2 * batch_view(weight, v), v, 0)
