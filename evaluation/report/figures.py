"""Figures of a report: SVG for light and dark pages, pixels for TensorBoard."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from adversarial_lightning.evaluation.report.after_audit import NOTHING, doubted, share, worthless
from adversarial_lightning.evaluation.report.formatting import SYMBOLS, number, percent, radius
from adversarial_lightning.evaluation.report.subject import class_name

Results = Mapping[str, Any]
Array = NDArray[Any]

INK, MUTED, GRID = "#24292f", "#6a737d", "#d9dee4"
LINES = ("#0b63b0", "#b3540a", "#1c7c4d", "#7a4cb3", "#b0264a", "#6b6206", "#0f7a85", "#57606b")
# Colours of a light page, each with its replacement on a dark page.
DARK = {
    INK: "#d8dde3",
    MUTED: "#98a2ad",
    GRID: "#353c45",
    LINES[0]: "#6fb2f5",
    LINES[1]: "#eb9d55",
    LINES[2]: "#5cca94",
    LINES[3]: "#bd9cf0",
    LINES[4]: "#f58ba6",
    LINES[5]: "#d3c54f",
    LINES[6]: "#5cc7d3",
    LINES[7]: "#aab4bf",
}
STYLES = ("-", "--", "-.", ":")
MOST_CLASSES = 20  # a confusion matrix with more cannot be read
STYLE: Any = {
    "svg.hashsalt": "report",  # the same figure is the same file
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "mathtext.default": "regular",
}
_MATH = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its name (a tag for TensorBoard), caption and alt text."""

    name: str
    figure: Figure
    caption: str
    alt: str

    @property
    def wide(self) -> bool:
        """Whether the figure takes the whole width of a page, so that its letters can be read."""
        return bool(self.figure.get_figwidth() > 6)

    def svg(self) -> str:
        """SVG for a light page."""
        file = io.BytesIO()
        with mpl.rc_context(STYLE):
            FigureCanvasSVG(self.figure).print_svg(file, metadata={"Date": None, "Creator": None})
        text = file.getvalue().decode()
        return text[text.index("<svg") :]

    def sources(self) -> tuple[str, str]:
        """Data URIs for a light and for a dark page."""
        light = self.svg()
        dark = re.sub("|".join(DARK), lambda colour: DARK[colour[0]], light)
        return uri(light.encode(), "svg+xml"), uri(dark.encode(), "svg+xml")

    def pixels(self) -> Array:
        """Pixels on a white background, uint8 (H, W, 3)."""
        canvas = FigureCanvasAgg(self.figure)
        with mpl.rc_context(STYLE):
            canvas.draw()
        rgba = np.asarray(canvas.buffer_rgba(), float)
        opaque = rgba[..., 3:] / 255
        pixels: Array = (rgba[..., :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)
        return pixels


def uri(content: bytes, kind: str) -> str:
    """Data URI of the bytes of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def curves(results: Results) -> list[ReportFigure]:
    """Draw robust accuracy over the radius, one figure for each norm.

    The lines are minimum-norm attacks, sweeps of budget attacks and, as the audit left them, worst cases. A norm with a
    single radius gets no figure.
    """
    drawn = []
    for norm in SYMBOLS:
        before = ", before the audit" * doubted(results, norm)
        attacks = [a for a in results["attacks"] if a.get("curve") and a["norm"] == norm]
        series = [
            Series(f"{a['name']}{before}", a["curve"]["eps"], a["curve"]["robust_accuracy"], step=True) for a in attacks
        ]
        cases = [c for c in results["worst_case"] if c["norm"] == norm]
        if not series and len(cases) < 2:
            continue
        said = [f"{s.name} decreases to {percent(min(s.y), results['n'])} at {max(s.x):.4g}" for s in series]
        series += [
            Series(f"{sweep['attack'].rpartition('.')[2]} at radii{before}", sweep["eps"], sweep["robust_accuracy"])
            for sweep in results["sweeps"]
            if sweep["norm"] == norm
        ]
        line = worst_case_line(results, norm, "worst case")
        lengths_left = [c for c in (results.get("audit") or {}).get("claims", ()) if c["quantile"] and c["broken"]]
        left = [c for c in lengths_left if c["norm"] == norm]
        series += [line] if line.x else []
        if left:
            series.append(Series("after the audit, at most", [c["eps"] for c in left], [c["at_most"] for c in left]))
        said += [
            f"{s.name} {percent(y, results['n'])} at {radius(x)}"
            for s in (line, *series[len(series) - bool(left) :])
            for x, y in zip(s.x, s.y, strict=True)
        ]
        lost = [radius(c["eps"]) for c in cases if worthless(results, c)]
        caption = f"Robust accuracy over the {SYMBOLS[norm]} radius" + (
            "; bars: 95 % intervals." if any(line.bounds) else "."
        )
        if lost:
            caption += f" At {', '.join(lost)} the audit failed, and {NOTHING}."
        figure = over_radius(norm, series, results["clean_accuracy"])
        drawn.append(ReportFigure(f"curves/{norm}", figure, caption, f"{caption} {'; '.join(said)}."))
    return drawn


@dataclass(frozen=True)
class Series:
    """One line over the radius: a `step` function of a minimum-norm attack, or points with `bounds`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    step: bool = False
    bounds: Sequence[Sequence[float] | None] = ()


def worst_case_line(results: Results, norm: str, name: str) -> Series:
    """Worst cases of a norm over the radius, as the audit left them; without those that say nothing."""
    found = [case for case in results["worst_case"] if case["norm"] == norm and not worthless(results, case)]
    found.sort(key=lambda case: float(case["eps"]))
    broken = [bool(case.get("broken_by_audit")) for case in found]
    bounds = [None if lower else case["interval"] for case, lower in zip(found, broken, strict=True)]
    said = f"{name}{', at most' * any(broken)}"
    return Series(said, [case["eps"] for case in found], [share(case) for case in found], bounds=bounds)


def over_radius(norm: str, series: Sequence[Series], clean: float | None = None) -> Figure:
    """Draw accuracy in per cent over the radius; `clean` marks the accuracy without an attack."""
    figure, axes = _blank()
    for i, line in enumerate(series):
        colour = LINES[i % len(LINES)]
        y = [100 * value for value in line.y]
        if line.step:
            axes.step(line.x, y, where="post", color=colour, ls=STYLES[i % len(STYLES)], lw=1.6, label=line.name)
            continue
        axes.plot(line.x, y, "o-" if len(y) > 1 else "o", color=colour, ms=4, lw=1.2, label=line.name, zorder=3)
        for x, bounds in zip(line.x, line.bounds, strict=False):  # bounds may be left out, and there may be none
            if bounds is None:
                continue
            axes.plot([x, x], [100 * b for b in bounds], color=colour, lw=1, marker="_", ms=5, zorder=3)
    if clean is not None:
        axes.axhline(100 * clean, color=MUTED, lw=0.8, ls=(0, (1, 3)))
        axes.annotate(
            "clean",
            (1, 100 * clean),
            (0, 2 if clean < 0.9 else -8),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=MUTED,
        )
    axes.set(xlabel=f"{_MATH.get(norm, norm)} radius", ylabel="robust accuracy, %", ylim=(-2, 102))
    axes.set_xlim(left=0)
    _legend(axes)
    return figure


def lengths(norm: str, found: Mapping[str, Array], radii: Sequence[float]) -> ReportFigure:
    """Draw histograms of the shortest perturbations, by attack; `radii` are those of this norm's threat models."""
    figure, axes = _blank()
    longest = max((float(v.max()) for v in found.values() if len(v)), default=1.0)
    edges = np.linspace(0, longest or 1.0, 41)
    for i, (name, values) in enumerate(found.items()):
        counts = np.histogram(values, edges)[0]
        style: Any = {"color": LINES[i % len(LINES)], "lw": 1.4, "ls": STYLES[i % len(STYLES)]}
        axes.stairs(counts, edges, label=name, **style)
    for eps in radii:
        if eps <= 1.5 * longest:
            axes.axvline(eps, color=MUTED, lw=0.9, ls=(0, (4, 3)))
            place: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(radius(eps), (eps, 1), (3, -8), **place, fontsize=7, color=MUTED)
    axes.set(xlabel=f"{_MATH.get(norm, norm)} length of the perturbation", ylabel="samples")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _legend(axes)
    said = [f"{name}: {len(v)} found, median {float(np.median(v)):.4g}" for name, v in found.items() if len(v)]
    marks = " Dashed: radii that are judged." if radii else ""
    caption = f"{SYMBOLS[norm]} lengths of the shortest perturbations found.{marks}"
    return ReportFigure(f"lengths/{norm}", figure, caption, f"{caption} {'; '.join(said)}.")


def scores(found: Mapping[str, Array]) -> list[ReportFigure]:
    """Draw histograms of a detector's scores of clean and, by attack, of attacked images; none without a detector."""
    finite = {name: values[np.isfinite(values)] for name, values in found.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    if not finite:
        return []
    figure, axes = _blank()
    low, high = min(float(v.min()) for v in finite.values()), max(float(v.max()) for v in finite.values())
    edges = np.linspace(low, high if high > low else low + 1, 41)
    for i, (name, values) in enumerate(finite.items()):
        part = np.histogram(values, edges)[0] / len(found[name])
        style: Any = {"color": LINES[i % len(LINES)], "lw": 1.4, "ls": STYLES[i % len(STYLES)]}
        axes.stairs(100 * part, edges, label=name, **style)
    axes.set(xlabel="score of the detector", ylabel="images, %")
    axes.set_ylim(bottom=0)
    _legend(axes)
    caption = "Detector scores of clean and attacked images; images with a score above the threshold are flagged."
    middle = [f"{name}: median {float(np.median(values)):.4g}" for name, values in found.items()]
    return [ReportFigure("detector/scores", figure, caption, f"{caption} {'; '.join(middle)}.")]


def roc(results: Results) -> list[ReportFigure]:
    """Draw the ROC curve of the detector, one line for each attack; none without a detector."""
    judged = [(a["name"], a["detection"]) for a in results["attacks"] if a.get("detection", {}).get("roc")]
    if not judged:
        return []
    figure, axes = _blank()
    for i, (name, d) in enumerate(judged):
        style: Any = {"color": LINES[i % len(LINES)], "lw": 1.4, "ls": STYLES[i % len(STYLES)]}
        axes.plot([100 * v for v in d["roc"]["fpr"]], [100 * v for v in d["roc"]["tpr"]], label=name, **style)
    axes.plot([0, 100], [0, 100], color=MUTED, lw=0.8, ls=(0, (1, 3)))
    axes.set(xlabel="clean images flagged, %", ylabel="attacked images flagged, %", ylim=(-2, 102))
    _legend(axes)
    caption = "Receiver operating characteristic of the detector; dotted: chance."
    said = "; ".join(f"{name}: area {number(d['auroc'])}" for name, d in judged)
    return [ReportFigure("detector/roc", figure, caption, f"{caption} {said}.")]


def confusion(
    title: str, heading: str, label: Array, adversarial: Array, names: Sequence[str] | None = None
) -> ReportFigure | None:
    """Draw the confusion matrix under attack, with true classes in rows; None where no sample is broken.

    `label` and `adversarial` (m,) are classes of the samples that are right without an attack; -1: logits that are not
    finite; `names` are those of the classes. More than `MOST_CLASSES` classes are shown as the most frequent pairs.
    """
    broken = label != adversarial
    if not broken.any():
        return None
    pairs, counts = np.unique(np.stack([label[broken], adversarial[broken]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    named = [class_name(int(c), names) for c in (*pairs[0], *pairs[1])]
    frequent = [(named[i], named[i + len(counts)], int(counts[i])) for i in order[:10]]
    said = ", ".join(f"{a} as {b} ({count})" for a, b, count in frequent[:5])
    classes = np.unique(np.concatenate([label, adversarial]))
    if len(classes) <= MOST_CLASSES:
        figure = _matrix(classes, label, adversarial, names)
    else:
        figure, axes = _blank()
        axes.barh([f"{a} as {b}" for a, b, _ in frequent], [c for *_, c in frequent], color=LINES[0], height=0.6)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="samples", ylabel="true class as predicted class")
    caption = f"{heading}: most often {said}."
    return ReportFigure(f"confusion/{title}", figure, caption, f"Confusions, {caption}")


def _matrix(classes: Array, label: Array, adversarial: Array, names: Sequence[str] | None) -> Figure:
    """Draw cells shaded by their share of the row; the diagonal, robust samples, is only outlined."""
    k = len(classes)
    counts = np.zeros((k, k), int)
    np.add.at(counts, (np.searchsorted(classes, label), np.searchsorted(classes, adversarial)), 1)
    figure, axes = _blank(square=True)
    total = np.maximum(counts.sum(1), 1)
    for i, j in zip(*np.nonzero(counts), strict=True):
        if i == j:
            look: Any = {"fill": False, "ec": GRID, "lw": 0.8}
        else:
            look = {"fc": LINES[1], "alpha": 0.12 + 0.75 * counts[i, j] / total[i], "lw": 0}
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **look))
        if k <= 12:
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color=MUTED if i == j else INK)
    ticks = [class_name(int(c), names) for c in classes]
    upright = max(map(len, ticks)) > 2
    axes.set(xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5), aspect="equal", xlabel="under attack", ylabel="true class")
    axes.set_xticks(range(k), ticks, rotation=90 if upright else 0)
    axes.set_yticks(range(k), ticks)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def _blank(square: bool = False) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.0 if square else 3.0), dpi=120, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(loc="best", frameon=False, fontsize=8, labelcolor=INK)
