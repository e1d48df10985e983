"""SparseFool (Modas, Moosavi-Dezfooli and Frossard 2019, Algorithms 1 and 2)."""

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
    """The sparsest point of [0, 1] on the plane through `anchor` with `normal` (Algorithm 1), from `z`; all (B, ...).

    Values move in the order of |normal|, each as far as needed or until the box stops it. In that order the
    way that is left to the k-th is known at once, so the loop of the paper is a cumulative sum.
    """
    w, start = normal.flatten(1), z.flatten(1)
    need = (w * (anchor - z).flatten(1)).sum(1, keepdim=True).clamp_min(0)
    order = w.abs().argsort(dim=1, descending=True, stable=True)
    steep = w.gather(1, order)
    level = start.gather(1, order)
    room = torch.where(steep > 0, 1 - level, level)
    gain = steep.abs() * room
    left = need - (gain.cumsum(1) - gain)
    way = (left / steep.abs().clamp_min(1e-30)).clamp_min(0).minimum(room) * steep.sign()
    return (start + torch.zeros_like(start).scatter(1, order, way)).clamp(0, 1).view_as(z)


@dataclass(frozen=True)
class SparseFool(Attack):
    """Moves few values onto the boundary as DeepFool's l2 point linearises it, until the label changes.

    Args:
        norm: the norm by which results are compared; the steps are the same.
        steps: most linearisations.
        overshoot: share by which the result overshoots.
        lambda_: how far beyond DeepFool's point the plane lies, at least 1 (1: sparsest; more: quicker).
        deepfool_steps: most steps of DeepFool in each linearisation.
        candidates: classes that DeepFool considers.
        targeted: look for the target `y` instead.
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
            """The margin; its gradient, that of the class found less that of the label, is the plane's normal."""
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
