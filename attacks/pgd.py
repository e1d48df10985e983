"""PGD: projected gradient descent (Madry et al. 2018) and, with momentum, MIM (Dong et al. 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, ObjectiveName, input_gradient
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, NormName, batch_view, divisor
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class PGD(Attack):
    """Steepest ascent steps, each projected on the ball and the box; returns the last iterate.

    l1 takes the sparse steps of SLIDE (Tramèr and Boneh 2019). ``momentum=1, random_start=False`` is MIM.

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        steps: number of gradient steps.
        step_size: length of a step, in pixels of [0, 1]; none: 2.5 eps / steps.
        random_start: start at a random point of the ball instead of the image.
        loss: objective that the attack increases.
        targeted: decrease the objective for the target `y` instead.
        momentum: decay factor of MIM's accumulated gradient; 0 for PGD.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
        start_std: the random start is Gaussian, of this standard deviation in pixels of [0, 1], and projected on the
            ball (TRADES); none: uniform in the ball.
    """

    norm: NormName = "linf"
    eps: Radius = 0.3
    steps: int = 40
    step_size: Radius | None = None
    random_start: bool = True
    loss: ObjectiveName = "ce"
    targeted: bool = False
    momentum: float = 0.0
    eot_samples: int = 1
    start_std: Radius | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps, momentum=self.momentum, step_size=self.step_size, start_std=self.start_std)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        if self.start_std is not None and not self.random_start:
            raise UserError("start_std needs random_start: true")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm, objective = NORMS[self.norm], OBJECTIVES[self.loss]
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        z = (x + self._start(x, noise)).clamp_(0, 1) if self.random_start else x
        g = torch.zeros_like(x)
        for _ in range(self.steps):
            gradient, _ = input_gradient(model, z, y, objective, self.eot_samples)
            if self.targeted:
                gradient = -gradient
            if self.momentum:
                mean = gradient.flatten(1).abs().mean(1)
                gradient = g = self.momentum * g + gradient / batch_view(divisor(mean), x)
            z = z + step_size * norm.steepest(gradient, z)
            z = (x + norm.project(z - x, self.eps)).clamp_(0, 1)
        return z

    def _start(self, x: Tensor, noise: Noise) -> Tensor:
        """Random first perturbation, like `x`."""
        norm = NORMS[self.norm]
        if self.start_std is None:
            return norm.random(x, self.eps, noise)
        return norm.project(self.start_std * noise.normal(x), self.eps)
