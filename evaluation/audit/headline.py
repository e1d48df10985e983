"""What an audit does to each claim: the samples that it broke are taken out of the headline number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adversarial_lightning.evaluation.audit.check import (
    MATTER,
    Check,
    State,
    lower_confidence_bound,
    state,
    upper_confidence_bound,
)
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.audit.threat_models import QUANTILES, ThreatModel
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, robust_share
from adversarial_lightning.evaluation.campaign.unions import UNION, Ball, unions
from adversarial_lightning.evaluation.outcomes.statistics import number
from adversarial_lightning.evaluation.outcomes.subset import random_numbers
from adversarial_lightning.evaluation.outcomes.types import Bits

_BROKEN_BELOW = 1 / 3  # a stochastic model is right in at most this share of draws where a sample counts as broken


def summary(audit_run: AuditRun, checks: Sequence[Check]) -> dict[str, Any]:
    """Entries "state", "bound" and "claims" of the audit whose `checks` are all answered.

    "bound" is the largest share of all samples that experiments like these could have missed. A claim has "norm",
    "eps", and "quantile" of lengths or None; the union of several norms has "members". "robust_accuracy" as the suite
    left it; "broken" are the numbers of the robust samples that any check broke in its ball, or in a ball inside it: of
    the same norm and a smaller radius, or a member of the union. Of the "examined" robust samples these are a part;
    "at_most" is the robust accuracy without them, "estimate" what it were if all robust samples had been examined, with
    its 99 % "interval", "classes" the accuracy without them of each class, ascending; "bound" and "state" of its
    checks. "says_nothing": failed checks that make the number worthless, where no sample was broken; else None.
    """
    audited = audit_run.audited_threat_models
    claims = [_of_ball(audit_run, threat_model) for threat_model in audited if not threat_model.part_of_union]
    claims += [_of_union(audit_run, balls) for balls in unions(audit_run.campaign.suite)]
    bounds = [claim["bound"] for claim in claims if claim["bound"] is not None]
    return {"state": _worst(claims, checks), "bound": max(bounds, default=None), "claims": claims}


def _worst(claims: Sequence[Mapping[str, Any]], checks: Sequence[Check]) -> State:
    """State of the page: a failed check first, then claims that were not audited."""
    known = {claim["state"] for claim in claims}
    whole = state(checks)
    if whole == "failed" or not claims:
        return whole if whole == "failed" else "not audited"
    return "not audited" if "not audited" in known else whole


def _of_ball(audit_run: AuditRun, threat_model: ThreatModel) -> dict[str, Any]:
    ball = threat_model.norm, threat_model.eps
    bits = audit_run.status.worst_case(*ball)
    quantile = None if threat_model.quantile is None else QUANTILES[threat_model.quantile]
    return {
        **{"norm": threat_model.norm, "eps": threat_model.eps, "quantile": quantile},
        **_numbers(audit_run, bits, [ball], [threat_model]),
    }


def _of_union(audit_run: AuditRun, balls: Sequence[Ball]) -> dict[str, Any]:
    parts = [t for t in audit_run.audited_threat_models if (t.norm, t.eps) in balls and t.quantile is None]
    members = [{"norm": norm, "eps": eps} for norm, eps in balls]
    return {
        **{"norm": UNION, "eps": None, "members": members, "quantile": None},
        **_numbers(audit_run, audit_run.status.union(balls), balls, parts),
    }


def _numbers(audit_run: AuditRun, bits: Bits, balls: Sequence[Ball], parts: Sequence[ThreatModel]) -> dict[str, Any]:
    """Numbers of a claim on `balls`, which the threat models `parts` examine; `bits` as the suite left the samples."""
    status, found = audit_run.status, [audit_run.found_about(part) for part in parts]
    shares = robust_share(bits, status.draws)
    robust = set(status.samples[shares >= 0.5].tolist())
    broken = _broken_inside(audit_run, balls) & robust
    most = _BROKEN_BELOW if audit_run.stochastic else 0.0
    left = np.where(np.isin(status.samples, list(broken)), np.minimum(shares, most), shares)
    examined = _examined(audit_run, parts) & robust
    k, n, of = len(broken & examined), len(examined), float(shares.mean())
    if len(parts) == 1:  # of a stochastic model without those that one more attack broke
        n = audit_run.found[f"A1 {parts[0].title}"].n or 0
        k = min(k, n)
    bounds = [of * (1 - upper_confidence_bound(k, n)), of * (1 - lower_confidence_bound(k, n))] if n else None
    label = audit_run.tables[CLEAN, 0]["label"]
    checks = [check for about in found for check in about.values()]
    return {
        **{"robust_accuracy": of, "examined": n, "broken": sorted(broken), "at_most": float(left.mean())},
        **{"estimate": of * (1 - k / n) if n else None, "interval": bounds},
        "classes": [number(float(left[label == c].mean())) for c in np.unique(label)],
        **{"bound": of * upper_confidence_bound(k, n) if n else None, "state": state(checks)},
        "says_nothing": None if broken else _worthless(audit_run, parts),
    }


def _broken_inside(audit_run: AuditRun, balls: Sequence[Ball]) -> set[int]:
    """Samples that a check broke in one of these balls: a point of a smaller one of the same norm lies there too."""
    return {
        broken
        for part in audit_run.audited_threat_models
        if any(part.norm == norm and part.eps <= eps for norm, eps in balls)
        for check in audit_run.found_about(part).values()
        for broken in check.broken
    }


def _examined(audit_run: AuditRun, parts: Sequence[ThreatModel]) -> set[int]:
    """Samples that the experiments examined in every ball; none where those of a ball could not be asked."""
    most = audit_run.budget.samples // (4 if audit_run.stochastic else 1)
    chosen = [
        set(random_numbers(part.samples, most, audit_run.campaign.sample_seed))
        if audit_run.found[f"A1 {part.title}"].n
        else set()
        for part in parts
    ]
    return set.intersection(*chosen) if chosen else set()


def _worthless(audit_run: AuditRun, parts: Sequence[ThreatModel]) -> str | None:
    """The failed checks that matter, of the whole model or of these balls, in words; None where there are none.

    Experiments break samples, which are taken out. A memory, a score that is evaded, or gradients that vanish break
    none: where they alone failed, nothing is known of how far the number is from the truth.
    """
    others = [t.title for t in audit_run.audited_threat_models if all(t is not part for part in parts)]
    failed = [
        f"{check.id} {check.name}"
        for key, check in audit_run.found.items()
        if check.verdict == "failed" and check.id in MATTER
        if not any(key.removesuffix(" with the detector").endswith(f" {title}") for title in others)
    ]
    return "; ".join(failed) or None
