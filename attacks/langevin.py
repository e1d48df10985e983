"""Langevin sampler of ATENT (Jagatap et al. 2020, Algorithms 1 and 2), usable as an attack (their Table 6).

Jagatap, Joshi, Basak Chowdhury, Garg and Hegde, "Adversarially Robust Learning via Entropic Regularization", 2020.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, input_gradient
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class Langevin(Attack):
    """Noisy gradient ascent on the cross-entropy: samples near x from a density that grows with the loss.

    Departures from the paper, all as in its authors' code:

    - The step follows the sign (linf) or the unit vector (l2) of each example's own gradient; printed is the gradient
      of the batch's mean loss.
    - The start is a random corner of the ball (linf) or a point near its sphere (l2), of radius `eps`; printed is a
      normal draw of about 1/gamma, which for l2 (gamma 0.05) would be 20.
    - The pull of Algorithm 1 is outside the step (see `coupled`).
    - The projection acts on the whole perturbation z - x; Eq. 14 prints the last increment, which leaves z outside.
      Printed is a projection in step K only, ``project: last``; the code for MNIST projects in every step.
    - Every iterate is clipped to [0, 1].

    The paper's other form for linf, the unsquared penalty gamma ||x' - x|| (Eqs. 12 and 13), is not implemented: the
    paper itself replaces it by the projection, because it did not converge.

    Args:
        norm: linf (Algorithm 2) or l2 (Algorithm 1).
        eps: radius of the start and of the projection, in pixels of [0, 1] (the paper's 1/gamma for linf).
        steps: number K of Langevin steps.
        step_size: eta', in pixels of [0, 1].
        pull: gamma of Algorithm 1: share of the way back to x that each step takes, in [0, 1].
        coupled: multiply the pull by the step size, as in the printed Algorithm 1; the authors' code does not.
        noise_scale: the paper's epsilon; each step adds sqrt(2 step_size) noise_scale N(0, I). Not a radius.
        project: when the sampler projects on the ball; what the attack returns lies in it in any case.
        start: edge (linf: a random corner; l2: a normal draw scaled back to the ball), uniform (the norm's random
            point), gaussian (N(0, start_std^2)) or zero.
        start_std: standard deviation of the gaussian start.
        direction: unit (see above) or raw, the per-example gradient itself; only raw samples from the density.
        targeted: descend on the cross-entropy of the target `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Radius = 0.3
    steps: int = 20
    step_size: Radius = 0.03
    pull: float = 0.0
    coupled: bool = False
    noise_scale: float = 1e-3
    project: Literal["never", "last", "every"] = "every"
    start: Literal["edge", "uniform", "gaussian", "zero"] = "edge"
    start_std: float = 0.001
    direction: Literal["unit", "raw"] = "unit"
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps, noise_scale=self.noise_scale, start_std=self.start_std)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        between(0, math.inf, step_size=self.step_size)
        if not 0 <= self.pull_per_step <= 1:
            name = "step_size * pull" if self.coupled else "pull"
            raise UserError(f"{name} must lie in [0, 1], not {self.pull_per_step}: explicit Euler diverges otherwise")

    @property
    def pull_per_step(self) -> float:
        """Share of the way back to x that each step takes."""
        return self.pull * self.step_size if self.coupled else self.pull

    def begin(self, x: Tensor, noise: Noise) -> Tensor:
        """Start x'^0 (like `x`)."""
        norm = NORMS[self.norm]
        if self.start == "edge":
            d = noise.normal(x)
            d = self.eps * d.sign() if self.norm == "linf" else norm.project(d, self.eps)
        elif self.start == "uniform":
            d = norm.random(x, self.eps, noise)
        elif self.start == "gaussian":
            d = self.start_std * noise.normal(x)
        else:
            return x
        return (x + d).clamp_(0, 1)

    def step(self, z: Tensor, gradient: Tensor, x: Tensor, noise: Noise, last: bool) -> Tensor:
        """Next iterate x'^{k+1} from z = x'^k and the `gradient` of the cross-entropy at z; `last` marks step K."""
        norm = NORMS[self.norm]
        u = norm.steepest(gradient, z) if self.direction == "unit" else gradient
        pulled = z + self.step_size * u
        if self.pull:
            pulled = pulled + self.pull_per_step * (x - z)
        if self.noise_scale:
            pulled = pulled + math.sqrt(2 * self.step_size) * self.noise_scale * noise.normal(x)
        if self.project == "every" or (self.project == "last" and last):
            pulled = x + norm.project(pulled - x, self.eps)
        return pulled.clamp(0, 1)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        z = self.begin(x, noise)
        for k in range(self.steps):
            gradient, _ = input_gradient(model, z, y, OBJECTIVES["ce"], self.eot_samples)
            z = self.step(z, -gradient if self.targeted else gradient, x, noise, last=k == self.steps - 1)
        return z
