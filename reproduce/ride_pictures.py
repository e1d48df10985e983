"""Pictures of the data that ride_figures.py wrote.

python -m adversarial_lightning.reproduce.ride_pictures DIR
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def trace(folder: Path) -> Figure:
    """Figs. 2 and 6, of the first image that the attack breaks and the fit corrects, else of the first image."""
    rows = [
        {k: float(v) for k, v in row.items()} for row in csv.DictReader((folder / "trace.csv").read_text().splitlines())
    ]
    images: dict[float, list[dict[str, float]]] = {}
    for row in rows:
        images.setdefault(row["image"], []).append(row)
    classes = sum(name[0] == "p" for name in rows[0])

    def right(row: dict[str, float]) -> bool:
        return max(range(classes), key=lambda k: row[f"p{k}"]) == row["label"]

    shown = next((r for r in images.values() if not right(r[0]) and right(r[-1])), images[0.0])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, other = figure.subplots(1, 2)
    x = [row["iteration"] for row in shown]
    for k in range(classes):
        own = k == shown[0]["label"]
        left.plot(x, [row[f"p{k}"] for row in shown], lw=2.5 if own else 1, label=f"{k}{' (true)' * own}")
    left.set(xlabel="iteration", ylabel="confidence", title=f"Fig. 2, image {int(shown[0]['image'])}")
    for name in ("dist2gt", "dist2adv"):
        other.plot(x, [row[name] for row in shown], label=name)
    other.set(xlabel="iteration", ylabel="grey levels", title="Fig. 6")
    for axes in (left, other):
        axes.legend(fontsize=6)
    return figure


def panel(curves: dict[str, Any], name: str) -> Figure:
    """Figs. 4, 5 and 9: accuracy and distances over the iterations of the fit."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    values = ("accuracy", "dist2gt", "dist2adv")
    for axes, value in zip(figure.subplots(1, 3), values, strict=True):
        for k, (curve, points) in enumerate(curves.items()):
            style = "--" if "no dropout" in curve or "fixed" in curve else "-"
            colour = f"C{k % 4 if name == '5a' else k}"
            axes.plot(points["iteration"], points[value], style, color=colour, label=curve)
        axes.set(xlabel="iteration", title=f"Fig. {name}: {value}")
    figure.axes[0].legend(fontsize=6)
    return figure


def white_box(runs: dict[str, Any]) -> Figure:
    """Fig. 7, a row for each radius: histograms of the distances, and accuracies over the steps of the attack."""
    figure = Figure(figsize=(13, 3.2 * len(runs)), layout="constrained")
    for row, (eps, defenses) in zip(figure.subplots(len(runs), 4, squeeze=False), runs.items(), strict=True):
        for axes, name in zip(row, ("defend2adv", "adv2gt", "defend2gt"), strict=False):
            for defense, run in defenses.items():
                axes.hist(run["distances"][name], bins=15, histtype="step", label=defense)
            axes.set(xlabel="grey levels", title=f"Fig. 7a: {name}, eps {eps}")
        for k, (defense, run) in enumerate(defenses.items()):
            row[3].plot(run["defended"], "-", color=f"C{k}", label=f"{defense}, defended")
            row[3].plot(run["adversarial"], "--", color=f"C{k}", label=f"{defense}, without the defense")
        row[3].set(xlabel="step of the attack", ylabel="accuracy", ylim=(0, 1.02), title=f"Fig. 7b, eps {eps}")
        for axes in (row[0], row[3]):
            axes.legend(fontsize=6)
    return figure


def sweep(rows: list[dict[str, Any]]) -> Figure:
    """Tables 4 to 6: accuracy over the filters' one parameter."""
    filters = list(dict.fromkeys(row["filter"] for row in rows))
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(filters)), filters, strict=True):
        own = [row for row in rows if row["filter"] == name]
        for view in (key for key in own[0] if key not in ("filter", "value")):
            axes.plot([f"{row['value']:g}" for row in own], [row[view] for row in own], "o-", ms=3, label=view)
        axes.set(title=name, ylim=(0, 1.02), xlabel="window" if name == "median" else "weight")
        axes.tick_params(axis="x", labelsize=7, rotation=45)
    figure.axes[0].legend(fontsize=6)
    return figure


def grid(folder: Path) -> Figure:
    """Figs. 10 to 12: images and their predicted classes, red where wrong."""
    content = np.load(folder / "grid.npz")
    names = [name for name in content.files if f"{name} class" in content.files]
    images = len(content["label"])
    figure = Figure(figsize=(0.9 * images + 0.6, 1.1 * len(names)), layout="constrained")
    for row, name in zip(figure.subplots(len(names), images, squeeze=False), names, strict=True):
        for i, axes in enumerate(row):
            pixels = content[name][i].transpose(1, 2, 0)
            axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
            said = content[f"{name} class"][i]
            axes.set_title(str(said), fontsize=7, color="black" if said == content["label"][i] else "red", pad=1)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=7)
    return figure


def draw(folder: Path) -> None:
    """Draw all pictures into the folder of their data."""
    found = json.loads((folder / "figures.json").read_text())["figures"]
    figures = {"trace": trace(folder), "fig7": white_box(found["white_box"]), "grid": grid(folder)}
    figures |= {f"fig{name}": panel(curves, name) for name, curves in found["panels"].items()}
    figures["sweep"] = sweep(found["sweep"]["test"])
    for name, figure in figures.items():
        FigureCanvasAgg(figure).print_png(str(folder / f"{name}.png"))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
