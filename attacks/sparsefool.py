"""SparseFool (Modas et al. 2019, Algorithms 1 and 2)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import jacobian, margin
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import batch_view, distance
from adversarial_lightning.attacks.deepfool import DeepFool


def sparse_step(z: Tensor, normal: Tensor, anchor: Tensor) -> Tensor:
    """Sparsest step in [0, 1] from `z` to the plane through `anchor` with `normal` (Algorithm 1); all (B, ...).

    Values change in the order of |normal|, each as far as needed or up to the box. The distance that is left for the
    k-th value is a cumulative sum, which replaces the paper's loop. Returns the point after the step.
    """
    w, start = normal.flatten(1), z.flatten(1)
    need = (w * (anchor - z).flatten(1)).sum(1, keepdim=True).clamp_min(0)
    order = w.abs().argsort(dim=1, descending=True, stable=True)
    steep = w.gather(1, order)
    level = start.gather(1, order)
    room = torch.where(steep > 0, 1 - level, level)
    gain = steep.abs() * room
    left = need - (gain.cumsum(1) - gain)
    way = (left / steep.abs().clamp_min(torch.finfo(z.dtype).tiny)).clamp_min(0).minimum(room) * steep.sign()
    return (start + torch.zeros_like(start).scatter(1, order, way)).clamp(0, 1).view_as(z)


@dataclass(frozen=True)
class SparseFool(Attack):
    """Sparse steps to the boundary that DeepFool's l2 point linearises, until the label changes.

    Args:
        norm: norm by which results are compared; the steps do not depend on it.
        steps: largest number of linearisations.
        overshoot: share by which the result overshoots.
        lambda_: distance of the plane, in multiples of DeepFool's step, at least 1 (1: sparsest; more: faster).
        deepfool_steps: largest number of DeepFool steps in each linearisation.
        candidates: classes that DeepFool considers.
        targeted: search for the target class `y` instead.
        eot_samples: gradients averaged (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["l1", "l0"] = "l1"
    steps: int = 20
    overshoot: float = 0.02
    lambda_: float = 3.0
    deepfool_steps: int = 50
    candidates: int = 10
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, deepfool_steps=self.deepfool_steps, candidates=self.candidates)
        at_least(1, lambda_=self.lambda_, eot_samples=self.eot_samples)
        at_least(0, overshoot=self.overshoot)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        closest = BestAdversarial(model, x, y, partial(distance, self.norm), self.targeted)
        deepfool = DeepFool(
            steps=self.deepfool_steps, candidates=self.candidates, targeted=self.targeted, eot_samples=self.eot_samples
        )

        def wanted(logits: Tensor) -> Tensor:
            """Margin (B, 1), whose gradient is the normal of the plane."""
            return (-margin(logits, y) if self.targeted else margin(logits, y))[:, None]

        z = x
        for _ in range(self.steps):
            if closest.found.all():
                break
            r, _ = deepfool.displacement(model, z, y)
            anchor = z + self.lambda_ * r
            slopes, _ = jacobian(model, z + r, wanted, self.eot_samples)
            moved = sparse_step(z, slopes[:, 0], anchor)
            z = torch.where(batch_view(closest.found, x), z, moved)
            over = (x + (1 + self.overshoot) * (z - x)).clamp(0, 1)
            with torch.no_grad():
                logits = model(over)
            closest.update(over, logits)
        return closest.point
