"""Levels of the audit: what each costs, and what it promises to exclude."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["brief", "quick", "full"]


@dataclass(frozen=True)
class Budget:
    """Budget of the audit: samples of a claim, and steps, queries and points of one attack on one of them.

    `points` are random points of the ball; gradients are averaged over `averaged` draws of a stochastic model.
    The substitute learns from `imitated` images, in `imitation` steps. `repeated` outcomes are computed again.
    `excludes`: a check passes where surely no larger share of all samples is affected; 0 of `samples` is just enough.
    For the forecast of the cost: `passes` are the forward and backward passes a sample (brief and quick: measured,
    full: reckoned from its settings) besides those of the suite's strongest gradient attack, which runs as often as
    `repeats` says: twice the steps and another start in C5, and once in M3 and in I3.
    """

    samples: int
    steps: int
    queries: int
    points: int
    imitation: int
    excludes: float
    passes: tuple[int, int]
    imitated: int = 1000
    averaged: int = 10
    repeated: int = 64
    repeats: int = 5


LEVELS = {
    "brief": Budget(
        samples=32,
        steps=10,
        queries=40,
        points=10,
        imitation=10,
        excludes=0.14,
        passes=(400, 160),
        imitated=64,
        averaged=3,
        repeated=4,
    ),
    "quick": Budget(samples=64, steps=40, queries=300, points=200, imitation=150, excludes=0.07, passes=(1_950, 700)),
    "full": Budget(
        samples=512, steps=100, queries=5_000, points=10_000, imitation=2_000, excludes=0.01, passes=(22_500, 2_200)
    ),
}
