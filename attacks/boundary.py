"""The boundary attack: a random walk along the decision boundary (Brendel, Rauber and Bethge 2018)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind, Knowledge
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.decisions import Decisions, StartName, bisect, check_budget, find_start
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view


@dataclass(frozen=True)
class Boundary(Attack):
    """Nearest adversarial point by a walk among the points that fool, never away from the image.

    Brendel, Rauber and Bethge, "Decision-Based Adversarial Attacks", ICLR 2018, Algorithm 1: a random step on the
    sphere around x, a step towards x, kept where the result fools. Both lengths follow how often they succeed: as in
    the paper half of the steps on the sphere shall, and here a quarter of the whole steps. Departures: the start is
    moved to the boundary by bisection (as in the authors' Foolbox), and the lengths are adapted a little after every
    answer, not by tests of trailing means.

    Args:
        norm: norm that is minimised.
        queries: forward passes for each image. MALADE's T = 5000 steps cost 5500, one query in eleven being spent on
            the length of the steps, and the start up to 125.
        sphere_step: first length of the steps on the sphere, in distances to the image.
        source_step: first length of the steps towards the image, in distances to the image.
        start: uniform noise (MALADE's), or varied: also black and white squares, which reach more classes.
        starts: images that are tried as the start; where none fools, the image itself is returned.
        votes: forward passes a question, of which the majority decides: more than 1 for stochastic models. That is the
            honest form of this attack, but no EOT: a suite still owes them a gradient attack with `eot_samples`.
        targeted: look for the class `y` instead of any but `y`.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    knowledge: ClassVar[Knowledge] = "decisions"
    norm: Literal["l2"] = "l2"
    queries: int = 5_625
    sphere_step: float = 0.3
    source_step: float = 0.05
    start: StartName = "varied"
    starts: int = 100
    votes: int = 1
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, starts=self.starts)
        check_budget(self.queries, self.votes)
        between(0, 1, sphere_step=self.sphere_step, source_step=self.source_step)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        length = NORMS[self.norm].distance
        ask = Decisions(
            *(model, x, y, noise),
            distance=length,
            targeted=self.targeted,
            queries=self.queries,
            votes=self.votes,
        )
        rows = find_start(ask, noise, self.starts, self.start)
        bisect(ask, self.norm, ask.closest.point, rows, halvings=25)
        sphere = x.new_full((len(x),), self.sphere_step)
        source = x.new_full((len(x),), self.source_step)
        k = 0
        while (ask.open & rows).any():
            z, far = ask.closest.point, ask.closest.length  # infinite where there is no start: never asked
            outward = (z - x) / batch_view(far, x).clamp_min(1e-12)
            eta = noise.normal(x)
            eta = eta - batch_view((eta * outward).flatten(1).sum(1), x) * outward  # along the sphere
            eta = eta / batch_view(length(eta), x).clamp_min(1e-12)
            turned = outward + batch_view(sphere, x) * eta
            turned = turned / batch_view(length(turned), x)
            if k % 10 == 0:
                asked = ask.open & rows
                fooled = ask((x + batch_view(far, x) * turned).clamp(0, 1), rows)
                sphere = torch.where(asked, sphere * torch.where(fooled, 1.2, 1 / 1.2), sphere).clamp(1e-6, 1)
            asked = ask.open & rows
            fooled = ask((x + batch_view(far * (1 - source), x) * turned).clamp(0, 1), rows)
            source = torch.where(asked, source * torch.where(fooled, 1.1, 1.1 ** (-1 / 3)), source).clamp(1e-7, 0.5)
            k += 1
        return ask.closest.point
