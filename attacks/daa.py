"""DAA: distributionally adversarial attack, Lagrangian blob form (Zheng et al. 2019)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, ObjectiveName, ce, input_gradient, margin
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, NormName, divisor
from adversarial_lightning.attacks.core.radius import Radius


def blob(z: Tensor, gradient: Tensor, weight: float) -> Tensor:
    """Ascent direction of DAA-BLOB for M interacting particles, (M, B, ...) like `z` and `gradient`.

    For particle i: ``g_i + weight/M sum_j [K_ij g_j - K_ij (z_i - z_j) / h]`` with the Gaussian kernel
    ``K_ij = exp(-||z_i - z_j||^2 / 2 h^2)``, ``h^2 = median ||z_i - z_j||^2 / (2 log M)`` over all pairs, i = j
    included, and gradients g divided by their mean absolute entry over the particles of an image.
    """
    count = len(z)
    if count == 1:
        return gradient
    points, g = (t.flatten(2).transpose(0, 1) for t in (z, gradient))  # (B, M, D): the particles of an image interact
    g = g / divisor(g.abs().mean((1, 2), keepdim=True))
    square = torch.stack([(points - points[:, [j]]).square().sum(2) for j in range(count)], 2)
    nothing = points.shape[2] * torch.finfo(z.dtype).eps ** 2  # squared distance of equal points, by rounding
    h2 = (square.flatten(1).quantile(0.5, 1) / (2 * math.log(count))).clamp_min(nothing)[:, None, None]
    kernel = torch.exp(-square / (2 * h2))
    pull = (points * kernel.sum(2, keepdim=True) - kernel @ points) / h2.sqrt()
    return (g + weight / count * (kernel @ g - pull)).transpose(0, 1).reshape(z.shape)


@dataclass(frozen=True)
class DAA(Attack):
    """Gradient ascent of `particles` points coupled by a kernel; returns the point with the largest margin.

    The sign of the kernel's own term is that of the authors' code: particles attract each other.

    Departures from the paper: there the particles are the images of a batch, so that a result depends on the batch;
    here they are random starts around one image. These are so close together that the paper's kernel term, which is
    proportional to 1/h, would dominate the gradient in a small ball. Therefore both terms are scale-free here:
    gradients are divided by their mean entry and displacements by h. Steps follow the steepest direction of any norm,
    not only the sign. The paper's 50 restarts are ``Restarts(DAA(...), 50)``.

    Args:
        norm: norm of the ball; the paper uses linf.
        eps: radius, in pixels of [0, 1].
        steps: number of steps of each particle.
        step_size: length of a step, in pixels of [0, 1]; none: 2.5 eps / steps.
        particles: number of interacting points; 1 is PGD. A step takes one gradient for each.
        kernel_weight: the paper's c, weight of the interaction; the authors use 1.1 with ce and 10 with margin.
        loss: objective that the attack increases.
        targeted: decrease the objective for the target `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    norm: NormName = "linf"
    eps: Radius = 0.3
    steps: int = 200
    step_size: Radius | None = None
    particles: int = 10
    kernel_weight: float = 1.1
    loss: ObjectiveName = "ce"
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps, kernel_weight=self.kernel_weight)
        at_least(0, step_size=self.step_size)
        at_least(1, steps=self.steps, particles=self.particles, eot_samples=self.eot_samples)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm, objective = NORMS[self.norm], OBJECTIVES[self.loss]
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        z = torch.stack([(x + norm.random(x, self.eps, noise)).clamp_(0, 1) for _ in range(self.particles)])
        for _ in range(self.steps):
            # One particle at a time, because a stochastic model draws for the rows of one batch, not of M batches.
            gradient = torch.stack([input_gradient(model, p, y, objective, self.eot_samples)[0] for p in z])
            direction = blob(z, -gradient if self.targeted else gradient, self.kernel_weight)
            for i in range(self.particles):
                p = z[i] + step_size * norm.steepest(direction[i], z[i])
                z[i] = (x + norm.project(p - x, self.eps)).clamp_(0, 1)
        with torch.no_grad():
            score = torch.stack([(margin if y.ndim == 1 else ce)(model(p), y) for p in z])
        best = (-score if self.targeted else score).nan_to_num(nan=-torch.inf).argmax(0)
        return z[best, torch.arange(len(x), device=x.device)]
