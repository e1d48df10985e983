"""Pictures of the data that malade_figures.py wrote.

python -m adversarial_lightning.reproduce.malade_pictures DIR
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def three(rows: dict[str, Any], axes: Any) -> None:
    for name, row in rows.items():
        axes.plot(row["steps"], [p[0] for p in row["true"]], "o-", label=f"{name}: true class")
        axes.plot(row["steps"], [p[0] for p in row["best_other"]], "x--", label=f"{name}: best other class")
    axes.set(xlabel="steps", ylabel="probability", title="Fig. 3")


def five(found: dict[str, Any], axes: Any) -> None:
    for k, (name, curves) in enumerate(found["accuracy"].items()):
        for way, values in curves.items():
            axes.plot(found["eps"], values, "--" if way == "bpda" else "-", color=f"C{k}", label=f"{name}, {way}")
    axes.set(xlabel="linf radius", ylabel="accuracy", ylim=(0, 1.02), title="Fig. 5 (dashed: BPDA + EOT)")


def seven(found: dict[str, Any], axes: Any) -> None:
    for k, (name, scores) in enumerate(found.items()):
        for kind, style in (("clean", "-"), ("adversarial", "--")):
            label = f"{name}, {kind}" + (f", AUROC {scores['auroc']:.2f}" if kind == "adversarial" else "")
            axes.hist(scores[kind], bins=20, histtype="step", ls=style, color=f"C{k}", label=label)
        axes.axvline(scores["theta"]["0.05"], color=f"C{k}", lw=0.7)
    axes.set(xlabel="length of the score", title="Fig. 7 (lines: 5 % false positives)")


def six(found: dict[str, Any]) -> Figure:
    """Figs. 6b to d: the paper's accounting (solid) and the strict one (dashed)."""
    rates = list(next(iter(found["theta"].values())))
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, letter, fpr in zip(figure.subplots(1, len(rates)), "bcd", rates, strict=True):
        for k, (name, curves) in enumerate(found["accuracy"].items()):
            axes.plot(found["eps"], curves[fpr]["paper"], "-", color=f"C{k}", label=name)
            axes.plot(found["eps"], curves[fpr]["strict"], "--", color=f"C{k}")
        axes.set(xlabel="linf radius", ylim=(0, 1.02), title=f"Fig. 6{letter} on MNIST: FPR {100 * float(fpr):g} %")
    figure.axes[0].set(ylabel="accuracy (dashed: strict)")
    figure.axes[0].legend(fontsize=6)
    return figure


def grid(rows: list[Any], names: list[str], said: list[list[str]], colours: list[list[str]]) -> Figure:
    """Draw rows of images, named on the left, with the predicted class in the upper right corner of each image."""
    wide = len(rows[0])
    figure = Figure(figsize=(0.6 * wide + 1.3, 0.6 * len(rows)))
    for i, axes in enumerate(figure.subplots(len(rows), wide, squeeze=False).flat):
        axes.imshow(rows[i // wide][i % wide], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        words = {"ha": "right", "va": "top", "fontsize": 7, "transform": axes.transAxes}
        axes.text(0.97, 0.97, said[i // wide][i % wide], color=colours[i // wide][i % wide], **words)
        if i % wide == 0:
            axes.set_ylabel(names[i // wide], rotation=0, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(left=1.2 / (0.6 * wide + 1.3), right=0.995, top=0.99, bottom=0.01, wspace=0.05, hspace=0.05)
    return figure


def draw(folder: Path) -> None:
    """Draw Figs. 3, 5 and 7 in one picture, 6, C.8 to C.14 and C.15 to C.18 in one each, where the data exist."""
    found = json.loads((folder / "figures.json").read_text())["figures"]
    arrays = np.load(folder / "pictures.npz")
    pictures: dict[str, Figure] = {}
    simple = [(make, found[key]) for key, make in (("fig3", three), ("fig5", five), ("fig7", seven)) if key in found]
    if simple:
        pictures["fig3_5_7"] = Figure(figsize=(4.2 * len(simple), 3.6), layout="constrained")
        panels = pictures["fig3_5_7"].subplots(1, len(simple), squeeze=False)[0]
        for axes, (make, values) in zip(panels, simple, strict=True):
            make(values, axes)
            axes.legend(fontsize=5)
    if "fig6" in found:
        pictures["fig6"] = six(found["fig6"])
    if "c8" in found:
        rows = [arrays["clean"], *(arrays[name] for name in found["c8"])]
        share = [[""] * len(rows[0]), *([f"{100 * p:.0f}" for p in row["right"]] for row in found["c8"].values())]
        pictures["figC8_C14"] = grid(rows, ["clean", *found["c8"]], share, [["yellow"] * len(rows[0])] * len(rows))
    if "c15" in found:
        about = found["c15"]
        names, rows, said, colours = [], [], [], []
        for k, (name, decisions) in enumerate(about["said"].items()):
            label = about["labels"][max(0, k - 1)]  # C.15 and C.16 are the first image, C.17 and C.18 the next two
            for r, eps in enumerate(about["radii"]):
                names.append(f"{name}, eps {eps:g}")
                rows.append(arrays[name][r])
                said.append([str(decision) for decision in decisions[r]])
                colours.append(["yellow" if decision == label else "red" for decision in decisions[r]])
        pictures["figC15_C18"] = grid(rows, names, said, colours)
    for name, figure in pictures.items():
        FigureCanvasAgg(figure).print_png(str(folder / f"{name}.png"))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
