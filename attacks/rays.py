"""RayS: hierarchical search over sign vectors, decision-based (Chen and Gu 2020)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind, Knowledge
from adversarial_lightning.attacks.core.checks import between, check_choices
from adversarial_lightning.attacks.core.decisions import Decisions, check_budget, squares
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS


def blocks(n: int, count: int) -> Tensor:
    """First `count` blocks (begin, end) to flip, (count, 2): none, all, halves, quarters, ..., single entries."""
    found, size = [(0, 0)], n
    while len(found) < count:
        found += [(start, min(start + size, n)) for start in range(0, n, size)]
        size = -(-size // 2)
    return torch.tensor(found[:count])


@dataclass(frozen=True)
class RayS(Attack):
    """Nearest adversarial point on the rays x + r d, d a vector of signs, found from the model's decisions.

    Chen and Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", KDD 2020, Algorithms 2 and 3: flip
    the signs of blocks of d, which halve in size from level to level. A flip is kept if the point at the best radius
    remains adversarial; the radius along the new ray is then found by bisection. Radii are measured in linf, in the
    paper in l2. If neither the white image nor the black one is adversarial, the paper's search has no ray; here random
    black and white images are tried.

    Args:
        norm: norm that is minimised.
        queries: forward passes for each image.
        tolerance: width at which a bisection ends, in pixels of [0, 1]; the authors' 1e-3 in l2 on 784 pixels is 4e-5.
        votes: forward passes for one question, decided by their majority; more than 1 for stochastic models. Votes do
            not replace EOT: a suite for such models also needs a gradient attack with `eot_samples`.
        targeted: search for the class `y` instead of any other class than `y`.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    knowledge: ClassVar[Knowledge] = "decisions"
    norm: Literal["linf"] = "linf"
    queries: int = 10_000
    tolerance: float = 1e-4
    votes: int = 1
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        check_budget(self.queries, self.votes)
        between(0, 1, tolerance=self.tolerance)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        length = NORMS[self.norm].distance
        ask = Decisions(model, x, y, noise, length, self.targeted, queries=self.queries, votes=self.votes)
        flat = x.flatten(1)
        position = torch.arange(flat.shape[1], device=x.device)
        begin, end = blocks(flat.shape[1], self.queries // self.votes).to(x.device).unbind(1)
        best, radius, low = torch.ones_like(flat), x.new_ones(len(x)), x.new_zeros(len(x))
        trial = torch.zeros_like(ask.used)  # for each row, the number of the block that is flipped
        searching = torch.zeros_like(ask.open)  # rows in the bisection along `best`; the others try a flip
        query = 0
        while ask.open.any():
            query += 1
            inside = (position >= begin[trial, None]) & (position < end[trial, None])
            d = torch.where(inside & ~searching[:, None], -best, best)
            lost = ~ask.closest.found & (trial > 1)  # rows without any ray
            if lost.any():
                corner = squares(x, noise.fork(query), 2 ** (query % 4)).flatten(1) * 2 - 1
                d = torch.where(lost[:, None], corner, d)
            r = torch.where(searching, (low + radius) / 2, radius)
            fooled = ask((x + (r[:, None] * d).view_as(x)).clamp(0, 1))
            best = torch.where(fooled[:, None], d, best)
            radius = torch.where(fooled, r, radius)
            low = torch.where(searching, torch.where(fooled, low, r), 0.0)
            searching = torch.where(searching, True, fooled) & (radius - low > self.tolerance)
            trial = torch.where(lost, 1, trial)  # so that the flips then start with the first block
            trial = torch.where(searching, trial, trial + 1).clamp_max(len(begin) - 1)
        return ask.closest.point
