"""Status of samples: who must still be attacked, and who is robust; for the workers and for the merge.

The bits of a sample are an int64: bit d is set where the model is right in draw d of the defender's noise, and one more
bit where the majority vote of the draws is right. The bits under several attacks are and-ed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adversarial_lightning.attacks import Attack, Restarts
from adversarial_lightning.attacks.core.base import Kind
from adversarial_lightning.attacks.core.norms import outside_ball
from adversarial_lightning.evaluation.campaign.unions import Ball, joined, part_in, threat_of
from adversarial_lightning.evaluation.outcomes.types import Bits, Columns, Flags

CLEAN = "clean"  # the name of the rows without an attack
MOST_DRAWS = 62  # as many bits as fit beside the vote
Mode = Literal["full", "worst_case"]


@dataclass(frozen=True)
class AttackRun:
    """One run of one attack (None: no attack)."""

    name: str
    restart: int
    attack: Attack | None


def attack_runs(suite: Mapping[str, Attack], name: str) -> list[AttackRun]:
    """The runs of one attack of the suite, or of `CLEAN`: as many as a `Restarts` of a budget attack says, or one."""
    attack = None if name == CLEAN else suite[name]
    if isinstance(attack, Restarts) and attack.kind == "budget":
        return [AttackRun(name, restart, attack.attack) for restart in range(attack.n)]
    return [AttackRun(name, 0, attack)]


def applies(attack: Attack, norm: str | None, eps: float | None) -> bool:
    """Whether what `attack` finds counts against the threat model (norm, eps): same norm and a radius up to eps.

    A minimum-norm attack without a radius counts at every eps, by the length of what it found; an attack that joins
    several norms counts for each of its balls, by the points inside.
    """
    if several := joined(attack):
        return any(own_norm == norm and own_eps <= (eps or 0) for own_norm, own_eps in several)
    own_norm, own_eps = threat_of(attack)
    if norm is None or eps is None or own_norm != norm:
        return False
    return attack.kind == "minimum-norm" if own_eps is None else own_eps <= eps


@dataclass
class SampleStatus:
    """The status of some `samples` (ascending numbers) under all outcomes recorded so far.

    A later run of an attack sees only the samples that its earlier runs have not broken, unless `every_sample`; in mode
    worst_case, an attack sees only the samples that no earlier attack of its threat model has broken.
    """

    suite: Mapping[str, Attack]
    samples: NDArray[np.int64]
    mode: Mode = "full"
    draws: int = 1
    every_sample: bool = False
    bits: dict[str, Bits] = field(default_factory=dict)
    lengths: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    in_ball: dict[tuple[str, Ball], Bits] = field(default_factory=dict)  # under attacks that join several norms
    seen: dict[tuple[str, int], Flags] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (CLEAN, *self.suite):
            self.bits[name] = np.full(len(self.samples), self.all_correct)
            self.lengths[name] = np.full(len(self.samples), np.inf)
            for ball in joined(self.suite[name]) if name != CLEAN else ():
                self.in_ball[name, ball] = np.full(len(self.samples), self.all_correct)
            for run in attack_runs(self.suite, name):
                self.seen[name, run.restart] = np.zeros(len(self.samples), bool)

    @property
    def all_correct(self) -> int:
        """The bits of a sample that is right in every draw."""
        return (1 << (self.draws + 1)) - 1

    def record(self, run: AttackRun, rows: Columns) -> None:
        """Take in outcomes of one run; rows of other samples are ignored."""
        at, own = self.find(rows["index"])
        vote = (rows["adversarial"] == rows["label"]).astype(np.int64) << self.draws
        bits = rows["right_draws"] | vote
        if run.name != CLEAN:
            attack = self.suite[run.name]
            norm = threat_of(attack)[0]
            for ball in joined(attack):
                self.in_ball[run.name, ball][at] &= np.where(
                    does_not_count(rows, attack, ball), self.all_correct, bits
                )[own]
            bits = np.where(does_not_count(rows, attack), self.all_correct, bits)
            if attack.kind == "minimum-norm" and norm is not None:
                self.lengths[run.name][at] = rows[norm][own]
        self.bits[run.name][at] &= bits[own]
        self.seen[run.name, run.restart][at] = True

    def find(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], Flags]:
        """Positions in `samples` of those `numbers` that are among them, and which those are."""
        if not len(self.samples):
            return np.zeros(0, np.int64), np.zeros(len(numbers), bool)
        at = np.searchsorted(self.samples, numbers).clip(max=len(self.samples) - 1)
        own: Flags = self.samples[at] == numbers
        return at[own], own

    def bits_under(self, name: str, norm: str | None = None, eps: float | None = None) -> Bits:
        """The bits under one attack alone.

        With a threat model (norm, eps): of an attack that joins several norms, what it found in its balls of that norm;
        of a minimum-norm attack without a radius, what it found inside `eps`.
        """
        bits = self.bits[name]
        if norm is None or eps is None or name == CLEAN:
            return bits
        if several := joined(self.suite[name]):
            inside = [self.in_ball[name, ball] for ball in several if ball[0] == norm and ball[1] <= eps]
            return np.bitwise_and.reduce(inside) if inside else np.full_like(bits, self.all_correct)
        if threat_of(self.suite[name])[1] is None:
            return np.where(self.lengths[name] > eps, self.all_correct, bits)
        return bits

    def bits_before(self, name: str) -> Bits:
        """The bits when attack `name` begins: without an attack and, in mode worst_case, under the earlier ones."""
        bits = self.bits[CLEAN]
        if name == CLEAN:
            return np.full(len(self.samples), self.all_correct)
        if self.mode == "worst_case":
            norm, eps = threat_of(self.suite[name])
            for earlier in self.suite:
                if earlier == name:
                    break
                if applies(self.suite[earlier], norm, eps):
                    bits = bits & self.bits_under(earlier, norm, eps)
        return bits

    def needs(self, run: AttackRun) -> Flags:
        """Samples that this run must attack: those that no earlier run has broken in every draw."""
        bits = self.bits_before(run.name)
        if not self.every_sample:
            bits = bits & self.bits[run.name]
        needed: Flags = bits != 0
        return needed

    def worst_case(self, norm: str, eps: float) -> Bits:
        """The bits under all attacks that count against a threat model."""
        bits = self.bits[CLEAN]
        for name, attack in self.suite.items():
            if applies(attack, norm, eps):
                bits = bits & self.bits_under(name, norm, eps)
        return bits

    def union(self, balls: Sequence[Ball]) -> Bits:
        """The bits under all attacks that count against any of these balls."""
        bits: Bits = np.bitwise_and.reduce([self.worst_case(norm, eps) for norm, eps in balls])
        return bits

    def progress(self, name: str) -> tuple[int, float]:
        """Rows of one attack that are done or no longer needed, and the number of samples that are broken."""
        runs = attack_runs(self.suite, name)
        rows = np.sum([self.seen[name, run.restart] for run in runs], axis=0)
        before = self.bits_before(name)
        after = before & self.bits[name]
        over = (before if self.every_sample else after) == 0
        broken = len(self.samples) - float(robust_share(after, self.draws).sum())
        return int(np.where(over, len(runs), rows).sum()), broken


def outside(rows: Columns, norm: str | None, eps: float | None, kind: Kind) -> Flags:
    """Which perturbations leave the ball (`outside_ball`); without a norm or eps (corruptions) there is no outside."""
    if norm is None or eps is None:
        return np.zeros(len(rows["index"]), bool)
    far: Flags = outside_ball(rows[norm], eps, kind)
    return far


def does_not_count(rows: Columns, attack: Attack, ball: Ball | None = None) -> Flags:
    """Which perturbations of `attack` lie outside its ball, or outside all that it joins; or do not count in `ball`.

    `ball` is one that the attack `applies` to: of an attack without a radius it says where outside begins, of one that
    joins several norms, which of these balls count.
    """
    several, (norm, eps) = joined(attack), threat_of(attack)
    if several:
        counting = [b for b in several if ball is None or (b[0] == ball[0] and b[1] <= ball[1])]
        far: Flags = np.all([outside(rows, *b, attack.kind) for b in counting], axis=0)
        return far
    if eps is None and ball is not None:
        eps = ball[1]
    return outside(rows, norm, eps, attack.kind)


def robust_share(bits: Bits, draws: int) -> NDArray[np.float64]:
    """The share of draws in which each sample is right."""
    shares: NDArray[np.float64] = np.mean([(bits >> d) & 1 for d in range(draws)], axis=0)
    return shares


def in_whole_ball(suite: Mapping[str, Attack], names: Sequence[str], eps: float) -> dict[str, Attack]:
    """Those of the attacks `names` of one norm that were allowed the whole ball of radius `eps`, not a smaller one.

    Not those that join several norms: what they find in one ball may hide what they found in another.
    """
    return {name: suite[name] for name in names if threat_of(suite[name])[1] in (None, eps) and not joined(suite[name])}


def in_balls(suite: Mapping[str, Attack], balls: Sequence[Ball]) -> dict[Ball, dict[str, Attack]]:
    """For each ball of a union the attacks that were allowed the whole of it; of one that joins several, its part."""
    found: dict[Ball, dict[str, Attack]] = {}
    for norm, eps in balls:
        names = [name for name, attack in suite.items() if applies(attack, norm, eps)]
        parts = {name: part_in(suite[name], (norm, eps)) for name in names if joined(suite[name])}
        whole = in_whole_ball(suite, names, eps) | {name: part for name, part in parts.items() if part is not None}
        found[norm, eps] = {name: whole[name] for name in names if name in whole}
    return found


def counting_against(suite: Mapping[str, Attack], balls: Sequence[Ball]) -> list[str]:
    """Names of the attacks that count against any of these balls."""
    return [name for name, attack in suite.items() if any(applies(attack, *ball) for ball in balls)]


def threat_models(suite: Mapping[str, Attack]) -> dict[Ball, list[str]]:
    """Names of the attacks that count for every (norm, eps) of the suite; corruptions have neither.

    The balls of an attack that joins several norms make no threat models of their own, only their union (`unions`).
    """
    threats = dict.fromkeys(threat_of(attack) for attack in suite.values())
    return {
        (norm, float(eps)): counting_against(suite, [(norm, float(eps))])
        for norm, eps in threats
        if norm is not None and eps is not None
    }
