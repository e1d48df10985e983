"""t-SNE of clean and adversarial embeddings (Figs. 5, 6, 11 and 12 of the ER-Classifier paper), as data and a picture.

python -m adversarial_lightning.reproduce.embeddings --checkpoints E-CLA=CKPT ER-minus=CKPT --output DIR [--joint]
    [--tensorboard DIR]

One row for each model, clean left and adversarial (PGD) right; colour: true class; triangle: misclassified, dot: not.
Each plot has its own fit, so axes are not shared; --joint fits both versions of a model together. Writes embeddings.csv
(model, version, number, label, prediction, x, y, code) and embeddings.png; --tensorboard puts the picture there, too.
"""

import argparse
import csv
from pathlib import Path

import torch

from adversarial_lightning import datamodules
from adversarial_lightning.attacks import PGD, Noise
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.evaluation.outcomes.subset import random_images
from adversarial_lightning.evaluation.report.embeddings import draw_embeddings, encode, flatten
from adversarial_lightning.reproduce.pictures import keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoints", nargs="+", required=True, metavar="NAME=CKPT", help="networks with an encoder")
    add("--output", type=Path, required=True)
    add("--root", help="folder of the data, where it is not the checkpoint's")
    add("--images", type=int, default=2000, help="number of test images, a random subset")
    add("--eps", type=float, default=0.3)
    add("--steps", type=int, default=40)
    add("--joint", action="store_true")
    add("--tensorboard", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    models = dict(entry.split("=", 1) for entry in options.checkpoints)
    panels = []
    with open(options.output / "embeddings.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "version", "index", "label", "prediction", "x", "y", "code"])
        for name, path in models.items():
            network, spec = load_network(path)
            assert spec is not None
            moved = {"root": options.root} if options.root else {}
            data = build({**spec, "init_args": {**spec["init_args"], **moved}}, catalogue(datamodules))
            x, y, index = random_images(data.dataset("test"), options.images)
            attack = PGD(eps=options.eps, steps=options.steps)
            parts = zip(x.split(100), y.split(100), index.split(100), strict=True)
            attacked = torch.cat([attack(network, a, b, Noise.keyed(0, i)) for a, b, i in parts])
            codes, predictions = zip(*(encode(network, version) for version in (x, attacked)), strict=True)
            points = flatten(codes, options.joint)
            versions = list(zip(("clean", "adversarial"), points, predictions, codes, strict=True))
            panels.append([(f"{name}, {version}", flat, y, said) for version, flat, said, _ in versions])
            for version, flat, said, code in versions:
                for k in range(len(x)):
                    numbers = [" ".join(f"{v:.6g}" for v in part[k]) for part in (flat, code)]
                    facts = [int(index[k]), int(y[k]), int(said[k])]
                    rows.writerow([name, version, *facts, *numbers[0].split(), numbers[1]])
    keep(draw_embeddings(panels), options.output / "embeddings.png", options.tensorboard)


if __name__ == "__main__":
    main()
