"""Test error and rho against C (Matyasko 2020, Figs. 3.4 and 3.5): trains, measures, plots, writes to TensorBoard.

python -m adversarial_lightning.reproduce.sweep_margin --output DIR [--network mlp|lenet]
    [--penalties 1 1e-1 ... 1e-6] [--seeds 3]
    [--epochs 100] [--train-limit N] [--images 1000] [--split val] [--data-root data]

Every run's figures are kept in DIR/runs.json, settings and machine in DIR/sweep.json; the same command continues after
an interruption. Figures are of held-out training images by default, since a C may be chosen by them; --split test is
for the figure itself.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from adversarial_lightning.callbacks import CollapseGuard
from adversarial_lightning.datamodules import MNIST
from adversarial_lightning.evaluation.outcomes.subset import random_images
from adversarial_lightning.lightning_modules import Exponential, MarginMaximization
from adversarial_lightning.networks import MLP, LeNet5
from adversarial_lightning.reproduce.record import about
from adversarial_lightning.reproduce.thesis_metrics import metrics

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": partial(MLP, hidden=[1000, 1000, 1000], init="glorot"),
    "lenet": partial(LeNet5, init="glorot"),
}


def train(network: nn.Module, penalty: float, q: int, epochs: int, data: MNIST) -> None:
    """Train `network` in place, with the thesis' settings."""
    module = MarginMaximization(network, penalty, 1 if q == 1 else 2, schedule=Exponential())
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    pl.Trainer(
        max_epochs=epochs,
        devices=1,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=[CollapseGuard()],
        **quiet,  # type: ignore[arg-type]
    ).fit(module, data)


def draw(runs: list[dict[str, float]], path: Path) -> None:
    """Draw error and rho over C with bands of three standard deviations of the seeds."""
    penalties = sorted({run["C"] for run in runs})
    figure, left = plt.subplots(figsize=(6, 4))
    right = left.twinx()
    for axes, key, colour in ((left, "error", "tab:red"), (right, "rho_correct", "tab:blue")):
        values = [np.array([run[key] for run in runs if run["C"] == c]) for c in penalties]
        mean, std = np.array([v.mean() for v in values]), np.array([v.std() for v in values])
        axes.semilogx(penalties, mean, "o-", color=colour)
        axes.fill_between(penalties, mean - 3 * std, mean + 3 * std, color=colour, alpha=0.2)
        axes.set_ylabel({"error": "error", "rho_correct": r"$\rho_{adv}$"}[key], color=colour)
    left.set_xlabel("C")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--network", default="mlp", choices=NETWORKS)
    parser.add_argument("--hidden", type=int, nargs="+", help="other widths of the MLP's hidden layers")
    parser.add_argument("--penalties", type=float, nargs="+", default=[10.0**-k for k in range(7)])
    parser.add_argument("--q", type=int, default=2, choices=[1, 2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--split", default="val", choices=["val", "test"])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    given = ("output", "data_root", "note", "penalties", "seeds")  # what may change from one call to the next
    settings = {name: value for name, value in vars(options).items() if name not in given}
    about_file, kept = options.output / "sweep.json", options.output / "runs.json"
    if about_file.exists() and (before := json.loads(about_file.read_text())["settings"]) != settings:
        raise SystemExit(f"{options.output} holds runs with other settings, {before}: choose another --output")
    about_file.write_text(json.dumps({**about(options.note), "settings": settings}, indent=2) + "\n")
    runs: list[dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else []
    data = MNIST(root=options.data_root, batch_size=100, val_size=10_000, train_limit=options.train_limit)
    images = data.dataset(options.split)
    x, y, _ = random_images(images, options.images)
    for seed in range(options.seeds):
        for penalty in options.penalties:
            if any(run["C"] == penalty and run["seed"] == seed for run in runs):
                continue
            pl.seed_everything(seed, verbose=False)
            widths = {"hidden": options.hidden} if options.hidden else {}
            network = NETWORKS[options.network](**widths)
            train(network, penalty, options.q, options.epochs, data)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            found = metrics(network.to(device), x.to(device), y.to(device), of=len(images))
            figures = {key: found[key] for key in ("error", "fgsm_error_unclipped", "rho_correct", "found")}
            runs.append({"C": penalty, "seed": seed, **figures})
            kept.write_text(json.dumps(runs, indent=2) + "\n")
            with SummaryWriter(str(options.output / f"C{penalty:g}_seed{seed}")) as board:
                hparams = {"C": penalty, "seed": seed, "q": options.q, "network": options.network}
                board.add_hparams(hparams, {f"hparam/{key}": value for key, value in figures.items()}, run_name=".")
            print(f"C {penalty:g}, seed {seed}:", ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)
    draw(runs, options.output / "sweep.png")


if __name__ == "__main__":
    main()
