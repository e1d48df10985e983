"""The thesis' own figures for checkpoints (Matyasko 2020, Tables 3.1 and 3.2), the histogram of Fig. 3.6 and pictures.

python -m adversarial_lightning.reproduce.thesis_metrics NAME=CKPT ... --output DIR [--images 1000] [--split test]
    [--eps 0.2]
    [--space input|preprocessed] [--data-root DIR]

Robust accuracies come from evaluate.py. Here are definitions of the thesis that differ: FGSM without clipping,
rho of perturbations that may leave [0, 1], its three averages, and attacks on images that were preprocessed beforehand
(Table 3.2, whitened: --space preprocessed --eps 0.05). The images are those that the first checkpoint names.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

from adversarial_lightning.errors import UserError

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import gaussian_kde
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from adversarial_lightning import datamodules
from adversarial_lightning.attacks import DeepFool, HighConfidence
from adversarial_lightning.attacks.core.gradient import ce, input_gradient
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.evaluation.outcomes.statistics import bootstrap, mean, sampling_interval, wilson
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_images
from adversarial_lightning.evaluation.report.grids import CONFIDENCES, confidence_grid, target_grid
from adversarial_lightning.networks import Whiten
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.reproduce.papers.measure import measured


def metrics(
    network: nn.Module, x: Tensor, y: Tensor, eps: float = 0.2, steps: int = 50, of: int | None = None
) -> dict[str, Any]:
    """Error, FGSM error and rho of `network` on images (N, C, H, W) in [0, 1]; "each" holds rho of every correct one.

    All are under chapter 3's DeepFool; chapter 4's is another metric, in the suite thesis_table4_1. rho_correct is eq.
    3.20; rho_all counts misclassified images as 0, as eq. 4.9 does; rho_predicted moves every image away from what the
    network says. Failures of DeepFool keep the length that they reached, as in the thesis, and stay in every mean:
    "found" is its success rate, "failed" their number. Each has its 95 % "interval" over images, where the images are a
    random subset `of` so many (none: of very many); null where they are all.
    """
    samples = Samples("all" if of == len(x) else "random", 0, len(x), of or 10**9)
    parts = []
    attack = DeepFool(steps=steps, max_step=0.5, box=False)
    with frozen_eval(network):
        for x_, y_ in zip(x.split(250), y.split(250), strict=True):
            with torch.no_grad():
                predicted = network(x_).argmax(1)
            step = eps * input_gradient(network, x_, y_, ce)[0].sign()
            r, found = attack.displacement(network, x_, y_)
            away, wrong = r.clone(), predicted != y_  # where the prediction is right, it is the same attack
            if wrong.any():
                away[wrong] = attack.displacement(network, x_[wrong], predicted[wrong])[0]
            with torch.no_grad():
                free, clipped = (network(z).argmax(1) != y_ for z in (x_ + step, (x_ + step).clamp(0, 1)))
            parts.append((predicted == y_, free, clipped, r, found, away))
    correct, free, clipped, r, found, away = (torch.cat(column) for column in zip(*parts, strict=True))
    lit = NORMS["l2"].distance(x) > 0  # of a black image there is no relative length

    def ratios(r: Tensor, rows: Tensor) -> list[float]:
        values: list[float] = (NORMS["l2"].distance(r)[rows] / NORMS["l2"].distance(x)[rows]).tolist()
        return values

    shares = {"error": ~correct, "fgsm_error_unclipped": free, "fgsm_error_clipped": clipped}
    found_shares = {name: float(wrong.double().mean()) for name, wrong in shares.items()}
    each = {
        "rho_correct": ratios(r, lit & correct),
        "rho_all": ratios(r * correct.view(-1, 1, 1, 1), lit),
        "rho_predicted": ratios(away, lit),
    }
    return {
        **{"n": len(x), "correct": int(correct.sum()), **found_shares},
        **{name: mean(values) for name, values in each.items()},
        **{"found": float(found[correct].double().mean()), "failed": int((correct & ~found).sum())},
        "interval": {name: sampling_interval(share, samples) for name, share in found_shares.items()}
        | {name: bootstrap(values, samples) for name, values in each.items()},
        "each": each["rho_correct"],
    }


def measure(
    *, checkpoint: Path, data: str | None, n: int | None, output: Path, eps: float = 0.2, space: str = "input"
) -> dict[str, Any]:
    """Chapter 3's numbers of a checkpoint for a paper's table: `metrics` on `n` random test images (none: all).

    With `space` "preprocessed" attacks are made on whitened images, as Table 3.2 may have. Intervals of all test images
    are for another test set of that size. "failed" is a number of images, and has none.
    """
    network, images = loaded(checkpoint, data)
    x, y, _ = random_images(images, n or len(images))
    if space == "preprocessed":
        network, x = whitened(network, x)
    found = metrics(network, x, y, eps, of=None if len(x) == len(images) else len(images))
    keys = ("error", "fgsm_error_unclipped", "fgsm_error_clipped", "rho_correct", "rho_all", "rho_predicted")
    numbers = {key: (found[key], found["interval"][key]) for key in keys}
    numbers |= {"found": (found["found"], wilson(found["found"], found["correct"])), "failed": (found["failed"], None)}
    chosen: Literal["all", "random"] = "all" if len(x) == len(images) else "random"
    return measured(Samples(chosen, 0 if chosen == "random" else None, len(x), len(images)), numbers)


def loaded(checkpoint: Path, data: str | None, split: str = "test") -> tuple[nn.Module, Any]:
    """Network of a checkpoint, and the images of a split of its data, which lie in `data` (none: as trained).

    Raises UserError where the checkpoint does not say which data it was trained on.
    """
    network, spec = load_network(checkpoint)
    if spec is None:
        raise UserError(f"{checkpoint} does not say which data it was trained on")
    if data:
        spec["init_args"]["root"] = data
    return network, build(spec, catalogue(datamodules)).dataset(split)


def cell(row: Mapping[str, Any], key: str) -> str:
    """A figure with its interval; of DeepFool's successes, how many there were."""
    if key == "found":
        return f"{row['correct'] - row['failed']} of {row['correct']}"
    bounds = row["interval"][key]
    return f"{row[key]:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


