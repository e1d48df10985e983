"""The thesis' own figures for checkpoints (Matyasko 2020, Table 3.1), the histogram of Fig. 3.6 and pictures.

python benchmarks/thesis_metrics.py NAME=CKPT ... --output DIR [--images 1000] [--split test] [--data-root data]

evaluate.py is what robust accuracies come from. Here are the definitions that it does not share: FGSM without clipping,
rho of perturbations that may leave [0, 1], and its three averages.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import gaussian_kde
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from attacks import DeepFool, HighConfidence, guard  # noqa: E402
from attacks.deepfool import relative_robustness  # noqa: E402
from attacks.gradient import input_gradient  # noqa: E402
from attacks.norms import NORMS  # noqa: E402
from attacks.objectives import ce  # noqa: E402
from datamodules import MNIST  # noqa: E402
from evaluation.checkpoint import load_network  # noqa: E402
from evaluation.report.grids import confidence_grid, target_grid  # noqa: E402


def metrics(network: nn.Module, x: Tensor, y: Tensor, eps: float = 0.2, steps: int = 50) -> dict[str, Any]:
    """Error, FGSM error and rho of `network` on images (N, C, H, W) in [0, 1]; "each" holds rho of every correct one.

    rho_correct is eq. 3.20; rho_all counts misclassified images as 0 (eq. 4.9); rho_predicted moves every image away
    from what the network says. Failures of DeepFool keep their r, as in the thesis: "found" is its success rate.
    """
    parts = []
    attack = DeepFool(steps=steps, max_step=0.5, box=False)
    with guard(network):
        for x_, y_ in zip(x.split(250), y.split(250), strict=True):
            with torch.no_grad():
                predicted = network(x_).argmax(1)
            step = eps * input_gradient(network, x_, y_, ce)[0].sign()
            r, found = attack.displacement(network, x_, y_)
            away, _ = attack.displacement(network, x_, predicted)
            with torch.no_grad():
                free, clipped = (network(z).argmax(1) != y_ for z in (x_ + step, (x_ + step).clamp(0, 1)))
            parts.append((predicted == y_, free, clipped, r, found, away))
    correct, free, clipped, r, found, away = (torch.cat(column) for column in zip(*parts, strict=True))
    lit = correct & (NORMS["l2"].distance(x) > 0)  # of a black image there is no relative length
    each = NORMS["l2"].distance(r)[lit] / NORMS["l2"].distance(x)[lit]
    return {
        "n": len(x),
        "error": float((~correct).float().mean()),
        "fgsm_error_unclipped": float(free.float().mean()),
        "fgsm_error_clipped": float(clipped.float().mean()),
        "rho_correct": float(relative_robustness(r, x, correct)),
        "rho_all": float(relative_robustness(r * correct.view(-1, 1, 1, 1), x)),
        "rho_predicted": float(relative_robustness(away, x)),
        "found": float(found[correct].float().mean()),
        "each": each.tolist(),
    }


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
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    images = MNIST(root=options.data_root, val_size=10_000).dataset(options.split)
    x, y, _ = images.__getitems__(list(range(options.images)))
    firsts = torch.stack([(y == k).nonzero()[0, 0] for k in range(10) if (y == k).any()])
    options.output.mkdir(parents=True, exist_ok=True)
    board = SummaryWriter(str(options.output))
    rows: dict[str, dict[str, Any]] = {}
    names = ("error", "fgsm_error_unclipped", "fgsm_error_clipped", "rho_correct", "rho_all", "rho_predicted", "found")
    print("| model |", " | ".join(names), "|\n|---" + "|---" * len(names) + "|")
    for model in options.models:
        name, _, path = model.partition("=")
        network, _ = load_network(path)
        rows[name] = metrics(network, x, y)
        print(f"| {name} |", " | ".join(f"{rows[name][key]:.4f}" for key in names), "|", flush=True)
        pictures = {
            "targets": target_grid(network, HighConfidence(confidence=0.95, targeted=True), x[firsts], y[firsts]),
            "confidence": confidence_grid(network, HighConfidence(), x[firsts], y[firsts], (0.35, 0.6, 0.98)),
        }
        for kind, picture in pictures.items():
            board.add_image(f"{name}/{kind}", picture)
            plt.imsave(options.output / f"{name}_{kind}.png", picture.permute(1, 2, 0).numpy())
        board.add_histogram(f"{name}/rho", torch.tensor(rows[name]["each"]))
    histogram({name: row["each"] for name, row in rows.items()}, options.output / "rho.png")
    figures = {name: {key: value for key, value in row.items() if key != "each"} for name, row in rows.items()}
    (options.output / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    board.close()


if __name__ == "__main__":
    main()
