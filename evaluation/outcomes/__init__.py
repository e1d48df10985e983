"""One sample under one attack, measured and verified; and what many of them say."""

from adversarial_lightning.evaluation.outcomes.outcome import Outcome, evaluate_batch, robust

__all__ = ["Outcome", "evaluate_batch", "robust"]
