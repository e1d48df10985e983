"""An evaluation that survives a kill: every process attacks its own samples and stores every batch in its ledger."""

from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.worker import run_campaign

__all__ = ["Campaign", "run_campaign"]
