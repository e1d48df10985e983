"""Attacks of the audit's own in every norm: random points, ascent and random search with a fixed number of values."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import FGSM, FMN, PGD, Attack, Noise, Within
from adversarial_lightning.attacks.core.base import Knowledge
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, ObjectiveName, input_gradient, margin
from adversarial_lightning.attacks.core.norms import NORMS, batch_view, divisor


def sparse(gain: Tensor, k: int) -> Tensor:
    """Mask like `gain` (B, ...) of the `k` values of each row that gain most."""
    flat = gain.flatten(1)
    top = flat.topk(min(k, flat.shape[1]), 1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top, True).view_as(gain)


def random_point(norm: str, x: Tensor, eps: float, noise: Noise, surface: bool) -> Tensor:
    """Random image of the ball around `x`, or of its surface; in l0 `eps` random values, black or white on it."""
    if norm == "l0":
        mask, values = sparse(noise.uniform(x), int(eps)), noise.uniform(x)
        return torch.where(mask, values.round() if surface else values, x)
    d = NORMS[norm].random(x, eps, noise)
    if surface:  # projecting a much longer vector keeps its direction (in l2)
        d = eps * d.sign() if norm == "linf" else NORMS[norm].project(1e3 * d, eps)
    return (x + d).clamp(0, 1)


def widest(norm: str, x: Tensor) -> float:
    """Radius of a ball in which every image can become every other."""
    size = float(x.shape[1:].numel())
    return {"linf": 1.0, "l2": math.sqrt(size)}.get(norm, size)


@dataclass(frozen=True)
class RandomPoints(Attack):
    """`n` random points, in turn inside the ball and on its surface: the first misclassified one, else the last."""

    knowledge: ClassVar[Knowledge] = "decisions"
    norm: Any
    eps: float
    n: int

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        z, found = x, torch.zeros_like(y, dtype=torch.bool)
        for i in range(self.n):
            point = random_point(self.norm, x, self.eps, noise, surface=i % 2 == 1)
            z = torch.where(batch_view(found, x), z, point)
            with torch.no_grad():
                found |= model(z).argmax(1) != y
        return z


@dataclass(frozen=True)
class SparseAscent(Attack):
    """Gradient ascent in l0 (PGD0 of Croce and Hein 2019, "Sparse and Imperceivable Adversarial Attacks").

    Every step goes along the gradient, of length `step_size` in l1 (none: a fourth of the number of values), and is
    projected on the box and the ball: the `eps` values are kept that come nearest to where the step aimed.
    """

    eps: float
    steps: int = 40
    loss: ObjectiveName = "margin"
    step_size: float | None = None
    random_start: bool = True
    eot_samples: int = 1
    norm: str = "l0"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        k = int(self.eps)
        z = random_point("l0", x, k, noise, surface=False) if self.random_start else x
        length = x.shape[1:].numel() / 4 if self.step_size is None else self.step_size
        for _ in range(self.steps):
            g, _ = input_gradient(model, z, y, OBJECTIVES[self.loss], self.eot_samples)
            g = g / batch_view(divisor(g.flatten(1).abs().amax(1)), g)
            moved = z + length * g / batch_view(divisor(g.flatten(1).abs().sum(1)), g)
            # Dropping a value brings the point farther from its aim: aim^2 - (aim - inside)^2, without cancellation.
            aim, inside = moved - x, moved.clamp(0, 1) - x
            z = torch.where(sparse(inside * (2 * aim - inside), k), x + inside, x)
        return z


@dataclass(frozen=True)
class SparseSearch(Attack):
    """Random search in l0 on the margin (after Sparse-RS of Croce et al. 2022b): black and white values move about."""

    knowledge: ClassVar[Knowledge] = "scores"
    eps: float
    queries: int
    norm: str = "l0"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        k = int(self.eps)
        mask, values = sparse(noise.uniform(x), k), noise.uniform(x).round()
        best = x.new_full((len(x),), -torch.inf)
        kept = mask, values
        for i in range(self.queries):
            z = torch.where(mask, values, x)
            with torch.no_grad():
                score = margin(model(z), y).nan_to_num(nan=-torch.inf)
            better = batch_view(score >= best, x)
            best = torch.maximum(best, score)
            kept = torch.where(better, mask, kept[0]), torch.where(better, values, kept[1])
            # Fewer and fewer of the changed values move elsewhere; each of these is drawn black or white.
            moves = max(1, round(k * 0.8 * (1 - i / self.queries) ** 2))
            draw = noise.uniform(x)
            out = sparse(torch.where(kept[0], draw, -1.0), moves)
            into = sparse(torch.where(kept[0], -1.0, draw), moves)
            mask = (kept[0] & ~out) | into if k < x[0].numel() else kept[0]
            values = torch.where(into | out, noise.uniform(x).round(), kept[1])
        return torch.where(kept[0], kept[1], x)


def ascent(norm: str, eps: float, steps: int, **settings: Any) -> Attack:
    """PGD in a ball; in l0 `SparseAscent`, which knows no momentum."""
    if norm == "l0":
        settings.pop("momentum", None)
        return SparseAscent(eps, steps, **settings)
    return PGD(norm, eps, steps, **settings)  # type: ignore[arg-type]


def one_step(norm: str, eps: float, **settings: Any) -> Attack:
    """FGSM; in l0 the `eps` values of the largest gradient as far as they go."""
    if norm == "l0":
        return SparseAscent(eps, 1, step_size=1e6, random_start=False, **settings)
    return FGSM(norm, eps, **settings)  # type: ignore[arg-type]


def nearest(norm: Any, eps: float, steps: int, eot_samples: int) -> Attack:
    """A minimum-norm attack, judged in the ball."""
    return Within(FMN(norm, steps, eot_samples=eot_samples), eps)
