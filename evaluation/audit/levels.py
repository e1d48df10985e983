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
    `passes`: most forward and backward passes a sample, for the forecast of the cost.
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


LEVELS = {
    "brief": Budget(
        samples=32,
        steps=10,
        queries=40,
        points=10,
        imitation=10,
        excludes=0.14,
        passes=(800, 500),
        imitated=64,
        averaged=3,
        repeated=4,
    ),
    "quick": Budget(samples=64, steps=40, queries=300, points=200, imitation=150, excludes=0.07, passes=(3_000, 1_500)),
    "full": Budget(
        samples=512, steps=100, queries=5_000, points=10_000, imitation=2_000, excludes=0.01, passes=(30_000, 5_000)
    ),
}
