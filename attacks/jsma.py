"""JSMA: Jacobian-based saliency map attack (Papernot et al. 2016a, Algorithms 2 and 3)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial, is_adversarial
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import jacobian
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import batch_view, l0_distance
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError


def frontier(u: Tensor, v: Tensor) -> Tensor:
    """Pareto frontier of each row: entries (B, D) that no other exceeds in both `u` and `v`; without `u` = -inf."""
    order = u.argsort(dim=1, descending=True)
    level = v.gather(1, order).where(u.gather(1, order).isfinite(), -torch.inf)
    before = torch.full_like(level, -torch.inf)
    before[:, 1:] = level.cummax(1).values[:, :-1]
    return torch.zeros_like(u, dtype=torch.bool).scatter(1, order, level > before)


def salient_pair(target: Tensor, others: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Most salient pair of values (Algorithm 3): positions (B, 2), and existence (B,).

    `target` and `others` (B, D) are the derivatives of the target's logit and of the sum of all others in the direction
    of the change. A pair is admissible if it raises the first and lowers the second; its saliency is the product of
    both changes. The search is exact without trying all pairs: a member of the best pair is exceeded in both
    derivatives by its partner at most, so it lies on the frontier, or on the frontier of the values that remain when
    the first frontier is removed.
    """
    u, v = target.masked_fill(~allowed, -torch.inf), -others
    first = frontier(u, v)
    kept = first | frontier(u.masked_fill(first, -torch.inf), v)
    index = kept.to(torch.uint8).topk(max(2, int(kept.sum(1).max())), 1).indices
    kept, a, b = kept.gather(1, index), target.gather(1, index), v.gather(1, index)
    alpha, beta = a[:, :, None] + a[:, None, :], b[:, :, None] + b[:, None, :]
    m = index.shape[1]
    fits = torch.ones(m, m, dtype=torch.bool, device=a.device).triu(1) & kept[:, :, None] & kept[:, None, :]
    score, at = torch.where(fits & (alpha > 0) & (beta > 0), alpha * beta, 0).flatten(1).max(1)
    return index.gather(1, torch.stack([at // m, at % m], 1)), score > 0


@dataclass(frozen=True)
class JSMA(Attack):
    """Change two values at a time, those that most raise the target's logit and lower the others, until success.

    Works on logits, not on the softmax. An untargeted attack tries every candidate class as the target and returns the
    result with the fewest changes; rows that cannot improve stop early. l0 counts values, not pixels.

    Args:
        norm: norm that is minimised.
        theta: change of a value in a step, in pixels of [0, 1].
        direction: increase values (up), decrease them (down), or try one after the other (both).
        gamma: largest share of the values that may change (the paper's maximum distortion); steps are half as many.
        candidates: classes, by logit, tried as targets.
        targeted: search for the target class `y` instead.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["l0"] = "l0"
    theta: Radius = 1.0
    direction: Literal["up", "down", "both"] = "up"
    gamma: float = 0.145
    candidates: int = 10
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, candidates=self.candidates, eot_samples=self.eot_samples)
        if not 0 < self.theta <= 1:
            raise UserError(f"theta must be above 0 and at most 1, not {self.theta}")
        if not 0 < self.gamma <= 1:
            raise UserError(f"gamma must be above 0 and at most 1, not {self.gamma}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        closest = BestAdversarial(model, x, y, l0_distance, self.targeted)
        if self.targeted:
            targets = y[:, None]
        else:
            with torch.no_grad():
                logits = model(x).scatter(1, y[:, None], -torch.inf)
            targets = logits.topk(min(self.candidates, logits.shape[1] - 1), 1).indices
        for sign in {"up": (1.0,), "down": (-1.0,), "both": (1.0, -1.0)}[self.direction]:
            for target in targets.unbind(1):
                self.towards(model, x, target, sign, closest)
        return closest.point

    def towards(self, model: nn.Module, x: Tensor, target: Tensor, sign: float, closest: BestAdversarial) -> None:
        """Algorithm 2: raise the logit of `target` (B,) by changes of `sign`; adversarial points go to `closest`."""

        def heads(logits: Tensor) -> Tensor:
            own = logits.gather(1, target[:, None])
            return torch.cat([own, logits.sum(1, keepdim=True) - own], 1)

        z, active = x, ~closest.done
        room = torch.ones_like(x, dtype=torch.bool).flatten(1)
        for _ in range(max(1, int(self.gamma * x[0].numel()) // 2)):
            active = active & (l0_distance(z - x) < closest.length)  # other rows cannot improve
            if not active.any():
                return
            slopes, _ = jacobian(model, z, heads, self.eot_samples)
            slopes = sign * slopes.flatten(2)
            level = z.flatten(1)
            room = room & (level < 1 if sign > 0 else level > 0)
            pair, found = salient_pair(slopes[:, 0], slopes[:, 1], room)
            active = active & found
            changed = level.scatter(1, pair, (level.gather(1, pair) + sign * self.theta).clamp(0, 1)).view_as(x)
            z = torch.where(batch_view(active, x), changed, z)
            with torch.no_grad():
                logits = model(z)
            closest.update(z, logits, where=active)
            active = active & ~is_adversarial(logits, target, True)
