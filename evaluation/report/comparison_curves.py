"""Curves of several evaluations over the radius."""

from collections.abc import Mapping
from typing import Any

from adversarial_lightning.evaluation.report import formatting
from adversarial_lightning.evaluation.report.after_audit import doubted
from adversarial_lightning.evaluation.report.figures import ReportFigure, Series, over_radius, worst_case_line

Results = dict[str, Any]


def curves_of(models: Mapping[str, Results]) -> list[ReportFigure]:
    """Robust accuracy over the radius, one line for each model: of worst cases, and of each minimum-norm attack.

    Worst cases are drawn as the audit left them. Recorded rows hold a minimum-norm curve of one point, which is no line
    and is left out.
    """
    lines: dict[tuple[str, str], list[Series]] = {}
    for name, r in models.items():
        for norm in dict.fromkeys(c["norm"] for c in r["worst_case"] if c["eps"] is not None):
            line = worst_case_line(r, norm, name)
            if len(line.x) > 1:
                lines.setdefault((norm, "worst case"), []).append(line)
        for a in r["attacks"]:
            if a.get("curve") and len(a["curve"]["eps"]) > 1:
                said = f"{name}{', before the audit' * doubted(r, a['norm'])}"
                line = Series(said, a["curve"]["eps"], a["curve"]["robust_accuracy"], step=True)
                lines.setdefault((a["norm"], a["name"]), []).append(line)
    drawn = []
    for (norm, what), series in lines.items():
        if len(series) > 1:
            caption = f"Robust accuracy over the {formatting.SYMBOLS[norm]} radius: {what}."
            half = [f"{s.name} {formatting.half(s.x, s.y)}" for s in series]
            alt = f"{caption} Radius where it is half of the first value: {'; '.join(half)}."
            drawn.append(ReportFigure(f"curves/{norm}/{what}", over_radius(norm, series), caption, alt))
    return drawn
