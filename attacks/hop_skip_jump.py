"""HopSkipJump: boundary normals estimated from decisions (Chen et al. 2020)."""

import math
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
class HopSkipJump(Attack):
    """Nearest adversarial point found by steps along estimated normals of the decision boundary.

    Chen, Jordan and Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", S&P 2020, Algorithm 2:
    bisect to the boundary, estimate its normal (eq. 16, with the baseline), take a step whose length is halved until
    the point is adversarial, repeat. As in the authors' code, the random directions of the linf attack are uniform, the
    first have length 0.1, and the estimate uses the queried points as they are after clipping to [0, 1].

    Args:
        norm: norm that is minimised.
        queries: forward passes for each image.
        probes: B_0, the number of queries for the first normal; round t takes sqrt(t) times as many.
        gamma: width of the bisections: theta = gamma / D^(3/2) of the distance (l2) or gamma / D^2 (linf), D pixels.
        start: uniform (noise, as in MALADE) or varied (also black and white squares, which reach more classes).
        starts: random images tried as the start; if none is adversarial, the image itself is returned.
        votes: forward passes for one question, decided by their majority; more than 1 for stochastic models. Votes do
            not replace EOT: a suite for such models also needs a gradient attack with `eot_samples`.
        targeted: search for the class `y` instead of any other class than `y`.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    knowledge: ClassVar[Knowledge] = "decisions"
    norm: Literal["l2", "linf"] = "l2"
    queries: int = 10_000
    probes: int = 100
    gamma: float = 1.0
    start: StartName = "varied"
    starts: int = 100
    votes: int = 1
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, probes=self.probes, starts=self.starts)
        check_budget(self.queries, self.votes)
        between(0, math.inf, gamma=self.gamma)

    def normal(self, ask: Decisions, z: Tensor, delta: Tensor, rows: Tensor, count: int, noise: Noise) -> Tensor:
        """Monte-Carlo estimate (like `z`) of the boundary's normal at `z`, towards adversarial points (eq. 16)."""
        weighted, total = torch.zeros_like(z), torch.zeros_like(z)
        answers, asked = z.new_zeros(len(z)), ask.used.clone()
        for _ in range(count):
            u = noise.normal(z) if self.norm == "l2" else noise.uniform(z) * 2 - 1
            u = u / batch_view(NORMS["l2"].distance(u), z)
            queried = (z + batch_view(delta, z) * u).clamp(0, 1)
            u = (queried - z) / batch_view(delta, z)
            live = ask.open & rows  # rows without queries left do not count
            phi = torch.where(ask(queried, rows), 1.0, -1.0).to(z.dtype) * live
            weighted, total, answers = weighted + batch_view(phi, z) * u, total + batch_view(live, z) * u, answers + phi
        mean = answers / ((ask.used - asked) / self.votes).clamp_min(1)
        one_sided = batch_view(mean.abs() == 1, z)
        return torch.where(one_sided, weighted, weighted - batch_view(mean, z) * total)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm, n = NORMS[self.norm], x[0].numel()
        ask = Decisions(model, x, y, noise, norm.distance, self.targeted, queries=self.queries, votes=self.votes)
        theta = self.gamma / n ** (1.5 if self.norm == "l2" else 2.0)
        halvings = min(max(1, math.ceil(-math.log2(theta))), 40)
        rows = find_start(ask, noise, self.starts, self.start)
        z = bisect(ask, self.norm, ask.closest.point, rows, halvings)
        t = 0
        while (ask.open & rows).any():
            t += 1
            far = norm.distance(z - x)
            delta = torch.full_like(far, 0.1) if t == 1 else far * theta * (math.sqrt(n) if self.norm == "l2" else n)
            v = self.normal(ask, z, delta, rows, round(self.probes * math.sqrt(t)), noise)
            v = norm.steepest(v, z)
            step, moved, seeking = far / math.sqrt(t), z, rows & ask.open
            for _ in range(halvings):
                if not seeking.any():
                    break
                candidate = (z + batch_view(step, z) * v).clamp(0, 1)
                fooled = ask(candidate, seeking)
                moved = torch.where(batch_view(fooled, z), candidate, moved)
                step, seeking = step / 2, seeking & ~fooled
            z = bisect(ask, self.norm, moved, rows, halvings)
        return ask.closest.point
