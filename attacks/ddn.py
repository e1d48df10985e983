"""DDN: decoupled direction and norm (Rony et al. 2019, Algorithm 1)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn, no_grad, where

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, gradient_and_logits
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view, divisor
from adversarial_lightning.attacks.core.radius import Radius


@dataclass(frozen=True)
class DDN(Attack):
    """Nearest adversarial point in l2: the gradient sets the direction, success sets the radius.

    The radius shrinks by a factor while the iterate is adversarial and grows by a factor otherwise.

    Departures from the paper, as in its authors' code: the radius never exceeds the box, the next step starts from the
    clipped perturbation, and where the gradient vanishes the step is random. The last iterate is a candidate too.
    Without `levels` the result is continuous; the paper's tables quantise to 256 levels.

    Args:
        norm: norm that is minimised.
        steps: number of gradient steps.
        step_size: length of the first step along the gradient, in pixels of [0, 1]; decays by a cosine to 1 % of it.
        init_norm: first radius, in pixels of [0, 1].
        gamma: share by which the radius changes in each step.
        levels: grey levels that every iterate is rounded to; none: no rounding.
        loss: objective that the direction follows.
        targeted: search for the target class `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["l2"] = "l2"
    steps: int = 1000
    step_size: Radius = 1.0
    init_norm: Radius = 1.0
    gamma: float = 0.05
    levels: int | None = None
    loss: Literal["ce", "margin", "dlr"] = "ce"
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        at_least(2, levels=self.levels)
        between(0, 1, gamma=self.gamma)
        between(0, math.inf, step_size=self.step_size, init_norm=self.init_norm)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm, objective = NORMS["l2"], OBJECTIVES[self.loss]
        closest = BestAdversarial(model, x, y, norm.distance, self.targeted)
        farthest = norm.distance(x.maximum(1 - x))
        radius = farthest.clamp(max=self.init_norm)
        z = x
        for k in range(self.steps):
            alpha = self.step_size * (0.01 + 0.99 * (1 + math.cos(math.pi * k / self.steps)) / 2)
            gradient, _, logits = gradient_and_logits(model, z, y, objective, self.eot_samples)
            fooled = closest.update(z, logits)
            flat = ~gradient.flatten(1).any(1)
            if flat.any():  # a stream for each step: a draw for one row does not shift the draws of others
                gradient = where(batch_view(flat, x), noise.fork(k).normal(x), gradient)
            delta = z - x + alpha * norm.steepest(-gradient if self.targeted else gradient, z)
            radius = (radius * where(fooled, 1 - self.gamma, 1 + self.gamma)).minimum(farthest)
            delta = delta * batch_view(radius / divisor(norm.distance(delta)), x)
            z = (x + delta).clamp(0, 1)
            if self.levels is not None:
                z = (z * (self.levels - 1)).round() / (self.levels - 1)
        with no_grad():
            closest.update(z, model(z))
        return closest.point
