"""Boundary attack: a random walk along the decision boundary (Brendel et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind, Knowledge
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.decisions import Decisions, StartName, bisect, check_budget, find_start
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view, divisor


@dataclass(frozen=True)
class Boundary(Attack):
    """Nearest adversarial point found by a random walk over adversarial points that approaches the image.

    Brendel, Rauber and Bethge, "Decision-Based Adversarial Attacks", ICLR 2018, Algorithm 1: a random step on the
    sphere around x, then a step towards x; the result is kept where it is adversarial. Both step lengths are adapted to
    their success rates. The aim is one half for the steps on the sphere, as in the paper, and one quarter for both
    steps together. Departures: the start is moved to the boundary by bisection (as in the authors' Foolbox), and the
    lengths are adapted a little after every query, not by tests of trailing means.

    Args:
        norm: norm that is minimised.
        queries: forward passes for each image. MALADE's T = 5000 steps cost 5500, because one query in eleven serves
            to adapt the steps on the sphere; the start costs up to 125.
        sphere_step: first length of the steps on the sphere, in distances to the image.
        source_step: first length of the steps towards the image, in distances to the image.
        start: uniform (noise, as in MALADE) or varied (also black and white squares, which reach more classes).
        starts: random images tried as the start; if none is adversarial, the image itself is returned.
        votes: forward passes for one question, decided by their majority; more than 1 for stochastic models. Votes do
            not replace EOT: a suite for such models also needs a gradient attack with `eot_samples`.
        targeted: search for the class `y` instead of any other class than `y`.
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
        ask = Decisions(model, x, y, noise, length, self.targeted, queries=self.queries, votes=self.votes)
        rows = find_start(ask, noise, self.starts, self.start)
        bisect(ask, self.norm, ask.closest.point, rows, halvings=25)
        sphere = x.new_full((len(x),), self.sphere_step)
        source = x.new_full((len(x),), self.source_step)
        k = 0
        while (ask.open & rows).any():
            z, far = ask.closest.point, ask.closest.length  # infinite where there is no start: never asked
            outward = (z - x) / batch_view(divisor(far), x)
            eta = noise.normal(x)
            eta = eta - batch_view((eta * outward).flatten(1).sum(1), x) * outward  # along the sphere
            eta = eta / batch_view(divisor(length(eta)), x)
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
