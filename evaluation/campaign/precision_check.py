"""Whether hastened attacks (bfloat16, compiled) fell as many samples as exact ones: both, on some of the samples."""

from dataclasses import replace
from typing import Any

from torch import nn

from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, standing, threat_models
from adversarial_lightning.evaluation.campaign.worker import run_campaign
from adversarial_lightning.evaluation.outcomes.types import Fate

_SAMPLES = 128
_LIMIT = 0.01  # of these samples may stand only because the attack was hastened


def parity(campaign: Campaign, model: nn.Module, batch_size: int) -> list[dict[str, Any]]:
    """For every threat model, the robust accuracy of a campaign's first samples under exact and under its attacks.

    `campaign` is finished; its suite is run again in float32 on up to 128 samples, journaled in the folder `parity`, so
    that an interruption costs little. "passed" where the hastened attacks leave at most 1 % of them more standing.
    """
    exact = replace(
        campaign,
        n=min(_SAMPLES, campaign.n),
        folder=campaign.folder / "parity",
        identity=f"{campaign.identity} in float32",
    )
    run_campaign(exact, model, batch_size=batch_size)
    verdicts = []
    for norm, eps in threat_models(campaign.suite):
        reached, due = (float(standing(_worst(c, exact, norm, eps), c.draws).mean()) for c in (campaign, exact))
        case = {"norm": norm, "eps": eps, "n": exact.n, "exact": due, "hastened": reached}
        verdicts.append({**case, "passed": reached - due <= _LIMIT})
    return verdicts


def _worst(campaign: Campaign, chosen: Campaign, norm: str, eps: float) -> Fate:
    """The fates of the `chosen` samples under a campaign's attacks that count against a threat model."""
    cascade = campaign.cascade(chosen.samples)
    for name in (CLEAN, *campaign.suite):
        for unit in campaign.units(name):
            cascade.record(unit, campaign.table(unit))
    return cascade.worst(norm, eps)
