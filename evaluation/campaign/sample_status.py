"""Which samples an attack must see, and which the model withstood: bookkeeping shared by the campaign and the merge.

A sample's fate is an int64 of bits: bit d where the model is right in draw d of the defender's noise, and one more bit
where the majority vote of the draws is right. Fates of several attacks are and-ed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adversarial_lightning.attacks import Attack, Restarts, threat
from adversarial_lightning.evaluation.outcomes.types import Columns, Fate, Flags

CLEAN = "clean"  # the name of the rows without an attack
MOST_DRAWS = 62  # as many bits as fit beside the vote
Mode = Literal["full", "worst_case"]


@dataclass(frozen=True)
class Unit:
    """One run of one attack (None: no attack) over the samples that still stand."""

    name: str
    restart: int
    attack: Attack | None


def units(suite: Mapping[str, Attack], name: str) -> list[Unit]:
    """The runs of one attack of the suite, or of `CLEAN`: as many as a `Restarts` of a budget attack says, or one."""
    attack = None if name == CLEAN else suite[name]
    if isinstance(attack, Restarts) and attack.kind == "budget":
        return [Unit(name, restart, attack.attack) for restart in range(attack.n)]
    return [Unit(name, 0, attack)]


def applies(attack: Attack, norm: str | None, eps: float | None) -> bool:
    """Whether what `attack` finds counts against the threat model (norm, eps): same norm and a radius up to eps.

    A minimum-norm attack without a radius counts at every eps, by the length of what it found.
    """
    own_norm, own_eps = threat(attack)
    if norm is None or eps is None or own_norm != norm:
        return False
    return attack.kind == "minimum-norm" if own_eps is None else own_eps <= eps


@dataclass
class Cascade:
    """The fates of some `samples` (ascending numbers) under all that has been recorded.

    A run after the first sees only what its attack has left standing, unless `thorough`; in mode worst_case, an attack
    sees only what the earlier attacks left that count against its threat model.
    """

    suite: Mapping[str, Attack]
    samples: NDArray[np.int64]
    mode: Mode = "full"
    draws: int = 1
    thorough: bool = False
    fates: dict[str, Fate] = field(default_factory=dict)
    lengths: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    seen: dict[tuple[str, int], Flags] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (CLEAN, *self.suite):
            self.fates[name] = np.full(len(self.samples), self.whole)
            self.lengths[name] = np.full(len(self.samples), np.inf)
            for unit in units(self.suite, name):
                self.seen[name, unit.restart] = np.zeros(len(self.samples), bool)

    @property
    def whole(self) -> int:
        """The fate of a sample that nothing has felled."""
        return (1 << (self.draws + 1)) - 1

    def record(self, unit: Unit, rows: Columns) -> None:
        """Take note of outcomes of one run; samples that are not ours are passed over."""
        at, own = self.find(rows["index"])
        right = rows["adversarial"] == rows["label"]
        fate = rows["draws"] | right.astype(np.int64) << self.draws
        if unit.name != CLEAN:
            attack = self.suite[unit.name]
            norm, eps = threat(attack)
            fate = np.where(outside(rows, norm, eps, attack.kind), self.whole, fate)
            if attack.kind == "minimum-norm" and norm is not None:
                self.lengths[unit.name][at] = rows[norm][own]
        self.fates[unit.name][at] &= fate[own]
        self.seen[unit.name, unit.restart][at] = True

    def find(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], Flags]:
        """The places of those `numbers` that are ours, and which they are."""
        if not len(self.samples):
            return np.zeros(0, np.int64), np.zeros(len(numbers), bool)
        at = np.searchsorted(self.samples, numbers).clip(max=len(self.samples) - 1)
        own: Flags = self.samples[at] == numbers
        return at[own], own

    def withstood(self, name: str, eps: float | None = None) -> Fate:
        """The fates under one attack alone; under a minimum-norm attack without a radius, inside that of `eps`."""
        fates = self.fates[name]
        if eps is not None and name != CLEAN and threat(self.suite[name])[1] is None:
            return np.where(self.lengths[name] > eps, self.whole, fates)
        return fates

    def before(self, name: str) -> Fate:
        """The fates when attack `name` begins: right without an attack and, in mode worst_case, not felled earlier."""
        fates = self.fates[CLEAN]
        if name == CLEAN:
            return np.full(len(self.samples), self.whole)
        if self.mode == "worst_case":
            norm, eps = threat(self.suite[name])
            for earlier in self.suite:
                if earlier == name:
                    break
                if applies(self.suite[earlier], norm, eps):
                    fates = fates & self.withstood(earlier, eps)
        return fates

    def asked(self, unit: Unit) -> Flags:
        """Which samples this run must see after the runs before it: those with something left to lose."""
        fates = self.before(unit.name)
        if not self.thorough:
            fates = fates & self.fates[unit.name]
        asked: Flags = fates != 0
        return asked

    def worst(self, norm: str, eps: float) -> Fate:
        """The fates under all attacks that count against a threat model."""
        fates = self.fates[CLEAN]
        for name, attack in self.suite.items():
            if applies(attack, norm, eps):
                fates = fates & self.withstood(name, eps)
        return fates

    def progress(self, name: str) -> tuple[int, float]:
        """Rows of one attack that are done, or that nobody has to do any more, and how many samples have fallen."""
        runs = units(self.suite, name)
        rows = np.sum([self.seen[name, unit.restart] for unit in runs], axis=0)
        before = self.before(name)
        after = before & self.fates[name]
        over = (before if self.thorough else after) == 0
        fallen = len(self.samples) - float(standing(after, self.draws).sum())
        return int(np.where(over, len(runs), rows).sum()), fallen


def outside(rows: Columns, norm: str | None, eps: float | None, kind: str) -> Flags:
    """Which perturbations leave the ball; see `outcome.outside`."""
    if norm is None or eps is None:
        return np.zeros(len(rows["index"]), bool)
    slack = eps * 1e-6 + 1e-7 if kind == "budget" else 0.0
    far: Flags = rows[norm] > eps + slack
    return far


def standing(fates: Fate, draws: int) -> NDArray[np.float64]:
    """The share of draws in which each sample is right."""
    shares: NDArray[np.float64] = np.mean([(fates >> d) & 1 for d in range(draws)], axis=0)
    return shares


def threat_models(suite: Mapping[str, Attack]) -> dict[tuple[str, float], list[str]]:
    """Names of the attacks that count for every (norm, eps) of the suite; corruptions have neither."""
    threats = dict.fromkeys(threat(attack) for attack in suite.values())
    return {
        (norm, float(eps)): [name for name, attack in suite.items() if applies(attack, norm, eps)]
        for norm, eps in threats
        if norm is not None and eps is not None
    }
