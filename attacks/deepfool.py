"""DeepFool (Moosavi-Dezfooli et al. 2016), with the limited step of Matyasko (2020), and the metric rho_adv."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial, is_adversarial
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.gradient import jacobian, margin
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view
from adversarial_lightning.attacks.core.radius import Radius

_NUDGE = 1e-4  # added to every step (in its norm), so that a row leaves the boundary


def rivals(logits: Tensor, y: Tensor, candidates: int) -> Tensor:
    """Classes other than `y` with the largest logits, `candidates` of them at most, (B, C) int64."""
    return logits.scatter(1, y[:, None], -torch.inf).topk(min(candidates, logits.shape[1] - 1), 1).indices


def nearest_boundary(values: Tensor, slopes: Tensor, norm: Literal["l2", "linf"]) -> tuple[Tensor, Tensor, Tensor]:
    """Index (B,), distance (B,) and slope of the nearest linearised boundary ``value + slope . r = 0``.

    `values` (B, C) and `slopes` (B, C, ...); a boundary with slope zero has infinite distance.
    """
    dual = torch.linalg.vector_norm(slopes.flatten(2), ord=2 if norm == "l2" else 1, dim=2)
    distance = torch.where(dual > 0, values.abs() / dual, torch.inf).nan_to_num(nan=torch.inf)
    shortest, index = distance.min(1)
    return index, shortest, slopes[torch.arange(len(index), device=index.device), index]


@dataclass(frozen=True)
class DeepFool(Attack):
    """Steps to the nearest linearised class boundary until the label changes (Algorithm 2; eqs. 10 and 11 for linf).

    As in the paper the model is linearised at x + r and success is judged at x + (1 + overshoot) r; here the reference
    is the label `y`, not the prediction. A targeted attack uses only the boundary to the currently strongest other
    class.

    The variants of the thesis (Matyasko 2020): ``max_step=0.5, box=False`` (chapter 3), ``steps=500, max_step=0.1``
    (chapter 4). Without the box, the thesis' metric uses `displacement`; the attack still returns images in [0, 1], and
    x where the clipped image is not adversarial.

    Args:
        norm: norm of the steps.
        steps: most steps taken.
        overshoot: share by which the result overshoots the boundary.
        max_step: longest step, in `norm` and pixels of [0, 1]; none: no limit.
        box: clip x + r to [0, 1] after every step.
        candidates: classes with the largest logits whose boundaries are considered.
        targeted: search for the target class `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["l2", "linf"] = "l2"
    steps: int = 50
    overshoot: float = 0.02
    max_step: Radius | None = None
    box: bool = True
    candidates: int = 10
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, candidates=self.candidates, eot_samples=self.eot_samples)
        at_least(0, overshoot=self.overshoot)
        between(0, math.inf, max_step=self.max_step)

    def displacement(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Perturbation (1 + overshoot) r, like `x`, and its success (B,); call it in `frozen_eval`.

        The perturbation is zero for rows that are adversarial without an attack.
        """
        with torch.no_grad():
            logits = model(x)
        others, done = rivals(logits, y, self.candidates), is_adversarial(logits, y, self.targeted)

        def towards(logits: Tensor) -> Tensor:
            """Logit of each class to reach minus that of the class to leave, (B, C); negative until success."""
            if self.targeted:
                return -margin(logits, y)[:, None]
            return logits.gather(1, others) - logits.gather(1, y[:, None])

        r, z = torch.zeros_like(x), x
        for _ in range(self.steps):
            if done.all():
                break
            slopes, values = jacobian(model, x + r, towards, self.eot_samples)
            _, distance, w = nearest_boundary(values, slopes, self.norm)
            length = (distance + _NUDGE).clamp(max=torch.inf if self.max_step is None else self.max_step)
            length = torch.where(done | ~distance.isfinite(), 0, length)
            r = r + batch_view(length, x) * NORMS[self.norm].steepest(w, x)
            if self.box:
                r = (x + r).clamp(0, 1) - x
            z = x + (1 + self.overshoot) * r
            if self.box:
                z = z.clamp(0, 1)
            with torch.no_grad():
                done = done | is_adversarial(model(z), y, self.targeted)
        return z - x, done

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        closest = BestAdversarial(model, x, y, NORMS[self.norm].distance, self.targeted)
        z = (x + self.displacement(model, x, y)[0]).clamp(0, 1)
        with torch.no_grad():
            closest.update(z, model(z))
        return closest.point


def relative_robustness(r: Tensor, x: Tensor, where: Tensor | None = None) -> Tensor:
    """Metric rho_adv of Matyasko (2020): the mean of ||r||_2 / ||x||_2 over the rows `where` (B,).

    Eq. 4.9 takes all rows, eq. 3.20 those classified correctly. `r` and `x` are (B, ...). Images that are all black
    have no relative length and are left out. NaN if no row is left.
    """
    size = NORMS["l2"].distance(x)
    counted = size > 0 if where is None else where & (size > 0)
    return (NORMS["l2"].distance(r)[counted] / size[counted]).mean()
