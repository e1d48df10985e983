"""One question that the audit asked, and its answer; and how many samples it takes to be sure of one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.stats import beta

Verdict = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Check:
    """The answer to one question.

    `id` is that of Carlini et al.'s list (C1 .. C17), of a flag of AutoAttack (F1 ..) or of an indicator of attack
    failure (I2 ..), and unique together with `name`. `figure` was measured, `limit` is where it fails; None where there
    is no number. `sentence` says what was measured and what it means.
    """

    id: str
    name: str
    verdict: Verdict
    figure: float | None
    limit: float | None
    sentence: str


def failed(checks: Iterable[Check]) -> list[Check]:
    """The checks that stand beside a headline: those that failed."""
    return [check for check in checks if check.verdict == "fail"]


def lower_confidence_bound(k: int, n: int) -> float:
    """The share of all samples that is surely of the kind that `k` of `n` were: 99 % Clopper-Pearson interval, low end.

    A check fails when this exceeds its limit, so a few unlucky samples are no finding: for a limit of 0.2 points it
    takes 3 of 64 samples, for 1 point 4. Of the checks of honest models that are at their limits one in 200 fails.
    """
    return float(beta.ppf(0.005, k, n - k + 1)) if k else 0.0


def not_applicable(id: str, name: str, limit: float | None = None, why: str = "") -> Check:
    """A check that cannot be asked of this model or evaluation."""
    why = why or "It cannot be asked of a stochastic model."
    return Check(id, name, "not applicable", None, limit, why)


def share_check(
    id: str, name: str, k: int, n: int, limit: float, sentence: str, *, of: float = 1.0, bad: str, good: str
) -> Check:
    """A check that `k` of `n` samples, which stand for the share `of` of all, are no more than the share `limit`.

    The sentence ends with `bad` or `good`; figures are shares of all samples. Not applicable without samples.
    """
    if n == 0:
        return not_applicable(id, name, limit, "No sample is left that this could be asked of.")
    fails = of * lower_confidence_bound(k, n) > limit
    return Check(id, name, "fail" if fails else "pass", of * k / n, limit, f"{sentence}: {bad if fails else good}.")
