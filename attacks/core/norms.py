"""Norms: distance, projection, steepest ascent direction and random points of a ball, row by row.

All functions take perturbations `d` (B, ...) in pixels of [0, 1] and treat every row separately.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.noise import Noise

NormName = Literal["linf", "l2", "l1"]


def batch_view(value: Tensor, like: Tensor) -> Tensor:
    """View `value` (B,) as (B, 1, ...) with as many dimensions as `like`."""
    return value.view(-1, *[1] * (like.ndim - 1))


def divisor(length: Tensor) -> Tensor:
    """`length` with 1 in place of 0: what is divided by it keeps its zeros, in any type and at any scale."""
    return torch.where(length > 0, length, 1)


class Norm(ABC):
    """Abstract norm with the operations that attacks need."""

    @abstractmethod
    def distance(self, d: Tensor) -> Tensor:
        """Length of each row, (B,)."""

    @abstractmethod
    def project(self, d: Tensor, eps: float) -> Tensor:
        """Euclidean projection on the ball of radius `eps`."""

    @abstractmethod
    def steepest(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Steepest ascent direction, of length 1 in this norm, for `gradient` at `x` in [0, 1]."""

    @abstractmethod
    def random(self, like: Tensor, eps: float, noise: Noise) -> Tensor:
        """Random point of the ball of radius `eps`, like `like`."""


class Linf(Norm):
    """The linf norm; its steepest direction is the sign of the gradient."""

    def distance(self, d: Tensor) -> Tensor:
        return d.flatten(1).abs().amax(1)

    def project(self, d: Tensor, eps: float) -> Tensor:
        return d.clamp(-eps, eps)

    def steepest(self, gradient: Tensor, x: Tensor) -> Tensor:
        return gradient.sign()

    def random(self, like: Tensor, eps: float, noise: Noise) -> Tensor:
        """Uniformly distributed point of the ball."""
        return noise.uniform(like).mul_(2).sub_(1).mul_(eps)


