"""Attacks of Carlini and Wagner (2017a): l2 (section VI-A) and linf (section VI-C)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.gradient import Objective, gradient_and_logits, margin
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view
from adversarial_lightning.attacks.core.radius import Radius

# The scaled tanh exceeds [0, 1] by this much and is then clipped: otherwise its derivative at 0 and 1 would vanish.
_SLACK = 0.01


def free(x: Tensor) -> Tensor:
    """Unbounded variable w of the image `x` in [0, 1]; inverse of `boxed`."""
    return torch.atanh((2 * x - 1) / (1 + 2 * _SLACK))


def boxed(w: Tensor) -> Tensor:
    """Image in [0, 1] of the unbounded variable `w`, a scaled tanh."""
    return ((1 + (1 + 2 * _SLACK) * w.tanh()) / 2).clamp(0, 1)


def pull_back(gradient: Tensor, w: Tensor) -> Tensor:
    """Gradient with respect to `w`, from that with respect to ``boxed(w)``; zero where a step would leave the box."""
    t = w.tanh()
    raw = (1 + (1 + 2 * _SLACK) * t) / 2
    stopped = ((raw <= 0) & (gradient > 0)) | ((raw >= 1) & (gradient < 0))
    return (gradient * (1 - t * t) * ((1 + 2 * _SLACK) / 2)).masked_fill(stopped, 0)


def hinge(kappa: float, targeted: bool) -> Objective:
    """Loss f_6 of the paper, to be minimised: max(kappa - margin, 0); zero where the margin reaches `kappa`."""
    sign = -1 if targeted else 1
    return lambda logits, y: (kappa - sign * margin(logits, y)).clamp_min(0)


class Adam:
    """Adam (Kingma and Ba 2015) for one tensor; rows are independent, so finished rows can be ignored."""

    def __init__(self, w: Tensor, step_size: float) -> None:
        self.step_size, self.k = step_size, 0
        self.mean, self.square = torch.zeros_like(w), torch.zeros_like(w)

    def step(self, w: Tensor, gradient: Tensor) -> Tensor:
        """Take one step; returns the new `w`."""
        self.k += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = (self.square / (1 - 0.999**self.k)).sqrt_().add_(1e-8)
        return w - self.step_size / (1 - 0.9**self.k) * self.mean / size


class ConstSearch:
    """Binary search, row by row, for the smallest weight `const` (B,) of the loss with which the attack succeeds."""

    def __init__(self, x: Tensor, const: float) -> None:
        self.const = x.new_full((len(x),), const)
        self.low, self.high = torch.zeros_like(self.const), torch.full_like(self.const, torch.inf)

    def narrow(self, success: Tensor) -> None:
        """Update by the `success` (B,) of each row: halve the bracket, or multiply by 10 while there is no success."""
        self.high = torch.where(success, self.high.minimum(self.const), self.high)
        self.low = torch.where(success, self.low, self.low.maximum(self.const))
        self.const = torch.where(self.high.isfinite(), (self.low + self.high) / 2, (10 * self.const).clamp(max=1e10))


@dataclass(frozen=True)
class CW(Attack):
    """Carlini and Wagner's l2 attack: minimise ||z - x||_2^2 + const f(z), for the smallest const that succeeds.

    Adam optimises variables whose scaled tanh is the image.

    Departures: each row aborts by itself, not when the sum over the batch stalls; the scaled tanh exceeds [0, 1] by 1 %
    and is clipped, so that pixels at exactly 0 or 1 can change.

    Args:
        norm: norm that is minimised.
        steps: Adam steps for each const (the paper: 10,000; its code: 1,000).
        search_steps: number of consts tried.
        step_size: Adam's learning rate.
        const: first weight of the loss.
        kappa: logit margin that a success needs (the paper's confidence).
        abort_early: end a const for a row whose loss decreased by less than 0.01 % in a tenth of the steps.
        targeted: search for the target class `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["l2"] = "l2"
    steps: int = 1000
    search_steps: int = 9
    step_size: float = 0.01
    const: float = 0.001
    kappa: float = 0.0
    abort_early: bool = True
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, search_steps=self.search_steps, eot_samples=self.eot_samples)
        at_least(0, kappa=self.kappa)
        between(0, math.inf, step_size=self.step_size, const=self.const)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        loss = hinge(self.kappa, self.targeted)
        closest = BestAdversarial(model, x, y, NORMS["l2"].distance, self.targeted)
        search = ConstSearch(x, self.const)
        for _ in range(self.search_steps):
            w = free(x)
            adam = Adam(w, self.step_size)
            success, active = torch.zeros_like(closest.done), ~closest.done
            before = torch.full_like(closest.length, torch.inf)
            for k in range(self.steps):
                z = boxed(w)
                gradient, value, logits = gradient_and_logits(model, z, y, loss, self.eot_samples)
                won = active & (value <= 0)
                success |= closest.update(z, logits, where=won) & won
                if self.abort_early and k % max(1, self.steps // 10) == 0:
                    total = (z - x).flatten(1).square().sum(1) + search.const * value
                    active, before = active & (total <= 0.9999 * before), total
                    if not active.any():
                        break
                # The step also moves rows that are no longer active; their results are not used.
                w = adam.step(w, pull_back(2 * (z - x) + batch_view(search.const, x) * gradient, w))
            search.narrow(success)
        return closest.point


@dataclass(frozen=True)
class CWLinf(Attack):
    """Carlini and Wagner's linf attack: minimise sum_i max(|z_i - x_i| - tau, 0) + const f(z) for decreasing tau.

    As in the authors' code, tau is a share of the distance reached, const doubles after a failed run, and a run starts
    from the last success. Departures: a run after a failure starts from the end of the failed run, and every row has
    its own tau and const. The box is handled as in `CW`.

    Args:
        norm: norm that is minimised.
        steps: most Adam steps for each pair of tau and const.
        step_size: Adam's learning rate.
        const: first weight of the loss; doubles where the attack fails.
        max_const: largest const; a row stops beyond it.
        decrease: factor on tau after a success.
        min_tau: smallest tau, in pixels of [0, 1]; a row stops below it.
        kappa: logit margin that a success needs (the paper's confidence).
        targeted: search for the target class `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["linf"] = "linf"
    steps: int = 1000
    step_size: float = 0.005
    const: float = 1e-5
    max_const: float = 20.0
    decrease: float = 0.9
    min_tau: Radius = 1 / 256
    kappa: float = 0.0
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        at_least(0, kappa=self.kappa)
        between(0, math.inf, step_size=self.step_size, const=self.const, min_tau=self.min_tau)
        at_least(self.const, max_const=self.max_const)
        between(0, 1, decrease=self.decrease)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm, loss = NORMS["linf"], hinge(self.kappa, self.targeted)
        closest = BestAdversarial(model, x, y, norm.distance, self.targeted)
        start, const = free(x), x.new_full((len(x),), self.const)
        tau, open_ = torch.ones_like(const), ~closest.done
        while open_.any():
            w, reached, active = start, torch.zeros_like(tau), open_
            adam = Adam(w, self.step_size)
            for _ in range(self.steps):
                z = boxed(w)
                d = z - x
                gradient, value, logits = gradient_and_logits(model, z, y, loss, self.eot_samples)
                fooled = closest.update(z, logits, where=active & (value <= 0)) & (value <= 0)
                won = active & fooled & (norm.distance(d) <= tau)
                reached = torch.where(won, norm.distance(d), reached)
                start = torch.where(batch_view(won, x), w, start)
                active = active & ~won
                if not active.any():
                    break
                outside = d.sign() * (d.abs() > batch_view(tau, x))
                w = adam.step(w, pull_back(outside + batch_view(const, x) * gradient, w))
            won = open_ & ~active
            start = torch.where(batch_view(won, x), start, w)
            tau = torch.where(won, self.decrease * reached, tau)
            const = torch.where(won, const, 2 * const)
            open_ = open_ & (tau > self.min_tau) & (const <= self.max_const)
        return closest.point
