"""High-confidence attack of the thesis on adversary critics (Matyasko 2020, section 4.4, Algorithm 1).

Matyasko, "Towards Deep Neural Networks Robust to Adversarial Examples", doctoral thesis, Nanyang Technological
University, 2020.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.gradient import gradient_and_logits, jacobian
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.attacks.deepfool import nearest_boundary, rivals
from adversarial_lightning.errors import UserError


def confidence_step(log_p: Tensor, w: Tensor, confidence: Tensor, max_step: float = math.inf) -> Tensor:
    """Step along w / ||w|| of length (log C - log p) / ||w||, to where the linearised log-probability is log C.

    `log_p` (B,) of the target, its gradient `w` (B, ...), `confidence` C (B,) in (0, 1]. Returns a step like
    `w`, differentiable in `log_p` and `w`. As in the public code the length is |d| / n + 1e-4, at most `max_step`, with
    n = sqrt(||w||^2 + 1e-8) and |d| limited to 50; a zero gradient gives a zero step. Eq. 4.8 prints the length only.
    """
    n = (w.flatten(1).square().sum(1) + 1e-8).sqrt()
    length = ((confidence.log() - log_p).abs().clamp(max=50) / n + 1e-4).clamp(max=max_step)
    return batch_view(length / n, w) * w


def closest_target(model: nn.Module, x: Tensor, y: Tensor, candidates: int = 10, eot_samples: int = 1) -> Tensor:
    """Class (B,) other than `y` whose linearised l2 boundary with `y` is nearest to `x` (B, ...)."""
    with torch.no_grad():
        others = rivals(model(x), y, candidates)
    slopes, values = jacobian(model, x, lambda z: z.gather(1, others) - z.gather(1, y[:, None]), eot_samples)
    index, _, _ = nearest_boundary(values, slopes, "l2")
    return others.gather(1, index[:, None])[:, 0]


def log_probability(logits: Tensor, y: Tensor) -> Tensor:
    """Log-probability of the class `y`, (B,)."""
    return logits.log_softmax(1).gather(1, y[:, None])[:, 0]


@dataclass(frozen=True)
class HighConfidence(Attack):
    """Nearest point found with probability at least C of a target class (evaluation form of the attack).

    Each step linearises the log-probability of the target at the overshot point. The target is the class with the
    nearest boundary at x. Rows that never reach C are returned unchanged.

    Args:
        norm: norm that is minimised.
        confidence: the probability C, above 1/K; none: the model's own confidence in x, row by row, as in the tables of
            the thesis.
        steps: most steps taken.
        max_step: longest step, in l2 and pixels of [0, 1]; none: no limit.
        overshoot: share by which the result overshoots.
        candidates: classes with the largest logits that may become the target.
        targeted: `y` is the target.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["l2"] = "l2"
    confidence: float | None = None
    steps: int = 500
    max_step: Radius | None = 0.1
    overshoot: float = 0.02
    candidates: int = 10
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, candidates=self.candidates, eot_samples=self.eot_samples)
        at_least(0, overshoot=self.overshoot)
        between(0, 1, confidence=self.confidence)
        between(0, math.inf, max_step=self.max_step)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        closest = BestAdversarial(model, x, y, NORMS["l2"].distance, self.targeted)
        with torch.no_grad():
            clean = model(x).softmax(1)
        if self.confidence is not None and self.confidence <= 1 / clean.shape[1]:
            raise UserError(f"confidence must be above 1/K = {1 / clean.shape[1]:.3g}, not {self.confidence}")
        # float32 can round a probability to 1, which no attack could reach; the thesis' code has the same limit.
        confidence = clean.amax(1) if self.confidence is None else x.new_full((len(x),), self.confidence)
        confidence = confidence.clamp(1 / clean.shape[1] + 1e-3, 1 - 1e-4)
        target = y if self.targeted else closest_target(model, x, y, self.candidates, self.eot_samples)
        limit = math.inf if self.max_step is None else self.max_step
        r, z, active = torch.zeros_like(x), x, ~closest.done
        for k in range(self.steps + 1):
            w, log_p, logits = gradient_and_logits(model, z, target, log_probability, self.eot_samples)
            won = active & (log_p >= confidence.log()) & (logits.argmax(1) == target)
            closest.update(z, logits, where=won)
            active = active & ~won
            if k == self.steps or not active.any():
                break
            step = confidence_step(log_p.nan_to_num(0), w, confidence, limit)
            r = torch.where(batch_view(active, x), ((x + r + step).clamp(0, 1) - x), r)
            z = (x + (1 + self.overshoot) * r).clamp(0, 1)
        return closest.point
