"""Penalties on a perturbation and their proximal operators, for attacks that alternate a step and a prox.

``penalty.prox(v, weight, metric)`` is ``argmin_u weight * phi(u) + 1/2 sum_i metric_i (u_i - v_i)^2``, row by row: `v`
and `metric` are (B, ...), `metric` positive, `weight` (B,) at least 0. A penalty is anything with these two methods.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.norms import NORMS, batch_view, l0_distance
from adversarial_lightning.errors import UserError


class Penalty(ABC):
    """A function phi of each row of a perturbation, with its proximal operator in a diagonal metric."""

    @abstractmethod
    def distance(self, d: Tensor) -> Tensor:
        """What an attack with this penalty makes small: (B, ...) -> (B,); phi itself, or the count it stands for."""

    @abstractmethod
    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        """``argmin_u weight * phi(u) + 1/2 sum_i metric_i (u_i - v_i)^2``."""


@dataclass(frozen=True)
class LinfPenalty(Penalty):
    """The largest entry; its prox clips at the level t where ``sum_i metric_i (|v_i| - t)_+ = weight``, by sorting.

    With a constant metric it is Moreau's ``v - P(v)``, P the projection on the l1 ball (thesis, eq. 5.11).
    """

    def distance(self, d: Tensor) -> Tensor:
        return NORMS["linf"].distance(d)

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        size, order = v.flatten(1).abs().sort(1, descending=True)
        share = metric.expand_as(v).flatten(1).gather(1, order)
        # Levels if exactly the j largest entries were clipped; the true one is the largest of them.
        levels = ((share * size).cumsum(1) - weight[:, None]) / share.cumsum(1)
        level = batch_view(levels.amax(1).clamp_min(0), v)
        return torch.maximum(torch.minimum(v, level), -level)


@dataclass(frozen=True)
class L2Penalty(Penalty):
    """The Euclidean length; in a constant metric its prox is the block soft threshold."""

    def distance(self, d: Tensor) -> Tensor:
        return NORMS["l2"].distance(d)

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        # u_i = a_i / (metric_i + weight / n) with a = metric v; n = ||u|| solves ||a / (metric n + weight)|| = 1.
        # Newton on 1/||.|| - 1, which is nearly linear in n and concave: from n = 0 it converges within a few steps.
        scale = metric.expand_as(v).flatten(1).amax(1)  # of each row, so that tiny and huge metrics do not overflow
        share = metric.expand_as(v).flatten(1) / scale[:, None]
        a, w = share * v.flatten(1), weight / scale
        n = torch.zeros_like(w)
        alive = torch.linalg.vector_norm(a, dim=1) > w  # else u = 0
        w, tiny = w.clamp_min(1e-12), torch.finfo(v.dtype).tiny
        for _ in range(12):
            below = share * n[:, None] + w[:, None]
            f = torch.linalg.vector_norm(a / below, dim=1).clamp_min(tiny)
            slope = ((a / below / f[:, None]) ** 2 * (share / below)).sum(1) * f
            n = (n + f * (f - 1) / slope.clamp_min(tiny)).clamp_min(0)
        u = a * n[:, None] / (share * n[:, None] + w[:, None])
        return torch.where(alive[:, None], u, 0).view_as(v)


class Separable(Penalty):
    """A penalty that is a sum over entries, so that a metric only changes each entry's own weight."""

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        return self.shrink(v, batch_view(weight, v) / metric)

    @abstractmethod
    def shrink(self, v: Tensor, mu: Tensor) -> Tensor:
        """The prox of one entry, ``argmin_u mu phi(u) + 1/2 (u - v)^2``; `mu` broadcasts to `v`."""


@dataclass(frozen=True)
class L1Penalty(Separable):
    """The sum of absolute values; soft threshold (thesis, eq. 5.13)."""

    def distance(self, d: Tensor) -> Tensor:
        return NORMS["l1"].distance(d)

    def shrink(self, v: Tensor, mu: Tensor) -> Tensor:
        return v.sign() * (v.abs() - mu).clamp_min(0)


@dataclass(frozen=True)
class L0Penalty(Separable):
    """The number of entries that are not zero; hard threshold at sqrt(2 mu) (thesis, eq. 5.14)."""

    def distance(self, d: Tensor) -> Tensor:
        return l0_distance(d)

    def shrink(self, v: Tensor, mu: Tensor) -> Tensor:
        return torch.where(v * v > 2 * mu, v, 0)


