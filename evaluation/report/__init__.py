"""How results are told: results.json, report.md, report.html, TensorBoard, and several evaluations side by side."""

from evaluation.report.markdown import headlines
from evaluation.report.write import write_comparison, write_report

__all__ = ["headlines", "write_comparison", "write_report"]
