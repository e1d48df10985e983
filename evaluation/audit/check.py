"""Checks of the audit: the answer to one question, and what its samples show with 99 % confidence."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from scipy.stats import beta

Verdict = Literal["failed", "passed", "not shown", "not applicable", "for information"]
State = Literal["failed", "passed", "not shown", "not audited", "nothing to audit"]

NO_SAMPLES = "No sample is left to check."
EXPERIMENTS = frozenset({"C3", "C5", "C6", "C7", "C8", "C15", "M3"})
MATTER = EXPERIMENTS | {"C1", "C4", "C9", "C10", "C11", "C13", "A1", "F1", "F2", "F3", "M1", "M2", "M4", "D1", "D2"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Answer to one question of the audit.

    `id` is that of the list of Carlini et al. 2019 (C1 .. C17), of a flag of AutoAttack (F1 ..), of an indicator of
    attack failure (I2 ..), of a question on memory (M1 ..) or on a detector (D1 ..), or A1, and unique together with
    `name`. `figure` was measured, `limit` is where it fails, `bound` is the 99 % upper bound of the figure, `n` samples
    were examined; None where there is no such number. `sentence` says what was measured.
    `broken` are the numbers of the samples that the suite left robust and this check broke.

    A check *failed* where the figure lies surely above the limit; it *passed* where the figure is within the limit and
    surely below what the level promises to exclude; *not shown* is neither.

    The ids in `MATTER` decide whether an audit passed: what they examine would change the printed number. Of these
    `EXPERIMENTS` attack the samples that the suite left robust; a claim without one of them is not audited. The others
    are on how the number is reported (C2, C12, C16), on how attacks run (F5, I2, I3, I4), or for information.
    """

    id: str
    name: str
    verdict: Verdict
    figure: float | None = None
    limit: float | None = None
    bound: float | None = None
    n: int | None = None
    sentence: str
    broken: tuple[int, ...] = ()


def failed(checks: Iterable[Check]) -> list[Check]:
    """The failed checks, which a report prints beside its headline numbers."""
    return [check for check in checks if check.verdict == "failed"]


def lower_confidence_bound(k: float, n: float) -> float:
    """Lower end of the 99 % Clopper-Pearson interval of a share, for `k` of `n` samples.

    A check fails when this exceeds its limit, so a few unlucky samples are no finding: for a limit of 0.2 points it
    takes 3 of 64 samples, for 1 point 4. Of the checks of honest models that are at their limits one in 200 fails.
    """
    return float(beta.ppf(0.005, k, n - k + 1)) if k else 0.0


def upper_confidence_bound(k: float, n: float) -> float:
    """One-sided 99 % Clopper-Pearson upper bound of a share, for `k` of `n` samples: 6.9 % for 0 of 64."""
    return float(beta.ppf(0.99, k + 1, n - k)) if k < n else 1.0


def state(checks: Iterable[Check]) -> State:
    """What the checks of a page, or of one claim, say together.

    An audit failed where any check failed; it passed where each that matters passed or does not apply. Without robust
    samples there is nothing to audit; without an experiment on those there are, a claim is not audited.
    """
    checks = list(checks)
    tried = [check for check in checks if check.id in EXPERIMENTS and not check.name.startswith("recorded")]
    if failed(checks):
        return "failed"
    if all(check.verdict == "not applicable" for check in tried):
        return "nothing to audit" if any(NO_SAMPLES in check.sentence for check in tried) else "not audited"
    decisive = [check for check in checks if check.id in MATTER]
    return "not shown" if any(check.verdict == "not shown" for check in decisive) else "passed"


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer without samples: its verdict and sentence, and what was measured."""

    verdict: Verdict
    sentence: str
    figure: float | None = None
    bound: float | None = None


@dataclass(frozen=True, kw_only=True)
class Share:
    """An answer of samples, which `share_check` judges: `k` of `n` are affected, of all that were examined if None.

    `limit` and `excludes`, where they are given, stand in place of the question's and of the level's.
    """

    k: int
    sentence: str
    bad: str = ""
    n: int | None = None
    of: float = 1.0
    limit: float | None = None
    excludes: float | None = None
    what: Literal["points", "samples"] = "samples"
    broken: tuple[int, ...] = ()


Answer = Share | Said | str  # a text: why the question does not apply


def counted(k: int, sentence: str) -> Said:
    """An answer that looks at everything there is, so that nothing is estimated: it fails where `k` is not 0."""
    return Said(verdict="failed" if k else "passed", figure=k, sentence=sentence)


def judged(answer: Answer, *, id: str, name: str, limit: float | None, n: int, excludes: float) -> Check:
    """The check that an answer is: `n` samples were examined, and the level excludes what it says."""
    if isinstance(answer, str):
        return Check(id=id, name=name, verdict="not applicable", limit=limit, sentence=answer)
    if isinstance(answer, Said):
        limit = None if answer.figure is None else limit
        return Check(id=id, name=name, limit=limit, **vars(answer))
    own = {field: value for field, value in vars(answer).items() if value is not None}
    return share_check(id=id, name=name, **{"limit": limit, "n": n, "excludes": excludes, **own})


def share_check(
    *,
    id: str,
    name: str,
    k: int,
    n: int,
    limit: float,
    excludes: float,
    sentence: str,
    bad: str,
    of: float = 1.0,
    what: Literal["points", "samples"] = "samples",
    broken: tuple[int, ...] = (),
) -> Check:
    """A check of the share of all samples that is affected, of which `k` of the `n` examined ones are.

    These represent the share `of` of all samples. It fails where surely more than `limit` is affected; it passes where
    no more than `limit` was seen and the bound lies below `limit` or below `excludes`, what the level promises. The
    sentence goes on with `bad`, or with the bound, in points of accuracy or in samples. Not applicable without samples.
    """
    if n == 0:
        return Check(id=id, name=name, verdict="not applicable", limit=limit, sentence=NO_SAMPLES)
    verdict = _verdict(k, n, of, limit, excludes)
    bound = of * upper_confidence_bound(k, n)
    shown = f"{100 * bound:.1f} {'points' if what == 'points' else '% of the samples'}"
    missed = "could be missed" if what == "points" else "could be so"
    if verdict == "failed":
        end = bad
    elif verdict == "passed":
        end = f"at most {shown} {missed}"
    else:
        end = f"not enough to tell, up to {shown} {missed}; {_needed(k, n, of, limit, excludes)}"
    return Check(
        id=id,
        name=name,
        verdict=verdict,
        figure=of * k / n,
        limit=limit,
        bound=bound,
        n=n,
        sentence=f"{sentence}: {end}.",
        broken=broken,
    )


def _verdict(k: float, n: float, of: float, limit: float, excludes: float) -> Verdict:
    if of * lower_confidence_bound(k, n) > limit:
        return "failed"
    surely = of * upper_confidence_bound(k, n) <= max(limit, excludes)
    return "passed" if surely and of * k / n <= limit else "not shown"


def _needed(k: int, n: int, of: float, limit: float, excludes: float) -> str:
    """Number of samples that would settle it if the same share of them were affected; in doubling steps."""
    more = 2 * n
    while more < 1e6 and _verdict(k / n * more, more, of, limit, excludes) == "not shown":
        more = math.ceil(1.25 * more)
    return f"about {more:,} samples would settle it" if more < 1e6 else "no number of samples would settle it"


def from_record(record: dict[str, Any]) -> Check:
    """The check that was stored as a dictionary."""
    return Check(**{**record, "broken": tuple(record["broken"])})
