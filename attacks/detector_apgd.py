"""Detector-aware Auto-PGD: misclassify the image and keep its score below the detector's threshold."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.apgd import APGD
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NormName, batch_view
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.attacks.core.threshold import evades
from adversarial_lightning.attacks.detector_pgd import detector_and_threshold, margin_and_gradient, score_gradient
from adversarial_lightning.errors import UserError

# Excess over the threshold of a score that is NaN or infinite; finite, so that the margin still matters.
_NO_NUMBER = 1e3


@dataclass(frozen=True)
class DetectorAwareAPGD(Attack):
    """Minimise ``relu(kappa - margin) + detector_weight relu(s - theta)`` by Auto-PGD (Croce and Hein 2020a).

    s is the score of the detector, which is the same as in `DetectorAwarePGD`. Each term is zero once its constraint
    holds (hinge), so the attack optimises only the violated one; in `DetectorAwarePGD` the margin grows further, at the
    expense of the score. Adaptive steps matter: for detectors that model a density of codes the set of unflagged points
    is narrower than any fixed step that is long enough to reach it. Returns the best point by success, then by loss.

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        steps: number of gradient steps.
        detector_weight: weight of the detector term; try 0.1, 1 and 10.
        theta: threshold of the score; none: the attribute ``theta`` of the detector.
        kappa: margin of the logits at which an image counts as misclassified.
        targeted: `y` holds targets.
        random_start: start at a random point of the ball instead of the image.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    norm: NormName = "linf"
    eps: Radius = 8 / 255
    steps: int = 100
    detector_weight: float = 0.1
    theta: float | None = None
    kappa: float = 0.05
    targeted: bool = False
    random_start: bool = True
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps, detector_weight=self.detector_weight, kappa=self.kappa)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        if self.theta is not None and self.theta != self.theta:
            raise UserError("theta must be a number, not nan")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        detector, theta = detector_and_threshold(model, self.theta)

        def evaluate(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            lead, success, up = margin_and_gradient(model, z, y, "margin", self.targeted, self.eot_samples)
            slope, score = score_gradient(detector, z, self.eot_samples)
            short, over = (self.kappa - lead).relu(), (score - theta).relu()
            value = -short - self.detector_weight * over.nan_to_num(nan=_NO_NUMBER, posinf=_NO_NUMBER)
            down = torch.where(batch_view(evades(score, theta), z), 0, self.detector_weight * slope)
            gradient = torch.where(batch_view(short > 0, z), up, 0) - down
            return gradient, value, success.long() + (success & evades(score, theta)).long()

        apgd = APGD(self.norm, self.eps, self.steps, random_start=self.random_start)
        start = apgd.clip(apgd.start(x, self.eps, noise), x, self.eps)
        return apgd.ascend(evaluate, x, start, self.eps, self.steps)[1]
