"""Lengths of perturbations by minimum-norm attacks with about 500 gradients for each image, ours and adv-lib's.

    python benchmarks/min_norm_quality.py --plain A.ckpt --robust B.ckpt [--data-root DIR] [--images 100] \\
        [--offset 1000] [--norm l2 ...] [--output results/attacks]

Attacks the correctly classified ones of `images` test images of MNIST by ours and, where it can be imported, adv-lib's.
A row: success, mean length over successes, median with failures as infinite, optimality (mean over images of the least
length in any row over this row's, 0 for failures), forwards and gradients an image, CPU time over that of adv-lib's
primal-dual row of the same norm (else of our first). Rows run one after the other: their times are exact to some 10 %;
times at equal gradients, in alternating order, are separate tables. The first row of each norm also draws the
robust-accuracy curve of its model, with the thresholds of the thesis (Matyasko 2020, chapter 5). --output records the
results as min_norm_quality.json and the curves as min_norm_curves.png.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from timing import ratios, table
from torch import Tensor, nn

from adversarial_lightning.attacks import DDN, FAB, FMN, PDGD, PDPGD, Attack, DeepFool, Noise
from adversarial_lightning.attacks.core.norms import distances
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.datamodules import MNIST
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.reproduce.record import record_benchmark

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]
NORMS = ["linf", "l2", "l1", "l0"]
TARGETS = {"linf": (1.0, 0.97), "l2": (1.0, 0.95), "l1": (1.0, 0.93), "l0": (1.05, 0.90)}  # over adv-lib; optimality
THRESHOLDS = {  # of the thesis' Tables 5.2 and 5.3
    "plain": {
        "linf": [0.03, 0.05, 0.07, 0.09, 0.11],
        "l2": [0.5, 1, 1.5, 2, 2.5],
        "l1": [2, 4, 6, 8, 10],
        "l0": [1, 3, 5, 8, 12],
    },
    "robust": {
        "linf": [0.2, 0.25, 0.3, 0.325, 0.35],
        "l2": [1, 1.5, 2, 2.5, 3],
        "l1": [2.5, 5, 7.5, 10, 12.5],
        "l0": [1, 3, 5, 8, 12],
    },
}

OURS: list[Attack] = [  # one line an attack; the first of a norm is the one with a target
    PDPGD("linf", step_size=0.3, steps=400, finetune=100),
    PDGD(steps=100, restarts=4, finetune=100, runners_up=3),
    PDPGD("l1", steps=100, restarts=4, finetune=100),
    PDPGD("l0", steps=100, restarts=4, finetune=100),
    PDPGD("linf"),
    PDGD(),
    PDPGD("l1"),
    PDPGD("l0"),
    PDPGD("linf", steps=100),
    PDGD(steps=100),
    PDPGD("l1", steps=100),
    PDPGD("l0", steps=100),
    FMN(norm="linf", steps=500),
    FMN(norm="l2", steps=500),
    FMN(norm="l1", steps=500),
    FMN(norm="l0", steps=500),
    FAB(norm="linf", steps=50),
    FAB(norm="l2", steps=50),
    FAB(norm="l1", steps=50),
    DDN(steps=500),
    DeepFool(norm="linf"),
    DeepFool(norm="l2"),
]


def adv_lib() -> dict[str, dict[str, Run]]:
    """Attacks of adv-lib by norm; none where it cannot be imported."""
    try:
        from adv_lib import attacks as theirs
    except ImportError as error:
        print(f"adv-lib is left out: {error}")
        return {norm: {} for norm in NORMS}
    inf = float("inf")
    return {
        "linf": {
            "PDPGD": partial(theirs.pdpgd, norm=inf),
            "PDPGD 100": partial(theirs.pdpgd, norm=inf, num_steps=100),
            "FMN": partial(theirs.fmn, norm=inf, steps=500),
            "FAB 50": partial(theirs.fab, norm=inf, n_iter=50),
        },
        "l2": {
            "PDGD": theirs.pdgd,
            "PDGD 100": partial(theirs.pdgd, num_steps=100),
            "ALMA": partial(theirs.alma, num_steps=500, distance="l2"),
            "DDN": partial(theirs.ddn, steps=500, levels=None),
            "FMN": partial(theirs.fmn, norm=2, steps=500),
            "FAB 50": partial(theirs.fab, norm=2, n_iter=50),
        },
        "l1": {
            "PDPGD": partial(theirs.pdpgd, norm=1),
            "PDPGD 100": partial(theirs.pdpgd, norm=1, num_steps=100),
            "ALMA": partial(theirs.alma, num_steps=500, distance="l1"),
            "FMN": partial(theirs.fmn, norm=1, steps=500),
            "FAB 50": partial(theirs.fab, norm=1, n_iter=50),
        },
        "l0": {
            "PDPGD 2/3": partial(theirs.pdpgd, norm=0, proximal_operator=23),
            "PDPGD 2/3 100": partial(theirs.pdpgd, norm=0, proximal_operator=23, num_steps=100),
            "sigma-zero": partial(theirs.sigma_zero, num_steps=500),
            "FMN": partial(theirs.fmn, norm=0, steps=500),
        },
    }


class Counted(nn.Module):
    """Counter of the images that pass forwards and backwards through a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, gradient: Tensor) -> None:
        # A gradient that a margin selects reaches each image; rows without one are still computed.
        self.backwards += len(gradient)


