"""How results are told: results.json, report.md, report.html, TensorBoard, and several evaluations side by side."""

from adversarial_lightning.evaluation.report.markdown import headlines
from adversarial_lightning.evaluation.report.write import write_comparison, write_report

__all__ = ["headlines", "write_comparison", "write_report"]
