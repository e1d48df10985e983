"""Checks of the audit: the answer to one question, and the samples it takes to be sure of a failure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.stats import beta

Verdict = Literal["pass", "fail", "not applicable"]

NO_SAMPLES = "No sample is left to check."


@dataclass(frozen=True, kw_only=True)
class Check:
    """Answer to one question of the audit.

    `id` is that of Carlini et al.'s list (C1 .. C17), of a flag of AutoAttack (F1 ..) or of an indicator of attack
    failure (I2 ..), and unique together with `name`. `figure` was measured, `limit` is where it fails; None where there
    is no number. `sentence` says what was measured and what it means.
    """

    id: str
    name: str
    verdict: Verdict
    figure: float | None = None
    limit: float | None = None
    sentence: str


def failed(checks: Iterable[Check]) -> list[Check]:
    """The failed checks, which a report prints beside its headline numbers."""
    return [check for check in checks if check.verdict == "fail"]


def lower_confidence_bound(k: int, n: int) -> float:
    """Lower end of the 99 % Clopper-Pearson interval of a share, for `k` of `n` samples.

    A check fails when this exceeds its limit, so a few unlucky samples are no finding: for a limit of 0.2 points it
    takes 3 of 64 samples, for 1 point 4. Of the checks of honest models that are at their limits one in 200 fails.
    """
    return float(beta.ppf(0.005, k, n - k + 1)) if k else 0.0


TOO_FEW = "this is above the limit, but too few samples show it to call it a failure"


def not_applicable(
    *, id: str, name: str, limit: float | None = None, why: str = "Not applicable to a stochastic model."
) -> Check:
    """A check that does not apply to this model or evaluation."""
    return Check(id=id, name=name, verdict="not applicable", limit=limit, sentence=why)


def share_check(
    *,
    id: str,
    name: str,
    k: int,
    n: int,
    limit: float,
    sentence: str,
    of: float = 1.0,
    bad: str = "",
    good: str = "",
) -> Check:
    """A check that fails where surely more than the share `limit` of all samples is affected.

    `k` of the `n` examined samples are affected; these represent the share `of` of all samples. The sentence ends with
    `bad` or `good`, and with neither where the figure is above the limit but may be chance; figures are shares of all
    samples. Not applicable without samples.
    """
    if n == 0:
        return not_applicable(id=id, name=name, limit=limit, why=NO_SAMPLES)
    fails = of * lower_confidence_bound(k, n) > limit
    end = bad if fails else good if of * k / n <= limit else TOO_FEW
    return Check(
        id=id,
        name=name,
        verdict="fail" if fails else "pass",
        figure=of * k / n,
        limit=limit,
        sentence=f"{sentence}: {end}.",
    )
