"""EAD: elastic-net attack (Chen et al. 2018, Algorithm 1)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.gradient import gradient_and_logits
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view
from adversarial_lightning.attacks.cw import ConstSearch, hinge


def shrink(z: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Projected shrinkage (eq. 6): move `z` towards `x` by `threshold`, to `x` if nearer, and clip to [0, 1]."""
    d = z - x
    return torch.where(d.abs() > threshold, (z - threshold * d.sign()).clamp(0, 1), x)


@dataclass(frozen=True)
class EAD(Attack):
    """Minimise const f(z) + ||z - x||_2^2 + beta ||z - x||_1 by FISTA, for the smallest const that succeeds.

    f is the hinge of `CW`. The gradient is taken at the momentum point and success is judged at the iterate, so a step
    takes two forward passes. Each row aborts by itself.

    Args:
        norm: norm that is minimised.
        rule: the successful iterate to keep, by least elastic net (en) or least l1 length (l1).
        beta: weight of l1 against the squared l2 norm; also the threshold of the shrinkage.
        steps: steps for each const.
        search_steps: number of consts tried.
        step_size: first step on the smooth part; proportional to the square root of the remaining steps.
        const: first weight of the loss.
        kappa: logit margin that a success needs (the paper's confidence).
        fista: momentum; without it plain proximal gradient descent (ISTA).
        abort_early: end a const for a row whose loss decreased by less than 0.01 % in a tenth of the steps.
        targeted: search for the target class `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["l1"] = "l1"
    rule: Literal["en", "l1"] = "en"
    beta: float = 0.001
    steps: int = 1000
    search_steps: int = 9
    step_size: float = 0.01
    const: float = 0.001
    kappa: float = 0.0
    fista: bool = True
    abort_early: bool = True
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, search_steps=self.search_steps, eot_samples=self.eot_samples)
        at_least(0, beta=self.beta, kappa=self.kappa)
        between(0, math.inf, step_size=self.step_size, const=self.const)

    def elastic(self, d: Tensor) -> Tensor:
        """Elastic net ||d||_2^2 + beta ||d||_1 of each row, (B,)."""
        return d.flatten(1).square().sum(1) + self.beta * NORMS["l1"].distance(d)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        loss = hinge(self.kappa, self.targeted)
        closest = BestAdversarial(
            model, x, y, self.elastic if self.rule == "en" else NORMS["l1"].distance, self.targeted
        )
        search = ConstSearch(x, self.const)
        for _ in range(self.search_steps):
            z = ahead = x
            success, active = torch.zeros_like(closest.done), ~closest.done
            before = torch.full_like(closest.length, torch.inf)
            for k in range(self.steps):
                gradient, _, _ = gradient_and_logits(model, ahead, y, loss, self.eot_samples)
                size = self.step_size * (1 - k / self.steps) ** 0.5
                smooth = ahead - size * (2 * (ahead - x) + batch_view(search.const, x) * gradient)
                last, z = z, shrink(smooth, x, self.beta)
                ahead = z + k / (k + 3) * (z - last) if self.fista else z
                with torch.no_grad():
                    logits = model(z)
                value = loss(logits, y)
                won = active & (value <= 0)
                success |= closest.update(z, logits, where=won) & won
                if self.abort_early and k % max(1, self.steps // 10) == 0:
                    total = self.elastic(z - x) + search.const * value
                    active, before = active & (total <= 0.9999 * before), total
                    if not active.any():
                        break
            search.narrow(success)
        return closest.point