def whitened(network: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Network without its whitening layer, and the whitened images. ValueError where there is no such layer."""
    layers = getattr(network, "layers", None)
    if not isinstance(layers, nn.Sequential) or not isinstance(layers[0], Whiten):
        raise UserError(f"{type(network).__name__} does not start with networks.Whiten: use --space input")
    with torch.no_grad():
        return nn.Sequential(*layers[1:]), torch.cat([layers[0](part) for part in x.split(250)])


def examples(networks: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Figs. 3.1 and 3.7, (3, H', W'): images `x`, and below them adversarial ones by DeepFool for each network."""
    attack = DeepFool(steps=50, max_step=0.5)
    grid: Tensor = make_grid(torch.cat([x, *(attack(network, x, y) for network in networks)]), nrow=len(x))
    return grid


def histogram(rho: Mapping[str, list[float]], path: Path) -> None:
    """Kernel densities of rho, one line a model (Fig. 3.6)."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, values in rho.items():
        grid = np.linspace(0, 1.05 * max(map(max, rho.values())), 300)
        axes.plot(grid, gaussian_kde(values)(grid), label=name)
    axes.set(xlabel=r"$\|r\|_2 / \|x\|_2$", ylabel="density")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=CKPT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--split", default="test", choices=["test", "val"])
    parser.add_argument("--eps", type=float, default=0.2, help="of FGSM")
    parser.add_argument("--space", default="input", choices=["input", "preprocessed"])
    parser.add_argument("--data-root")
    options = parser.parse_args()
    loaded = {name: load_network(path) for name, _, path in (model.partition("=") for model in options.models)}
    spec = next(iter(loaded.values()))[1]
    if spec is None:
        raise SystemExit("the first checkpoint does not say which data it was trained on")
    if options.data_root:
        spec["init_args"]["root"] = options.data_root
    images = build(spec, catalogue(datamodules)).dataset(options.split)
    x, y, _ = random_images(images, options.images)
    firsts = torch.stack([(y == k).nonzero()[0, 0] for k in y.unique()])
    options.output.mkdir(parents=True, exist_ok=True)
    board = SummaryWriter(str(options.output))
    rows: dict[str, dict[str, Any]] = {}
    names = ("error", "fgsm_error_unclipped", "fgsm_error_clipped", "rho_correct", "rho_all", "rho_predicted", "found")
    print(f"n = {len(x)} of {len(images)} images; in brackets 95 % intervals over images")
    print("| model |", " | ".join(names), "|\n|---" + "|---" * len(names) + "|")
    pictures = {"examples": examples([network for network, _ in loaded.values()], x[firsts], y[firsts])}
    for name, (network, _) in loaded.items():
        behind, seen = whitened(network, x) if options.space == "preprocessed" else (network, x)
        rows[name] = metrics(behind, seen, y, options.eps, of=len(images))
        print(f"| {name} |", " | ".join(cell(rows[name], key) for key in names), "|", flush=True)
        pictures[f"{name}/targets"] = target_grid(
            network, HighConfidence(confidence=0.95, targeted=True), x[firsts], y[firsts]
        )
        pictures[f"{name}/confidence"] = confidence_grid(network, HighConfidence(), x[firsts], y[firsts], CONFIDENCES)
        board.add_histogram(f"{name}/rho", torch.tensor(rows[name]["each"]))
    for kind, picture in pictures.items():
        board.add_image(kind, picture)
        plt.imsave(options.output / f"{kind.replace('/', '_')}.png", picture.permute(1, 2, 0).numpy())
    histogram({name: row["each"] for name, row in rows.items()}, options.output / "rho.png")
    figures = {name: {key: value for key, value in row.items() if key != "each"} for name, row in rows.items()}
    (options.output / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    board.close()


if __name__ == "__main__":
    main()
