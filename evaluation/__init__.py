"""What do the outcomes say? Attack campaigns, outcomes of samples, audits and reports."""

from adversarial_lightning.evaluation.campaign import Campaign, run_campaign
from adversarial_lightning.evaluation.outcomes import Outcome, evaluate_batch, robust
from adversarial_lightning.evaluation.report import write_comparison, write_report

__all__ = ["Campaign", "Outcome", "evaluate_batch", "robust", "run_campaign", "write_comparison", "write_report"]
