"""Robust accuracy over the radius, drawn from one run of each minimum-norm attack."""

import uuid
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(results: dict[str, Any], path: Path) -> bool:
    """Write a PNG with one panel a norm, one line an attack; returns whether there was anything to draw."""
    attacks = [a for a in results["attacks"] if a.get("curve")]
    norms = list(dict.fromkeys(a["norm"] for a in attacks))
    if not norms:
        return False
    figure = Figure(figsize=(4 * len(norms), 3), layout="constrained")
    panels = figure.subplots(1, len(norms), squeeze=False, sharey=True)[0]
    for norm, panel in zip(norms, panels, strict=True):
        for a in attacks:
            if a["norm"] == norm:
                panel.step(a["curve"]["eps"], a["curve"]["robust_accuracy"], where="post", label=a["name"])
        panel.set(xlabel=f"{norm} radius", ylim=(0, 1))
        panel.legend()
    panels[0].set_ylabel("robust accuracy")
    half = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    FigureCanvasAgg(figure).print_png(str(half))
    half.replace(path)
    return True