@dataclass(frozen=True)
class QuasinormPenalty(Separable):
    """``sum_i |u_i|^q`` for q = 2/3 or 1/2 in closed form: what finds few entries better than counting them.

    Its `distance` is the count that it stands for. The prox of 2/3 is that of Cao, Sun and Xu 2013, the one of 1/2
    that of Xu et al. 2012.

    Args:
        q: exponent.
    """

    q: Literal["2/3", "1/2"] = "2/3"

    def __post_init__(self) -> None:
        check_choices(self)

    def distance(self, d: Tensor) -> Tensor:
        return l0_distance(d)

    def shrink(self, v: Tensor, mu: Tensor) -> Tensor:
        mu, size = mu.clamp_min(1e-30).expand_as(v), v.abs()
        if self.q == "1/2":
            kept = size > 1.5 * mu ** (2 / 3)
            size = size.where(kept, 1)
            cosine = (3**1.5 / 4 * mu * size**-1.5).where(kept, 0).clamp(-1, 1)
            return torch.where(kept, 2 / 3 * v * (1 + torch.cos(2 / 3 * torch.arccos(-cosine))), 0)
        # With b the larger real root of the quartic's resolvent; scaled by |v|, so that nothing under- or overflows.
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
    """The number of pixels (all channels of one place, dimension 1) that are not zero.

    Keeps a pixel where ``sum_c metric_c v_c^2 > 2 weight``: the minimiser. The thesis (eq. 5.16) compares the largest
    channel only, which drops pixels that should be kept; `rule` "max" does that.

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


class Iterated(Penalty):
    """A penalty whose prox is known in a constant metric only: others are reached by inner proximal gradient steps."""

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        most = batch_view(metric.expand_as(v).flatten(1).amax(1), v)
        u, share, mu = v, metric / most, weight / most.flatten()
        for _ in range(1 if bool((share == 1).all()) else 10):
            u = self.euclidean(u - share * (u - v), mu)
        return u

    @abstractmethod
    def euclidean(self, v: Tensor, mu: Tensor) -> Tensor:
        """``argmin_u mu phi(u) + 1/2 ||u - v||^2`` with `mu` (B,)."""


@dataclass(frozen=True)
class TotalVariation(Iterated):
    """Isotropic total variation of each channel of an image; prox by fast dual gradient projection.

    Chambolle 2004 with the momentum of Beck and Teboulle 2009. Free of charge for constants: add another penalty.

    Args:
        iterations: of the dual problem, in each prox.
    """

    iterations: int = 20

    def __post_init__(self) -> None:
        at_least(1, iterations=self.iterations)

    def distance(self, d: Tensor) -> Tensor:
        steepness: Tensor = torch.linalg.vector_norm(_slopes(d), dim=0)
        return steepness.flatten(1).sum(1)

    def euclidean(self, v: Tensor, mu: Tensor) -> Tensor:
        if v.ndim != 4:
            raise UserError(f"total variation needs images (B, C, H, W), not {tuple(v.shape)}")
        mu = batch_view(mu, v)
        p = ahead = torch.zeros_like(_slopes(v))
        t = 1.0
        for _ in range(self.iterations):  # p in the unit ball of each pixel minimises ||v + mu div p||
            q = ahead + _slopes(v + mu * _divergence(ahead)) / (8 * mu.clamp_min(1e-30))
            q = q / torch.linalg.vector_norm(q, dim=0).clamp_min(1)
            t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
            p, ahead = q, q + (before - 1) / t * (q - p)
        return v + mu * _divergence(p)


def _slopes(u: Tensor) -> Tensor:
    """Forward differences (2, B, C, H, W) down and right, 0 at the border."""
    slopes = torch.zeros(2, *u.shape, dtype=u.dtype, device=u.device)
    slopes[0, ..., :-1, :] = u[..., 1:, :] - u[..., :-1, :]
    slopes[1, ..., :-1] = u[..., 1:] - u[..., :-1]
    return slopes


def _divergence(p: Tensor) -> Tensor:
    """Minus the adjoint of `_slopes`."""
    down, right = p[0, ..., :-1, :], p[1, ..., :-1]
    out = torch.zeros_like(p[0])
    out[..., :-1, :] += down
    out[..., 1:, :] -= down
    out[..., :-1] += right
    out[..., 1:] -= right
    return out


@dataclass(frozen=True)
class SumPenalty(Iterated):
    """A weighted sum whose prox is taken as the composition of the parts' proxes, the first part's first.

    Exact for total variation then l1 (fused lasso), l1 then l2 (sparse groups), and for anything that is followed by a
    positive multiple of the l2 norm; otherwise an approximation.

    Args:
        parts: the penalties.
        weights: one factor for each.
    """

    parts: list[Penalty]
    weights: list[float]

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.weights):
            raise UserError(f"weights must be one for each of the {len(self.parts)} parts, not {self.weights}")
        at_least(0, weights=min(self.weights))

    def distance(self, d: Tensor) -> Tensor:
        total = d.new_zeros(len(d))
        for part, w in zip(self.parts, self.weights, strict=True):
            total = total + w * part.distance(d)
        return total

    def euclidean(self, v: Tensor, mu: Tensor) -> Tensor:
        one = torch.ones_like(v)
        for part, w in zip(self.parts, self.weights, strict=True):
            v = part.prox(v, w * mu, one)
        return v