def name_of(attack: Attack) -> str:
    """Name of an attack: its class with the settings that differ from their defaults."""
    default = type(attack)()
    shown = [f"{k}={v}" for k, v in vars(attack).items() if v != getattr(default, k) and k != "norm"]
    return f"ours: {type(attack).__name__}({', '.join(shown)})"


def measure(run: Run, model: nn.Module, x: Tensor, y: Tensor, norm: str) -> tuple[Tensor, float, float, float]:
    """Lengths (B,), infinite for failures; seconds of CPU; forwards and backwards for each image."""
    counted = Counted(model).eval()
    start = time.process_time()
    with frozen_eval(counted):
        z = run(counted, x.clone(), y.clone()).detach().clamp(0, 1)
    seconds = time.process_time() - start
    with torch.no_grad():
        broken = model(z).argmax(1) != y
    d = torch.where((z - x).abs() > 1e-6, z - x, 0)  # rounding is no changed pixel
    lengths = distances(d)[norm].float().where(broken, torch.tensor(torch.inf))
    return lengths, seconds, counted.forwards / len(x), counted.backwards / len(x)


def compare(model: nn.Module, x: Tensor, y: Tensor, index: Tensor, norm: str) -> tuple[dict[str, Any], Tensor]:
    """Print the table of one model and norm; returns its numbers, and the lengths (B,) of the first row."""
    noise = Noise.keyed(0, index)
    ours: dict[str, Run] = {name_of(a): partial(a, noise=noise) for a in OURS if getattr(a, "norm", None) == norm}
    theirs = {f"adv-lib: {name}": run for name, run in adv_lib()[norm].items()}
    rows = {}
    for name, run in {**ours, **theirs}.items():
        try:
            rows[name] = measure(run, model, x, y, norm)
        except Exception as error:  # a library's failure is a row, not the end
            print(f"{name} failed: {type(error).__name__}: {error}")
    least = torch.stack([lengths for lengths, *_ in rows.values()]).amin(0)
    base = rows[next((n for n in rows if n.startswith("adv-lib: PD")), next(iter(rows)))][1]
    print("| attack | success | mean | median | optimality | forwards / gradients | CPU time |")
    print("|---|---|---|---|---|---|---|")
    figures: dict[str, dict[str, Any]] = {}
    for name, (lengths, seconds, forwards, backwards) in rows.items():
        found, median = lengths.isfinite(), lengths.median()
        row = {
            "success": found.float().mean().item(),
            "mean": lengths[found].mean().item() if found.any() else None,
            "median": median.item() if median.isfinite() else None,
            "optimality": (least / lengths).nan_to_num(1).mean().item(),
            "forwards": forwards,
            "gradients": backwards,
            "cpu_time": seconds / base,
        }
        figures[name] = {key: None if value is None else round(value, 5) for key, value in row.items()}
        print(
            f"| {name} | {found.float().mean():.0%} | {lengths[found].mean():.4g} | {median:.4g} "
            f"| {row['optimality']:.3f} | {forwards:.0f}/{backwards:.0f} | {row['cpu_time']:.2f} |"
        )
    print(f"| best of all, per image | | {least.mean():.4g} | {least.median():.4g} | | | |\n")
    ratio, optimality = TARGETS[norm]
    first = next(iter(rows))
    print(f"optimality of {first}: {figures[first]['optimality']:.3f} (target >= {optimality})")
    means = {name: row["mean"] for name, row in figures.items() if row["success"] == 1}
    others = [mean for name, mean in means.items() if name.startswith("adv-lib") and mean > 0]
    if others and first in means:
        over = means[first] / min(others)
        print(f"{first} over the best adv-lib row that never fails: {over:.3f} (target <= {ratio})")
    primal_dual = [name for name in means if name.startswith(("ours: PDGD", "ours: PDPGD"))]
    short, full = (next((n for n in primal_dual if n.endswith(end)), "") for end in ("(steps=100)", "()"))
    if short and full:
        print(f"100 steps over 500, {norm}: {means[short] / means[full]:.3f} (target <= 1.15)")
    return figures, rows[first][0]


