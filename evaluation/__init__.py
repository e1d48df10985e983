"""What the outcomes say: per-sample records, ledgers, worst cases, reports. Nothing here imports defenses or data."""

from adversarial_lightning.evaluation.campaign import Campaign
from adversarial_lightning.evaluation.checkpoint import build, catalogue, describe, load_network
from adversarial_lightning.evaluation.outcome import Outcome, evaluate_batch, robust
from adversarial_lightning.evaluation.report import write_comparison, write_report

__all__ = [
    "Campaign",
    "Outcome",
    "build",
    "catalogue",
    "describe",
    "evaluate_batch",
    "load_network",
    "robust",
    "write_comparison",
    "write_report",
]
