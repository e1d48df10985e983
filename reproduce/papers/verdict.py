"""Verdicts on a paper's numbers and on its claims in words, by rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adversarial_lightning.evaluation.outcomes.statistics import paired
from adversarial_lightning.evaluation.outcomes.types import Flags
from adversarial_lightning.reproduce.papers.paper import Direction

Word = Literal["confirmed", "contradicted", "not decided at this scale", "not tried"]
UNDECIDED: Word = "not decided at this scale"
HALF_WIDTH = 0.03  # of an interval that can confirm: 3 points, of a length 3 % of the printed one
LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """What a recorded number says about a printed one, or a test about a claim, and why."""

    word: Word
    reason: str = ""


def of_number(
    printed: float,
    value: float,
    interval: Sequence[float],
    *,
    share: bool = True,
    better: Literal["higher", "lower"] = "higher",
    attack: Literal["same", "stronger", "weaker", "other"] = "same",
    explains: Direction = "nothing",
    leaves_out: str = "",
    rounding: float = 0.0,
    spread: float = 0.0,
) -> Verdict:
    """Verdict on a `printed` number, from our `value` and its 95 % `interval` in the same unit.

    Confirmed: the printed number (give or take its `rounding`) lies in the interval, half of which is at most 3 points
    (of what is no `share`, 3 % of the printed number), and neither the attack nor what was reduced flatters us.
    Contradicted: it lies outside, by more than trainings differ from each other (1.96 times the printed standard
    deviation `spread`), and neither the attack nor what was reduced can explain on which side. Otherwise it is not
    decided at this scale.
    """
    low, high = interval
    inside = low <= printed + rounding and high >= printed - rounding
    flatters = {"same": "nothing", "stronger": "worse", "weaker": "better", "other": "both"}[attack]
    causes = [("the attack is not the paper's" if attack == "other" else f"the attack is {attack}", flatters)]
    causes += [(f"reduced: {leaves_out}" if leaves_out else "the training is reduced", explains)]
    if inside:
        if open_ := [cause for cause, way in causes if way in ("better", "both")]:
            return Verdict(UNDECIDED, f"agrees, but {open_[0]}")
        half, limit = (high - low) / 2, HALF_WIDTH * (1 if share else abs(printed))
        if half > limit:
            needed = f", takes n {_images(value, limit):,}" if share else ""
            return Verdict(UNDECIDED, f"agrees, but the interval is wide{needed}")
        with_less = f" ({leaves_out})" if leaves_out and explains != "nothing" else ""
        return Verdict("confirmed", f"the printed number lies in the interval{with_less}")
    margin = rounding + 1.96 * spread
    if low <= printed + margin and high >= printed - margin:
        return Verdict(UNDECIDED, "differs by no more than the paper's own runs differ from each other")
    way = "better" if (value > printed) == (better == "higher") else "worse"
    if why := [cause for cause, can in causes if can in (way, "both")]:
        return Verdict(UNDECIDED, f"{way} than printed, which may be because {why[0]}")
    return Verdict("contradicted", f"{way} than printed, which nothing that was reduced explains")


def _images(share: float, half: float) -> int:
    """Images that make Wilson's interval of a share so narrow."""
    return math.ceil(max(share * (1 - share), 0.01) * (1.96 / half) ** 2)


def of_order(one: Flags, other: Flags, p: float, *, alike: bool, leaves_out: str = "") -> Verdict:
    """Verdict on the claim that the model of flags `one` is better than that of `other`, on the same samples.

    `p` is McNemar's, corrected for all claims of the table. `alike`: both were reduced in the same way, so that what
    was left out favours neither.
    """
    only = int((one & ~other).sum()), int((other & ~one).sum())
    difference = (only[0] - only[1]) / len(one)
    shown = f"p {p:.2g}" if p >= 1e-99 else "p < 1e-99"
    words = f"difference {100 * difference:+.1f} points, {shown}"
    if p >= LEVEL:
        rate = sum(only) / len(one)
        needed = math.ceil(rate * (1.96 / difference) ** 2) if difference else None
        more = f"; a difference like this takes n {needed:,}" if needed and needed > len(one) else ""
        return Verdict(UNDECIDED, f"{words}: no order is shown{more}")
    if not alike:
        return Verdict(UNDECIDED, f"{words}, but the two were not reduced alike")
    under = f" ({leaves_out})" if leaves_out else ""
    return Verdict("confirmed" if difference > 0 else "contradicted", f"{words}{under}")


def p_of_order(one: Flags, other: Flags) -> float:
    """McNemar's exact p value of two models on the same samples."""
    return paired(one, other)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected by Holm (1979), in the given order."""
    order = np.argsort(ps, kind="stable")
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def rounding(printed: float | str) -> float:
    """Half a unit of the last digit of a number as it is printed: 0.005 for 96.44, 0.5 for 13."""
    digits = str(printed).partition(".")[2]
    return 0.5 * 10.0 ** -len(digits)
