"""Detector-aware PGD: misclassify the image and keep its score below the detector's threshold."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.best_adversarial import is_adversarial
from adversarial_lightning.attacks.core.bpda import find_attribute
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, ObjectiveName, input_gradient, margin
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, NormName, batch_view
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.attacks.core.threshold import evades
from adversarial_lightning.errors import UserError


def orthogonal_part(a: Tensor, b: Tensor) -> Tensor:
    """Component of `a` orthogonal to `b`, row by row; `a` itself where `b` is zero."""
    shape, a, b = a.shape, a.flatten(1), b.flatten(1)
    unit = NORMS["l2"].steepest(b, b)  # safe for tiny and zero rows
    return (a - (a * unit).sum(1, keepdim=True) * unit).view(shape)


def score_gradient(detector: Any, x: Tensor, eot_samples: int) -> tuple[Tensor, Tensor]:
    """Gradient (like `x`) and value (B,) of ``detector.score(x)``, averaged over `eot_samples` draws."""
    x = x.detach().requires_grad_()
    gradient, mean = torch.zeros_like(x), x.new_zeros(len(x))
    for _ in range(eot_samples):
        score: Tensor = detector.score(x)
        if not score.requires_grad or score.shape != (len(x),):
            raise UserError(f"the score of {type(detector).__name__} must be differentiable with one value an image")
        gradient += torch.autograd.grad(score.sum(), x)[0]
        mean += score.detach()
    # A score that is NaN has no gradient; its row continues with the logit term alone.
    return (gradient / eot_samples).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), mean / eot_samples


def detector_and_threshold(model: nn.Module, theta: float | None) -> tuple[Any, float]:
    """Detector inside `model` and its threshold: `theta`, else the detector's own; ValueError if one is missing."""
    detector: Any = find_attribute(model, "detector")
    found = getattr(detector, "theta", None) if theta is None else theta
    if found is None:
        raise UserError(f"theta must be given: {type(detector).__name__} has no attribute theta")
    return detector, found


def margin_and_gradient(
    model: nn.Module, z: Tensor, y: Tensor, loss: ObjectiveName, targeted: bool, eot_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Margin of the attack at `z` (B,), its success (B,), and the gradient of `loss` to ascend, like `z`.

    Margin and gradient have the sign that the attack increases, also if `targeted`.
    """
    draws: list[Tensor] = []

    def objective(logits: Tensor, y: Tensor) -> Tensor:
        draws.append(logits.detach())
        return OBJECTIVES[loss](logits, y)

    gradient, _ = input_gradient(model, z, y, objective, eot_samples)
    logits = torch.stack(draws).mean(0)
    lead, success = margin(logits, y), is_adversarial(logits, y, targeted)
    return (-lead, success, -gradient) if targeted else (lead, success, gradient)


@dataclass(frozen=True)
class DetectorAwarePGD(Attack):
    """PGD on a logit term J and a detector score s; returns the misclassified iterate of lowest score.

    The detector is the attribute ``detector`` of the model, or of a module inside it, with a differentiable
    ``score(x) -> (B,)`` and a threshold (`core.threshold`). Raises UserError without a detector. A NaN score counts as
    flagged. If no iterate is misclassified, the last one is returned.

    Ways to combine the two gradients:
      sum: ascend ``J - detector_weight s`` (the combined attack of Srinivasan et al. 2021);
      hinge: ascend ``J - detector_weight relu(s - theta)``, without a detector term below the threshold;
      selective: ascend J until misclassified, then descend s (Bryniarski et al. 2021, selective PGD);
      orthogonal: the same, with each gradient's component orthogonal to the other gradient (orthogonal PGD).

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        steps: number of gradient steps.
        step_size: length of a step, in pixels of [0, 1]; none: 2.5 eps / steps.
        random_start: start at a random point of the ball instead of the image.
        combine: see above.
        detector_weight: weight of the detector term in sum and hinge; try 0.1, 1, 10 and 100.
        theta: threshold of the score; none: the attribute ``theta`` of the detector.
        kappa: margin of the logits above which a step descends s (selective and orthogonal); keeps iterates off the
            decision boundary.
        loss: objective J.
        targeted: decrease J for the target `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    norm: NormName = "linf"
    eps: Radius = 8 / 255
    steps: int = 200
    step_size: Radius | None = None
    random_start: bool = False
    combine: Literal["sum", "hinge", "selective", "orthogonal"] = "orthogonal"
    detector_weight: float = 1.0
    theta: float | None = None
    kappa: float = 0.05
    loss: ObjectiveName = "margin"
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps, detector_weight=self.detector_weight, kappa=self.kappa)
        at_least(0, step_size=self.step_size)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        if self.theta is not None and self.theta != self.theta:
            raise UserError("theta must be a number, not nan")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm = NORMS[self.norm]
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        detector, theta = detector_and_threshold(model, self.theta)
        z = (x + norm.random(x, self.eps, noise)).clamp_(0, 1) if self.random_start else x
        best, excess = x, x.new_full((len(x),), torch.inf)  # excess: of the score over the threshold, at the best point
        best_lead = torch.full_like(excess, -torch.inf)
        for k in range(self.steps + 1):
            lead, success, up = margin_and_gradient(model, z, y, self.loss, self.targeted, self.eot_samples)
            slope, score = score_gradient(detector, z, self.eot_samples)
            over = (score - theta).clamp_min(0).nan_to_num(nan=torch.inf)
            over = torch.where(evades(score, theta), over, over.clamp_min(torch.finfo(x.dtype).tiny))
            better = success & ((over < excess) | ((over == excess) & (lead > best_lead)))
            best = torch.where(batch_view(better, x), z, best)
            excess, best_lead = torch.where(better, over, excess), torch.where(better, lead, best_lead)
            if k < self.steps:
                ahead = success & (lead > self.kappa)
                direction = self.direction(up, slope, ahead, over > 0)
                z = z + step_size * norm.steepest(direction, z)
                z = (x + norm.project(z - x, self.eps)).clamp_(0, 1)
        return torch.where(batch_view(best_lead.isfinite(), x), best, z)

    def direction(self, up: Tensor, slope: Tensor, ahead: Tensor, flagged: Tensor) -> Tensor:
        """Direction of the step, from the gradients `up` of +-J and `slope` of the score."""
        if self.combine == "sum":
            return up - self.detector_weight * slope
        if self.combine == "hinge":
            return up - self.detector_weight * torch.where(batch_view(flagged, up), slope, 0)
        if self.combine == "selective":
            return torch.where(batch_view(ahead, up), -slope, up)
        return torch.where(batch_view(ahead, up), -orthogonal_part(slope, up), orthogonal_part(up, slope))