def times(model: nn.Module, x: Tensor, y: Tensor, norm: str, steps: int, rounds: int) -> dict[str, Any]:
    """Print CPU time of ours over adv-lib's at equal gradients, in alternating order; returns the numbers."""
    theirs = next((run for name, run in adv_lib()[norm].items() if name.startswith("PD")), None)
    if theirs is None:
        return {}
    attack: Attack = PDGD(steps=steps) if norm == "l2" else PDPGD(norm, steps=steps)  # type: ignore[arg-type]
    name, noise = name_of(attack), Noise.keyed(0, torch.arange(len(x)))

    def other() -> None:
        with frozen_eval(model):
            theirs(model, x, y, num_steps=steps)

    rows = ratios({"adv-lib": other, name: lambda: attack(model, x, y, noise)}, rounds)
    print(f"\n{norm}, {steps} gradients for each of {len(x)} images:\n\n{table(rows, {name: '<= 1.05'})}", flush=True)
    return {"steps": steps, "images": len(x), "rounds": rounds, "cpu_time_ratio": [round(r, 3) for r in rows[name]]}


def curve(lengths: Tensor, total: int, radii: list[float]) -> list[float]:
    """Robust accuracy at the radii, of `total` images of which the correct ones are broken at `lengths`, or never."""
    return [int((lengths > eps * (1 + 1e-6)).sum()) / total for eps in radii]


def draw(found: dict[str, dict[str, Tensor]], total: int, path: Path) -> None:
    """Draw robust accuracy over the radius, one plot for each norm, one line for each model."""
    norms = list(next(iter(found.values())))
    figure = Figure(figsize=(4 * len(norms), 3), layout="constrained")
    plots = figure.subplots(1, len(norms), squeeze=False, sharey=True)[0]
    for norm, plot in zip(norms, plots, strict=True):
        for title, lengths in found.items():
            radii = [0.0, *lengths[norm][lengths[norm].isfinite()].sort().values.tolist()]
            plot.step(radii, curve(lengths[norm], total, radii), where="post", label=title)
        plot.set(xlabel=f"{norm} radius", ylim=(0, 1))
        plot.legend()
    plots[0].set_ylabel("robust accuracy")
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", type=Path, help="checkpoint of a normally trained model")
    parser.add_argument("--robust", type=Path, help="checkpoint of an adversarially trained model")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--offset", type=int, default=1000, help="number of the first test image")
    parser.add_argument("--norm", nargs="+", default=NORMS, choices=NORMS)
    parser.add_argument("--rounds", type=int, default=3, help="of the times at equal gradients; 0 for none")
    parser.add_argument("--output", type=Path, help="folder for min_norm_quality.json and min_norm_curves.png")
    parser.add_argument("--note", default="", help="what a reader of the record must know")
    options = parser.parse_args()
    checkpoints = {title: path for title in ("robust", "plain") if (path := getattr(options, title)) is not None}
    if not checkpoints:
        parser.error("give at least one checkpoint, --plain or --robust")
    torch.set_num_threads(1)
    index = torch.arange(options.offset, options.offset + options.images)
    x, y, _ = MNIST(root=options.data_root).dataset("test").__getitems__(index.tolist())
    figures: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, Tensor]] = {title: {} for title in checkpoints}
    for title, path in checkpoints.items():
        model = load_network(path)[0].eval()
        with torch.no_grad():
            right = model(x).argmax(1) == y
        part = figures[title] = {"correct": int(right.sum()), "rows": {}, "curves": {}, "times": {}}
        for norm in options.norm:
            print(f"\n## {title}, {norm}, {int(right.sum())} images\n", flush=True)
            part["rows"][norm], found[title][norm] = compare(model, x[right], y[right], index[right], norm)
        print(f"\n## {title}, robust accuracy, one run each\n\n| norm | attack | radius: accuracy |\n|---|---|---|")
        for norm, lengths in found[title].items():
            radii = THRESHOLDS[title][norm]
            accuracy = curve(lengths, options.images, radii)
            part["curves"][norm] = {"eps": radii, "robust_accuracy": accuracy}
            shown = ", ".join(f"{r:g}: {a:.3f}" for r, a in zip(radii, accuracy, strict=True))
            print(f"| {norm} | {next(iter(part['rows'][norm]))} | {shown} |", flush=True)
        if options.rounds and title == next(iter(checkpoints)):  # one model is enough: passes cost the same
            some = right.nonzero()[:32, 0]
            part["times"] = {norm: times(model, x[some], y[some], norm, 100, options.rounds) for norm in options.norm}
    if options.output is not None:
        names = ("images", "offset", "norm", "rounds")
        settings = {"data": "MNIST test", "threads": 1, "seed": 0, **{name: getattr(options, name) for name in names}}
        record_benchmark(options.output / "min_norm_quality.json", checkpoints, settings, figures, options.note)
        draw(found, options.images, options.output / "min_norm_curves.png")


if __name__ == "__main__":
    main()
