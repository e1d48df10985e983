"""Precision check: do attacks in low precision break as many samples as in float32? Both, on some of the samples."""

from dataclasses import replace
from typing import Any

from torch import nn

from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import robust_share, threat_models
from adversarial_lightning.evaluation.campaign.worker import run_campaign

_SAMPLES = 128
_LIMIT = 0.01  # of these samples may be robust only because the attack ran in low precision


def check_precision(campaign: Campaign, model: nn.Module, batch_size: int) -> list[dict[str, Any]]:
    """For every threat model, the robust accuracy of some of a campaign's samples, in float32 and as it ran.

    `campaign` is finished; its suite is run again in float32 on up to 128 samples, with ledgers in the folder `parity`,
    so that an interruption costs little. "passed" where low precision leaves at most 1 % more of them robust.
    """
    exact = replace(
        campaign,
        n=min(_SAMPLES, campaign.n),
        folder=campaign.folder / "parity",
        identity=f"{campaign.identity} in float32",
    )
    run_campaign(exact, model, batch_size=batch_size)
    statuses = [c.status(exact.samples) for c in (campaign, exact)]
    cases = []
    for norm, eps in threat_models(campaign.suite):
        low, full = (float(robust_share(s.worst_case(norm, eps), s.draws).mean()) for s in statuses)
        case = {"norm": norm, "eps": eps, "n": exact.n, "float32": full, "low_precision": low}
        cases.append({**case, "passed": low - full <= _LIMIT})
    return cases