class L2(Norm):
    """The Euclidean norm; its steepest direction is the normalised gradient."""

    def distance(self, d: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(d.flatten(1), dim=1)
        return lengths

    def project(self, d: Tensor, eps: float) -> Tensor:
        return d * batch_view(eps / divisor(self.distance(d).clamp_min(eps)), d)

    def steepest(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Unit vector of the gradient; zero for a zero gradient.

        Division by the largest entry first keeps tiny gradients from underflow.
        """
        scaled = gradient / batch_view(divisor(gradient.flatten(1).abs().amax(1)), gradient)
        return scaled / batch_view(divisor(self.distance(scaled)), gradient)

    def random(self, like: Tensor, eps: float, noise: Noise) -> Tensor:
        """Random point with uniform direction and uniform length (Rice et al. 2020), not uniform in volume."""
        d = noise.normal(like)
        length = noise.uniform(like.flatten(1)[:, :1])[:, 0]
        return d * batch_view(eps * length / divisor(self.distance(d)), d)


class L1(Norm):
    """The l1 norm with the projection of Duchi et al. 2008 and the sparse steps of Tramèr and Boneh 2019 (SLIDE)."""

    density = 0.01  # share of the values that a step changes

    def distance(self, d: Tensor) -> Tensor:
        return d.flatten(1).abs().sum(1)

    def project(self, d: Tensor, eps: float) -> Tensor:
        flat = d.flatten(1)
        size = flat.abs()
        sorted_size = size.sort(1, descending=True).values
        excess = sorted_size.cumsum(1) - eps
        rank = torch.arange(1, flat.shape[1] + 1, device=d.device, dtype=d.dtype)
        support = (sorted_size * rank > excess).sum(1, keepdim=True).clamp_min(1)
        threshold = (excess.gather(1, support - 1) / support).clamp_min(0)
        return (flat.sign() * (size - threshold).clamp_min(0)).view_as(d)

    def steepest(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Equal steps on the 1 % largest entries, without entries that would leave the box."""
        stopped = ((x >= 1) & (gradient > 0)) | ((x <= 0) & (gradient < 0))
        flat = gradient.masked_fill(stopped, 0).flatten(1)
        k = max(1, round(self.density * flat.shape[1]))
        top = flat.abs().topk(k, 1).indices
        return torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign() / k).view_as(gradient)

    def random(self, like: Tensor, eps: float, noise: Noise) -> Tensor:
        """Random point with a Laplace direction (uniform on the l1 sphere) and uniform length."""
        u = noise.uniform(like).sub_(0.5)
        # The lowest draw, one in 2^24, counts as the centre of its cell: its logarithm would be infinite.
        size = u.abs().clamp_max(0.5 - torch.finfo(u.dtype).eps / 4)
        d = u.sign() * torch.log1p(-2 * size).neg()
        length = noise.uniform(like.flatten(1)[:, :1])[:, 0]
        return d * batch_view(eps * length / divisor(self.distance(d)), d)


def project_l1_box(d: Tensor, x: Tensor, eps: float) -> Tensor:
    """Nearest `p` to `d` with ||p||_1 <= eps and x + p in [0, 1] (Croce and Hein 2021, prop. 2.1).

    Every entry shrinks by the same amount t and stops at the box: |p_i| = min(room_i, max(|d_i| - t, 0)), with the
    smallest t for which p lies in the ball. Projection on the ball and then on the box would give a shorter vector.
    """
    flat, x = d.flatten(1), x.flatten(1)
    size = flat.abs()
    room = torch.where(flat > 0, 1 - x, x)
    # The mass after shrinking by t is piecewise linear in t: as t decreases, an entry starts to grow at t = |d_i| and
    # is stopped by the box at t = |d_i| - room_i.
    knots, order = torch.cat([size, (size - room).clamp_min(0)], 1).sort(1, descending=True)
    moving = torch.where(order < size.shape[1], 1, -1).cumsum(1).to(size.dtype)
    mass = torch.zeros_like(knots)
    mass[:, 1:] = (moving[:, :-1] * (knots[:, :-1] - knots[:, 1:])).cumsum(1)
    last = (mass <= eps).sum(1, keepdim=True) - 1
    rest = (eps - mass.gather(1, last)) / moving.gather(1, last).clamp_min(1)
    t = (knots.gather(1, last) - rest).clamp_min(0)
    shrunk = torch.minimum(room, (size - t).clamp_min(0))
    shrunk = shrunk * (eps / divisor(shrunk.sum(1, keepdim=True).clamp_min(eps)))  # removes the rounding error
    return (flat.sign() * shrunk).view_as(d)


NORMS: dict[str, Norm] = {"linf": Linf(), "l2": L2(), "l1": L1()}


def l0_distance(d: Tensor) -> Tensor:
    """Number of entries of each row that are not zero, (B,)."""
    return (d.flatten(1) != 0).sum(1)


def distance(norm: str, d: Tensor) -> Tensor:
    """Length (B,) of each row of `d` in l0, l1, l2 or linf."""
    return l0_distance(d) if norm == "l0" else NORMS[norm].distance(d)


def no_numbers(z: Tensor) -> Tensor:
    """Rows (B,) of images that hold a value that is no number: the attack broke, not the model."""
    return z.flatten(1).isnan().any(1)


def or_image(z: Tensor, x: Tensor) -> Tensor:
    """`z` with x itself in the rows that are `no_numbers`: never shown to a model, which may refuse them."""
    return torch.where(batch_view(no_numbers(z), z), x, z)


def displacement(z: Tensor, x: Tensor) -> Tensor:
    """z - x in float64: what the length of a perturbation is measured on; on the CPU where a device has no float64."""
    z, x = (t.detach().cpu() if t.device.type == "mps" else t.detach() for t in (z, x))
    return z.double() - x.double()


def keep_largest(d: Tensor, count: Tensor) -> Tensor:
    """Projection on the l0 ball: keep the `count` (B,) largest entries of each row, set others to zero."""
    flat = d.flatten(1)
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(flat.shape[1], device=d.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    return torch.where(rank < count[:, None], flat, 0).view_as(d)


def distances(d: Tensor) -> dict[str, Tensor]:
    """Lengths of each row of `d` in l0, l1, l2 and linf, (B,) each."""
    return {name: distance(name, d) for name in ("l0", "l1", "l2", "linf")}


def outside_ball(length: Any, eps: float, kind: str) -> Any:
    """True where a perturbation of this `length` (number, array or tensor) lies outside the ball of radius `eps`.

    Lengths are those of `displacement`. A *budget* attack gets a millionth of eps for rounding; a *minimum-norm*
    attack, whose length is the result itself, gets none. Attacks, campaigns, audits and reports all use this rule.
    """
    return length > (eps * (1 + 1e-6) if kind == "budget" else eps)


def into_ball(z: Tensor, x: Tensor, norm: str, eps: float, kind: str) -> Tensor:
    """`z` with the rows that are `outside_ball` brought back; other rows keep their bits. The last step of an attack.

    For a *budget* attack they are projected on the ball around `x` and rounded towards x, so that the judge discards
    none; for a *minimum-norm* attack they are x itself: nothing was found within eps.
    """
    d = displacement(z, x)
    far = outside_ball(distance(norm, d), eps, kind)
    if not bool(far.any()):
        return z
    near = x
    if kind == "budget":
        near = _add(x, keep_largest(d, far * int(eps)) if norm == "l0" else NORMS[norm].project(d, eps))
    return torch.where(batch_view(far.to(z.device), z), near, z)


def _add(x: Tensor, d: Tensor) -> Tensor:
    """x + d in the type of `x`, every value rounded towards x; `d` in float64, x and x + d in [0, 1]."""
    exact = x.to(d.device).double() + d
    z = exact.to(x.dtype)
    # The bits of floats that are not negative, read as whole numbers, are in the order of the floats.
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    away = ((z.double() - exact) * d > 0).to(bits) * d.sign().to(bits)
    return (z.view(bits) - away).view(x.dtype).to(x.device)
