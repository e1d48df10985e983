"""Penalties without a closed-form proximal operator: total variation and weighted sums."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.checks import at_least
from adversarial_lightning.attacks.core.norms import batch_view
from adversarial_lightning.attacks.core.prox import Penalty
from adversarial_lightning.errors import UserError


class Iterated(Penalty):
    """Penalty with a prox for constant metrics only; other metrics take inner proximal gradient steps."""

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        most = batch_view(metric.expand_as(v).flatten(1).amax(1), v)
        u, share, mu = v, metric / most, weight / most.flatten()
        for _ in range(1 if bool((share == 1).all()) else 10):
            u = self.euclidean(u - share * (u - v), mu)
        return u

    @abstractmethod
    def euclidean(self, v: Tensor, mu: Tensor) -> Tensor:
        """Prox in the Euclidean metric: ``argmin_u mu phi(u) + 1/2 ||u - v||^2`` with `mu` (B,)."""


@dataclass(frozen=True)
class TotalVariation(Iterated):
    """Isotropic total variation of each channel of an image; the prox uses fast dual gradient projection.

    Chambolle 2004 with the momentum of Beck and Teboulle 2009. It is zero for constants, so add another penalty.

    Args:
        iterations: iterations of the dual problem in each prox.
    """

    iterations: int = 20

    def __post_init__(self) -> None:
        at_least(1, iterations=self.iterations)

    def distance(self, d: Tensor) -> Tensor:
        steepness: Tensor = torch.linalg.vector_norm(_differences(d), dim=0)
        return steepness.flatten(1).sum(1)

    def euclidean(self, v: Tensor, mu: Tensor) -> Tensor:
        if v.ndim != 4:
            raise UserError(f"total variation needs images (B, C, H, W), not {tuple(v.shape)}")
        mu = batch_view(mu, v)
        p = ahead = torch.zeros_like(_differences(v))
        t = 1.0
        for _ in range(self.iterations):  # p in the unit ball of each pixel minimises ||v + mu div p||
            q = ahead + _differences(v + mu * _divergence(ahead)) / (8 * mu.clamp_min(torch.finfo(v.dtype).tiny))
            q = q / torch.linalg.vector_norm(q, dim=0).clamp_min(1)
            t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
            p, ahead = q, q + (before - 1) / t * (q - p)
        return v + mu * _divergence(p)


def _differences(u: Tensor) -> Tensor:
    """Forward differences (2, B, C, H, W) down and right, 0 at the border."""
    out = torch.zeros(2, *u.shape, dtype=u.dtype, device=u.device)
    out[0, ..., :-1, :] = u[..., 1:, :] - u[..., :-1, :]
    out[1, ..., :-1] = u[..., 1:] - u[..., :-1]
    return out


def _divergence(p: Tensor) -> Tensor:
    """Divergence: minus the adjoint of `_differences`."""
    down, right = p[0, ..., :-1, :], p[1, ..., :-1]
    out = torch.zeros_like(p[0])
    out[..., :-1, :] += down
    out[..., 1:, :] -= down
    out[..., :-1] += right
    out[..., 1:] -= right
    return out


@dataclass(frozen=True)
class SumPenalty(Iterated):
    """Weighted sum of penalties; its prox is the composition of the parts' proxes, beginning with the first part.

    The prox is exact for total variation then l1 (fused lasso), for l1 then l2 (sparse groups), and for any penalty
    followed by a positive multiple of the l2 norm; otherwise it is an approximation.

    Args:
        parts: the penalties.
        weights: one factor for each part.
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
