"""R+PGD: PGD with a penalty on the purifier's reconstruction error (MALADE, Srinivasan et al. 2021)."""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.bpda import find_attribute, purifiers, straight_through
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, ObjectiveName, input_gradient
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, NormName
from adversarial_lightning.attacks.core.radius import Radius


def reconstruction_gradient(rec: nn.Module, x: Tensor, differentiable: bool, eot_samples: int) -> Tensor:
    """Gradient (like `x`) of ||rec(x) - x||^2, summed over the values of an image, mean over `eot_samples` draws.

    The output of a `rec` that is not differentiable counts as constant. (With the identity of BPDA instead, the
    gradient would be zero everywhere.)
    """
    x = x.detach().requires_grad_()
    total = torch.zeros_like(x)
    for _ in range(eot_samples):
        with nullcontext() if differentiable else torch.no_grad():
            r = rec(x)
        total += torch.autograd.grad((r - x).square().sum(), x)[0]
    return total.nan_to_num_(0.0, 0.0, 0.0) / eot_samples


@dataclass(frozen=True)
class ReconstructionPGD(Attack):
    """PGD on ``J(f(d(x)), y) - reconstruction_weight ||rec(x) - x||^2`` for a classifier f behind a purifier d.

    The purifier is the attribute ``purifier`` of the model, or of a module inside it. Raises ValueError for a model
    without a purifier. The paper (Srinivasan et al. 2021) uses weight 1; the best of the weights 0.01, 0.1, 1 and 10
    for each image, ``WorstOf([...])``, is stronger.

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        steps: number of gradient steps.
        step_size: length of a step, in pixels of [0, 1]; none: 2.5 eps / steps.
        random_start: start at a random point of the ball instead of the image.
        reconstruction_weight: weight of the reconstruction error; 1 is the paper's sum.
        one_pass: rec is a single pass of the purifier's attribute ``denoiser``, if it has one, instead of d.
        bpda: take the gradient of J with the identity in place of every purifier; false: through the purifiers.
        loss: objective J.
        targeted: decrease J for the target `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    norm: NormName = "linf"
    eps: Radius = 0.3
    steps: int = 1000
    step_size: Radius | None = 0.01
    random_start: bool = True
    reconstruction_weight: float = 1.0
    one_pass: bool = True
    bpda: bool = True
    loss: ObjectiveName = "ce"
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps, reconstruction_weight=self.reconstruction_weight)
        at_least(0, step_size=self.step_size)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm, objective = NORMS[self.norm], OBJECTIVES[self.loss]
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        purifier: nn.Module = find_attribute(model, "purifier")
        denoiser = getattr(purifier, "denoiser", None) if self.one_pass else None
        rec: nn.Module = purifier if denoiser is None else denoiser
        differentiable = denoiser is not None or getattr(purifier, "differentiable", True)

        z = (x + norm.random(x, self.eps, noise)).clamp_(0, 1) if self.random_start else x
        for _ in range(self.steps):
            with ExitStack() as stack:
                for one in purifiers(model) if self.bpda else []:
                    stack.enter_context(straight_through(one))
                gradient, _ = input_gradient(model, z, y, objective, self.eot_samples)
            if self.targeted:
                gradient = -gradient
            if self.reconstruction_weight:
                error = reconstruction_gradient(rec, z, differentiable, self.eot_samples)
                gradient = gradient - self.reconstruction_weight * error
            z = z + step_size * norm.steepest(gradient, z)
            z = (x + norm.project(z - x, self.eps)).clamp_(0, 1)
        return z
