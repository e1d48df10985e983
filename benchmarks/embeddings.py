"""t-SNE of clean and adversarial embeddings (Figs. 5, 6, 11 and 12 of the ER-Classifier paper), as data and a picture.

python benchmarks/embeddings.py --checkpoints E-CLA=CKPT ER-minus=CKPT --output DIR [--joint] [--tensorboard DIR]

A row a model, clean left and adversarial (PGD) right; colour: true class; triangle: misclassified, dot: not. Each panel
is a fit of its own, so panels share no axes; --joint fits the two of a model together. Writes embeddings.csv (model,
version, number, label, prediction, x, y, code) and embeddings.png; --tensorboard puts the picture there, too.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import datamodules  # noqa: E402
from attacks import PGD, Noise, guard  # noqa: E402
from detectors import ERDetector  # noqa: E402
from evaluation import build, catalogue, load_network  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoints", nargs="+", required=True, metavar="NAME=CKPT", help="networks with an encoder")
    add("--output", type=Path, required=True)
    add("--root", help="folder of the data, where it is not the checkpoint's")
    add("--images", type=int, default=2000, help="the first so many test images")
    add("--eps", type=float, default=0.3)
    add("--steps", type=int, default=40)
    add("--joint", action="store_true")
    add("--tensorboard", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    models = dict(entry.split("=", 1) for entry in options.checkpoints)
    figure = Figure(figsize=(9, 4 * len(models)), layout="constrained")
    panels = figure.subplots(len(models), 2, squeeze=False)
    with open(options.output / "embeddings.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "version", "index", "label", "prediction", "x", "y", "code"])
        for (name, path), (left, right) in zip(models.items(), panels, strict=True):
            network, spec = load_network(path)
            assert spec is not None
            moved = {"root": options.root} if options.root else {}
            data = build({**spec, "init_args": {**spec["init_args"], **moved}}, catalogue(datamodules))
            x, y, index = data.dataset("test").__getitems__(list(range(options.images)))
            encode = ERDetector(network).codes
            attack = PGD(eps=options.eps, steps=options.steps)
            codes, predictions = [], []
            parts = zip(x.split(100), y.split(100), index.split(100), strict=True)
            attacked = torch.cat([attack(network, a, b, Noise.keyed(0, i)) for a, b, i in parts])
            for version in (x, attacked):
                with guard(network), torch.no_grad():
                    seen = [encode(batch) for batch in version.split(200)]
                predictions.append(torch.cat([logits.argmax(1) for logits, _ in seen]))
                codes.append(torch.cat([code for _, code in seen]).numpy())
            groups = [np.concatenate(codes)] if options.joint else codes
            fits = [TSNE(perplexity=30, init="pca", random_state=0).fit_transform(group) for group in groups]
            points = np.concatenate(fits).reshape(2, len(x), 2)
            for panel, version, flat, prediction, code in zip(
                (left, right), ("clean", "adversarial"), points, predictions, codes, strict=True
            ):
                for wrong, marker in ((False, "."), (True, "v")):
                    chosen = ((prediction != y) == wrong).numpy()
                    colours = y.numpy()[chosen]
                    panel.scatter(*flat[chosen].T, c=colours, marker=marker, s=7, cmap="tab10", vmin=0, vmax=9)
                panel.set(title=f"{name}, {version}", xticks=[], yticks=[])
                for k in range(len(x)):
                    numbers = [" ".join(f"{v:.6g}" for v in part[k]) for part in (flat, code)]
                    facts = [int(index[k]), int(y[k]), int(prediction[k])]
                    rows.writerow([name, version, *facts, *numbers[0].split(), numbers[1]])
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(str(options.output / "embeddings.png"))
    if options.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(options.tensorboard)) as writer:
            writer.add_image("embeddings", np.asarray(canvas.buffer_rgba())[:, :, :3], dataformats="HWC")


if __name__ == "__main__":
    main()
