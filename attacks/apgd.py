"""Auto-PGD (Croce and Hein 2020a, Algorithm 1): momentum, and steps that halve where the loss no longer rises; l1 as in
"Mind the box" (Croce and Hein 2021)."""

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
from adversarial_lightning.attacks.core.norms import NORMS, NormName, batch_view, project_l1_box
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError

Look = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def sparse_step(gradient: Tensor, pixels: Tensor) -> Tensor:
    """A step of l1 length 1 in equal shares on the `pixels` (B,) largest entries of each row of `gradient`."""
    flat = gradient.flatten(1)
    size = flat.abs()
    signs = flat.sign() * (size >= size.sort(1, descending=True).values.gather(1, pixels[:, None] - 1))
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def touched(z: Tensor, x: Tensor) -> Tensor:
    """Number of entries (B,) in which `z` differs from `x` by more than rounding."""
    return ((z - x).abs() > 1e-6).flatten(1).sum(1)


@dataclass(frozen=True)
class APGD(Attack):
    """Gradient ascent without a step size to choose; returns the point of highest loss among those that fool, if any.

    The step starts at the diameter of the ball and is halved at checkpoints, row by row, where the loss rose too
    seldom; the row then goes on from its best point. In l1 the steps are sparse, and what is adapted is how many pixels
    they move. A targeted attack that misses its target prefers points where another class than the original one wins.

    Departures from the reference implementation: all points count, also the start; with EOT, loss and success are those
    of all draws, not of the last one.

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        steps: number of gradient steps.
        loss: objective that the attack increases. With targeted: minus the cross-entropy of the target, the target's
            margin, or the targeted DLR (eq. 7), whose label is the most likely class of the image but the target.
        targeted: `y` holds targets.
        random_start: start at a random point of the sphere (l1: of the ball) instead of the image.
        multi_eps: spend 30 % of the steps at 3 eps and 30 % at 2 eps first (Croce and Hein 2021, sec. 3.2; for l1).
        rho: share of steps that must have raised the loss for the step size to stay.
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
        look = self.look(model, x, y)
        first = math.ceil(0.3 * self.steps)
        phases = [(3.0, first), (2.0, first), (1.0, max(1, self.steps - 2 * first))] if self.multi_eps else []
        z = self.start(x, phases[0][0] * self.eps if phases else self.eps, noise)
        for factor, steps in phases or [(1.0, self.steps)]:
            z, choice = self.ascend(look, x, self.clip(z, x, factor * self.eps), factor * self.eps, steps)
        return choice

    def look(self, model: nn.Module, x: Tensor, y: Tensor) -> Look:
        """A function of points (like `x`): gradient and value (B,) of the loss, and rank (B,) of the point.

        The rank is 2 if most draws fool, 1 if they only miss the original class or are not finite, else 0.
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

        def look(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            hits, misses = torch.zeros_like(label), torch.zeros_like(label)

            def counted(logits: Tensor, _: Tensor) -> Tensor:
                seen = logits.detach()
                misses.add_(is_adversarial(seen, label, targeted=False) | ~seen.isfinite().all(1))
                hits.add_(
                    is_adversarial(seen, y, targeted=True)
                    if self.targeted
                    else is_adversarial(seen, label, targeted=False)
                )
                return loss(logits)

            gradient, value = input_gradient(model, z, y, counted, self.eot_samples)
            rank = (2 * hits > self.eot_samples).long() + (2 * misses > self.eot_samples)
            return gradient, value.nan_to_num_(-torch.inf), rank

        return look

    def start(self, x: Tensor, eps: float, noise: Noise) -> Tensor:
        if not self.random_start:
            return x
        if self.norm == "l1":  # `clip` brings it into the ball
            return x + noise.normal(x)
        norm = NORMS[self.norm]
        d = norm.random(x, 1.0, noise)
        return x + batch_view(eps / norm.distance(d).clamp_min(1e-12), x) * d

    def clip(self, z: Tensor, x: Tensor, eps: float) -> Tensor:
        """`z` back into the ball and the box."""
        d = project_l1_box(z - x, x, eps) if self.norm == "l1" else NORMS[self.norm].project(z - x, eps)
        return (x + d).clamp_(0, 1)

    def ascend(self, look: Look, x: Tensor, z: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
        """`steps` steps from `z` in the ball of radius `eps`: the point of highest loss, and the one to return."""
        l1 = self.norm == "l1"
        longest = eps if l1 else 2 * eps
        size = x.new_full((len(x),), longest)
        # Pixels that differed at the last checkpoint, at first all: the first checkpoint then finds fewer in most rows,
        # whose steps stay long. How many pixels a step moves: two thirds of those, at first a fifth of all. Rounded
        # down: the reference rounds up and cannot get from two pixels to one.
        everything = torch.full_like(touched(z, x), x[0].numel())
        support = touched(z, x) if self.multi_eps else everything
        pixels = (support / 1.5 if self.multi_eps else 0.2 * everything).long().clamp_min(1)
        interval = max(1, int((0.04 if l1 else 0.22) * steps))

        gradient, value, rank = look(z)
        previous, best, best_gradient, best_value = z, z, gradient, value
        choice, choice_value, choice_rank = z, value, rank
        rises, since = torch.zeros_like(rank), 0
        halved, before = torch.ones_like(rank, dtype=torch.bool), value

        for k in range(steps):
            if l1:
                previous, z = z, self.clip(z + batch_view(size, x) * sparse_step(gradient, pixels), x, eps)
            else:
                pace = 0.75 if k else 1.0  # the paper's alpha
                step = batch_view(size, x) * NORMS[self.norm].steepest(gradient, z)
                towards = self.clip(z + step, x, eps)
                previous, z = z, self.clip(z + pace * (towards - z) + (1 - pace) * (z - previous), x, eps)

            last_value = value
            gradient, value, rank = look(z)
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
                back = now < 0.95 * support  # sparser: large steps again, from the best point
                size = torch.where(back, longest, (size / 1.5).clamp_min(longest / 10))
                support, pixels = now, (now / 1.5).long().clamp_min(1)
            else:
                back = (rises <= self.rho * interval) | (~halved & (best_value <= before))
                size = torch.where(back, size / 2, size)
                halved, before = back, best_value
                interval = max(interval - max(1, int(0.03 * steps)), max(1, int(0.06 * steps)))
            z = torch.where(batch_view(back, x), best, z)
            gradient = torch.where(batch_view(back, x), best_gradient, gradient)
            value = torch.where(back, best_value, value)
            rises, since = torch.zeros_like(rises), 0
        return best, choice
