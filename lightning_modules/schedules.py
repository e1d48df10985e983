"""Learning-rate schedules as functions of the fraction of training done, stepped after every batch."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from adversarial_lightning.errors import UserError


class Schedule(ABC):
    """Multiplier of the optimizer's learning rate; leaves are frozen dataclasses."""

    @abstractmethod
    def factor(self, done: float) -> float:
        """Multiplier after the share `done` in [0, 1] of all optimizer steps."""


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Cosine increase to the optimizer's rate, then cosine decrease (Smith and Topin 2018); momentum does not change.

    Args:
        warmup: share of training with an increasing rate.
        initial: first multiplier.
        final: last multiplier.
    """

    warmup: float = 0.3
    initial: float = 0.04
    final: float = 4e-6

    def __post_init__(self) -> None:
        if not 0 < self.warmup < 1:
            raise UserError(f"warmup is a share of training in (0, 1), not {self.warmup}")

    def factor(self, done: float) -> float:
        if done < self.warmup:
            return _cosine(self.initial, 1, done / self.warmup)
        return _cosine(1, self.final, (done - self.warmup) / (1 - self.warmup))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine decrease from the optimizer's rate.

    Args:
        final: last multiplier.
    """

    final: float = 0.0

    def factor(self, done: float) -> float:
        return _cosine(1, self.final, done)


@dataclass(frozen=True)
class Steps(Schedule):
    """Decrease by the factor `gamma` at each milestone.

    Args:
        milestones: shares of training, in (0, 1): 0.5 is after half of all batches.
        gamma: factor at each milestone.
    """

    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if any(not 0 < m < 1 for m in self.milestones):
            raise UserError(f"milestones are shares of training in (0, 1), not {self.milestones}")

    def factor(self, done: float) -> float:
        return self.gamma ** sum(done >= m for m in self.milestones)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Decrease by the factor `gamma` after every 1 / `times` of training: every epoch, if `times` is their number.

    Args:
        times: number of equal parts that training is divided into.
        gamma: factor at the end of each part.
    """

    times: int = 100
    gamma: float = 0.95

    def __post_init__(self) -> None:
        if self.times < 1 or not self.gamma > 0:
            raise UserError(f"times ({self.times}) must be at least 1 and gamma ({self.gamma}) above 0, over training")

    def factor(self, done: float) -> float:
        return self.gamma ** int(done * self.times + 1e-6)  # the share of training done is a rounded quotient
