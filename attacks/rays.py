"""RayS: hierarchical search for the best sign vector (Chen and Gu 2020)."""

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
    """The first `count` blocks to flip, (count, 2): none, all, halves, quarters, ..., single entries for ever."""
    found, size = [(0, 0)], n
    while len(found) < count:
        found += [(start, min(start + size, n)) for start in range(0, n, size)]
        size = -(-size // 2)
    return torch.tensor(found[:count])


@dataclass(frozen=True)
class RayS(Attack):
    """Nearest adversarial point on the rays x + r d, d a vector of signs, with no more than the model's decisions.

    Chen and Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", KDD 2020, Algorithms 2 and 3: flip
    the signs of blocks of d, each level half as large; a flip that still fools at the best radius is kept, and the
    radius along the new ray found by bisection. Radii are measured in linf, the paper's in l2. Where neither the
    white image nor the black one fools, and so the paper's search has no ray, random black and white images are tried.

    Args:
        norm: norm that is minimised.
        queries: forward passes for each image.
        tolerance: width at which a bisection ends, in pixels of [0, 1]; the authors' 1e-3 in l2 on 784 pixels is 4e-5.
        votes: forward passes a question, of which the majority decides: more than 1 for stochastic models. That is the
            honest form of this attack, but no EOT: a suite still owes them a gradient attack with `eot_samples`.
        targeted: look for the class `y` instead of any but `y`.
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
        ask = Decisions(
            *(model, x, y, noise),
            distance=NORMS[self.norm].distance,
            targeted=self.targeted,
            queries=self.queries,
            votes=self.votes,
        )
        flat = x.flatten(1)
        position = torch.arange(flat.shape[1], device=x.device)
        begin, end = blocks(flat.shape[1], self.queries // self.votes).to(x.device).unbind(1)
        best, radius, low = torch.ones_like(flat), x.new_ones(len(x)), x.new_zeros(len(x))
        trial = torch.zeros_like(ask.used)  # of each row: number of the block that is flipped
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
            trial = torch.where(lost, 1, trial)  # so that the flips go on where they stopped
            trial = torch.where(searching, trial, trial + 1).clamp_max(len(begin) - 1)
        return ask.closest.point
