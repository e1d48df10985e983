"""Reports: results.json, report.md, report.html and TensorBoard, and comparisons of several evaluations."""

from adversarial_lightning.evaluation.report.markdown import headlines
from adversarial_lightning.evaluation.report.subject import published_words
from adversarial_lightning.evaluation.report.write import write_comparison, write_report

__all__ = ["headlines", "published_words", "write_comparison", "write_report"]
