"""Auto-PGD (Croce and Hein 2020a, Algorithm 1): PGD with momentum and adaptive step sizes.

For l1 it is the algorithm of "Mind the box" (Croce and Hein 2021).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.best_adversarial import is_adversarial
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, dlr_targeted, input_gradient
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, NormName, batch_view, divisor, project_l1_box
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError

# points -> gradient (like the points), value (B,) of the loss, rank (B,)
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

# Share of the steps before the first checkpoint: p_1 of the 2020 paper; another for l1 (2021).
FIRST_CHECKPOINT, FIRST_CHECKPOINT_L1 = 0.22, 0.04
# Every later period between checkpoints is shorter by the first share of the steps, but no shorter than the second.
PERIOD_DECREASE, SHORTEST_PERIOD = 0.03, 0.06
# Weight alpha of the new step against the momentum term.
ALPHA = 0.75


def sparse_step(gradient: Tensor, pixels: Tensor) -> Tensor:
    """Step of l1 length 1, in equal shares on the `pixels` (B,) largest entries of each row of `gradient`."""
    flat = gradient.flatten(1)
    size = flat.abs()
    signs = flat.sign() * (size >= size.sort(1, descending=True).values.gather(1, pixels[:, None] - 1))
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def touched(z: Tensor, x: Tensor) -> Tensor:
    """Number of entries (B,) in which `z` differs from `x` by more than rounding."""
    return ((z - x).abs() > 8 * torch.finfo(x.dtype).eps).flatten(1).sum(1)


@dataclass(frozen=True)
class APGD(Attack):
    """PGD that adapts its step size; returns the adversarial point of highest loss, or else the point of highest loss.

    The first step is the diameter of the ball. At checkpoints the step of a row is halved if its loss rose too seldom,
    and the row continues from its best point. In l1 the steps are sparse, and the number of pixels that they change is
    adapted as well. If a targeted attack misses its target, a point of any other wrong class is preferred.

    Departures from the reference implementation: the start is a candidate too; with EOT, loss and success are computed
    from all draws, not from the last one.

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        steps: number of gradient steps.
        loss: objective that the attack increases. With targeted: minus the cross-entropy of the target, the target's
            margin, or the targeted DLR (eq. 7) whose label is the most likely class of the image except the target.
        targeted: `y` holds targets.
        random_start: start at a random point of the sphere (l1: of the ball) instead of the image.
        multi_eps: spend 30 % of the steps at 3 eps and 30 % at 2 eps first (Croce and Hein 2021, sec. 3.2; for l1).
        rho: share of the steps between two checkpoints that must raise the loss; otherwise the step is halved.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    norm: NormName = "linf"
    eps: Radius = 0.3
    steps: int = 100
    loss: Literal["ce", "dlr", "margin"] = "ce"
    targeted: bool = False
    random_start: bool = True
    multi_eps: bool = False
    rho: float = 0.75
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        if not 0 < self.rho <= 1:
            raise UserError(f"rho must lie in (0, 1], not {self.rho}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        evaluate = self.evaluation(model, x, y)
        first = math.ceil(0.3 * self.steps)
        phases = [(3.0, first), (2.0, first), (1.0, max(1, self.steps - 2 * first))] if self.multi_eps else []
        z = self.start(x, phases[0][0] * self.eps if phases else self.eps, noise)
        for factor, steps in phases or [(1.0, self.steps)]:
            z, choice = self.ascend(evaluate, x, self.clip(z, x, factor * self.eps), factor * self.eps, steps)
        return choice

    def evaluation(self, model: nn.Module, x: Tensor, y: Tensor) -> Evaluate:
        """Function of points (like `x`) that returns gradient and value (B,) of the loss and rank (B,) of the point.

        The rank is 2 where the attack succeeds in most draws, 1 where most draws are only misclassified (but not as the
        target) or not finite, and 0 elsewhere.
        """
        label = y if y.ndim == 1 else y.argmax(1)
        if self.targeted:
            with torch.no_grad():
                logits = model(x)
            label = logits.scatter(1, y[:, None], -torch.inf).argmax(1)

        def loss(logits: Tensor) -> Tensor:
            if not self.targeted:
                return OBJECTIVES[self.loss](logits, y)
            return dlr_targeted(logits, label, y) if self.loss == "dlr" else -OBJECTIVES[self.loss](logits, y)

        def evaluate(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            hits, misses = torch.zeros_like(label), torch.zeros_like(label)

            def counted(logits: Tensor, _: Tensor) -> Tensor:
                draw = logits.detach()
                wrong = is_adversarial(draw, label, targeted=False)
                misses.add_(wrong | ~draw.isfinite().all(1))
                hits.add_(is_adversarial(draw, y, targeted=True) if self.targeted else wrong)
                return loss(logits)

            gradient, value = input_gradient(model, z, y, counted, self.eot_samples)
            rank = (2 * hits > self.eot_samples).long() + (2 * misses > self.eot_samples)
            return gradient, value.nan_to_num_(-torch.inf), rank

        return evaluate

    def start(self, x: Tensor, eps: float, noise: Noise) -> Tensor:
        """First iterate (like `x`), before `clip`."""
        if not self.random_start:
            return x
        if self.norm == "l1":  # `clip` brings it into the ball
            return x + noise.normal(x)
        norm = NORMS[self.norm]
        d = norm.random(x, 1.0, noise)
        return x + batch_view(eps / divisor(norm.distance(d)), x) * d

    def clip(self, z: Tensor, x: Tensor, eps: float) -> Tensor:
        """Project `z` on the ball of radius `eps` around `x` and on the box [0, 1]."""
        d = project_l1_box(z - x, x, eps) if self.norm == "l1" else NORMS[self.norm].project(z - x, eps)
        return (x + d).clamp_(0, 1)

    def ascend(self, evaluate: Evaluate, x: Tensor, z: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
        """Take `steps` steps from `z` in the ball of radius `eps`; returns points of highest loss and chosen points."""
        l1 = self.norm == "l1"
        longest = eps if l1 else 2 * eps
        size = x.new_full((len(x),), longest)
        # l1: `support` is the number of pixels that differed from x at the last checkpoint. It starts with all pixels,
        # so that the first checkpoint finds fewer in most rows and keeps their steps long. A step changes `pixels`
        # pixels: two thirds of the support, at first a fifth of all. The number is rounded down: the reference
        # implementation rounds up and cannot get from two pixels to one.
        everything = torch.full_like(touched(z, x), x[0].numel())
        support = touched(z, x) if self.multi_eps else everything
        pixels = (support / 1.5 if self.multi_eps else 0.2 * everything).long().clamp_min(1)
        interval = max(1, int((FIRST_CHECKPOINT_L1 if l1 else FIRST_CHECKPOINT) * steps))

        gradient, value, rank = evaluate(z)
        previous, best, best_gradient, best_value = z, z, gradient, value
        choice, choice_value, choice_rank = z, value, rank
        rises, since = torch.zeros_like(rank), 0
        halved, before = torch.ones_like(rank, dtype=torch.bool), value

        for k in range(steps):
            if l1:
                previous, z = z, self.clip(z + batch_view(size, x) * sparse_step(gradient, pixels), x, eps)
            else:
                alpha = ALPHA if k else 1.0
                step = batch_view(size, x) * NORMS[self.norm].steepest(gradient, z)
                towards = self.clip(z + step, x, eps)
                previous, z = z, self.clip(z + alpha * (towards - z) + (1 - alpha) * (z - previous), x, eps)

            last_value = value
            gradient, value, rank = evaluate(z)
            rises += value > last_value
            better = value > best_value
            best = torch.where(batch_view(better, x), z, best)
            best_gradient = torch.where(batch_view(better, x), gradient, best_gradient)
            best_value = torch.where(better, value, best_value)
            better = (rank > choice_rank) | ((rank == choice_rank) & (value > choice_value))
            choice = torch.where(batch_view(better, x), z, choice)
            choice_value, choice_rank = torch.where(better, value, choice_value), torch.where(better, rank, choice_rank)

            since += 1
            if since < interval:
                continue
            if l1:
                now = touched(best, x)
                back = now < 0.95 * support  # the perturbation got sparser: long steps again, from the best point
                size = torch.where(back, longest, (size / 1.5).clamp_min(longest / 10))
                support, pixels = now, (now / 1.5).long().clamp_min(1)
            else:
                back = (rises <= self.rho * interval) | (~halved & (best_value <= before))
                size = torch.where(back, size / 2, size)
                halved, before = back, best_value
                interval = max(interval - max(1, int(PERIOD_DECREASE * steps)), max(1, int(SHORTEST_PERIOD * steps)))
            z = torch.where(batch_view(back, x), best, z)
            gradient = torch.where(batch_view(back, x), best_gradient, gradient)
            value = torch.where(back, best_value, value)
            rises, since = torch.zeros_like(rises), 0
        return best, choice
