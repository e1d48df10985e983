"""What an audit does to each claim: the samples that it broke are taken out of the headline number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adversarial_lightning.evaluation.audit.check import (
    Check,
    State,
    lower_confidence_bound,
    state,
    upper_confidence_bound,
)
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.audit.threat_models import QUANTILES, ThreatModel
from adversarial_lightning.evaluation.campaign.sample_status import robust_share

_BROKEN_BELOW = 1 / 3  # a stochastic model is right in at most this share of draws where a sample counts as broken


def summary(audit_run: AuditRun, checks: Sequence[Check]) -> dict[str, Any]:
    """Entries "state", "bound" and "claims" of the audit whose `checks` are all answered.

    "bound" is the largest share of all samples that experiments like these could have missed. A claim has "norm",
    "eps", and "quantile" of lengths or None; "robust_accuracy" as the suite left it; of the "examined" robust samples
    the numbers "broken" were broken by any check; "at_most" is the robust accuracy without these, "estimate" what it
    were if all robust samples had been examined, with its 99 % "interval"; "bound" and "state" of its checks.
    """
    claims = [_claim(audit_run, threat_model) for threat_model in audit_run.audited_threat_models]
    bounds = [claim["bound"] for claim in claims if claim["bound"] is not None]
    return {"state": _worst(claims, checks), "bound": max(bounds, default=None), "claims": claims}


def _worst(claims: Sequence[Mapping[str, Any]], checks: Sequence[Check]) -> State:
    """State of the page: a failed check first, then claims that were not audited."""
    known = {claim["state"] for claim in claims}
    whole = state(checks)
    if whole == "failed" or not claims:
        return whole if whole == "failed" else "not audited"
    return "not audited" if "not audited" in known else whole


def _claim(audit_run: AuditRun, threat_model: ThreatModel) -> dict[str, Any]:
    status, found = audit_run.status, audit_run.found_about(threat_model)
    shares = robust_share(status.worst_case(threat_model.norm, threat_model.eps), status.draws)
    broken = sorted({number for check in found.values() for number in check.broken})
    most = _BROKEN_BELOW if audit_run.stochastic else 0.0
    left = np.where(np.isin(status.samples, broken), np.minimum(shares, most), shares)
    together = audit_run.found[f"A1 {threat_model.title}"]
    k, n, of = len(broken), together.n or 0, float(shares.mean())
    bounds = [of * (1 - upper_confidence_bound(k, n)), of * (1 - lower_confidence_bound(k, n))] if n else None
    return {
        **{"norm": threat_model.norm, "eps": threat_model.eps},
        "quantile": None if threat_model.quantile is None else QUANTILES[threat_model.quantile],
        **{"robust_accuracy": of, "examined": n, "broken": broken, "at_most": float(left.mean())},
        **{"estimate": of * (1 - k / n) if n else None, "interval": bounds},
        **{"bound": together.bound, "state": state(found.values())},
    }
