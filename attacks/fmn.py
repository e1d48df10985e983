"""FMN: fast minimum-norm attacks (Pintor et al. 2021, Algorithm 1)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.gradient import gradient_and_logits, margin
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view, keep_largest, l0_distance
from adversarial_lightning.attacks.core.radius import Radius


def cosine(first: float, last: float, k: int, steps: int) -> float:
    """Cosine schedule, the paper's h: from `first` at k = 0 to `last` at k = `steps`."""
    return last + (first - last) * (1 + math.cos(math.pi * k / steps)) / 2


@dataclass(frozen=True)
class FMN(Attack):
    """Nearest adversarial point in linf, l2, l1 or l0: margin ascent, projected on a ball of adaptive radius.

    Until a row is misclassified for the first time, its radius is the linear estimate of the distance to the boundary;
    then it shrinks or grows by a factor gamma (l0: by at least one entry). l0 counts values, not pixels.

    Departures: the estimate is increased by the factor 1 + gamma, because rows exactly on the boundary were never
    misclassified (one row in ten on an undefended MNIST network); the radius never exceeds the box; the last iterate is
    a candidate too.

    Args:
        norm: norm that is minimised.
        steps: number of gradient steps.
        step_size: l2 length of the first step, in pixels of [0, 1]; decays by a cosine to 1 % of it. None: 10 for linf,
            1 otherwise (the paper's choices).
        gamma: first share by which the radius changes.
        gamma_final: last share, reached by a cosine.
        targeted: search for the target class `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["linf", "l2", "l1", "l0"] = "l2"
    steps: int = 1000
    step_size: Radius | None = None
    gamma: float = 0.05
    gamma_final: float = 0.001
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        between(0, math.inf, step_size=self.step_size)
        between(0, 1, gamma=self.gamma, gamma_final=self.gamma_final)

    def length(self, d: Tensor) -> Tensor:
        """Length (B,) of each row in the norm, as a float."""
        return l0_distance(d).to(d.dtype) if self.norm == "l0" else NORMS[self.norm].distance(d)

    def project(self, d: Tensor, radius: Tensor) -> Tensor:
        """Project each row of `d` on the ball of its own `radius` (B,)."""
        if self.norm == "l0":
            return keep_largest(d, radius)
        r = batch_view(radius.clamp_min(torch.finfo(d.dtype).eps ** 2), d)
        return r * NORMS[self.norm].project(d / r, 1.0)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        sign = -1.0 if self.targeted else 1.0
        first = self.step_size if self.step_size is not None else (10.0 if self.norm == "linf" else 1.0)
        dual = {"linf": 1.0, "l2": 2.0}.get(self.norm, math.inf)
        closest = BestAdversarial(model, x, y, self.length, self.targeted)
        farthest = self.length(x.maximum(1 - x))
        tiny = torch.finfo(x.dtype).tiny
        radius, z = torch.full_like(farthest, float(self.norm == "l0")), x
        for k in range(self.steps):
            gamma = cosine(self.gamma, self.gamma_final, k, self.steps)
            alpha = cosine(first, first / 100, k, self.steps)
            gradient, value, logits = gradient_and_logits(model, z, y, margin, self.eot_samples)
            gradient = sign * gradient
            fooled = closest.update(z, logits)
            if self.norm == "l0":
                larger = (radius + 1).maximum((radius * (1 + gamma)).floor())
                smaller = (radius - 1).minimum((radius * (1 - gamma)).floor())
            else:
                slope = torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1).clamp_min(tiny)
                estimate = self.length(z - x) + value.nan_to_num(0).abs() / slope
                larger = torch.where(closest.found, radius, radius.maximum(estimate)) * (1 + gamma)
                smaller = radius * (1 - gamma)
            radius = torch.where(fooled, smaller.minimum(closest.length), larger).clamp_min(0).minimum(farthest)
            step = alpha * NORMS["l2"].steepest(gradient, z)
            z = (x + self.project(z - x + step, radius)).clamp(0, 1)
        with torch.no_grad():
            closest.update(z, model(z))
        return closest.point
