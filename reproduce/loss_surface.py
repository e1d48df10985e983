"""Cross-entropy round test images, along the sign of the gradient and a random sign vector (Fig. 10, ER-Classifier).

python -m adversarial_lightning.reproduce.loss_surface --checkpoints ER=CKPT Madry=CKPT --output DIR [--radius 0.06]
    [--tensorboard DIR]

CE(x + a sign(grad CE) + b r), r a Rademacher vector, the same for all models; a, b in [-radius, radius], not clipped.
A smooth surface that rises along a agrees with the gradient; a flat one with cliffs along b indicates a masked
gradient. Writes loss_surface.json, then loss_surface.png: models in rows, images in columns.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from adversarial_lightning import datamodules
from adversarial_lightning.attacks import Noise
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.evaluation.outcomes.subset import random_images
from adversarial_lightning.evaluation.report.embeddings import draw_surfaces, rademacher, surface
from adversarial_lightning.reproduce.pictures import keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoints", nargs="+", required=True, metavar="NAME=CKPT")
    add("--output", type=Path, required=True)
    add("--root", help="folder of the data, where it is not the checkpoint's")
    add("--images", type=int, default=5, help="number of test images, a random subset")
    add("--radius", type=float, default=0.06)
    add("--points", type=int, default=41, help="on each axis")
    add("--clip", action="store_true", help="clip the images to [0, 1]")
    add("--tensorboard", type=Path)
    options = parser.parse_args()
    models = dict(entry.split("=", 1) for entry in options.checkpoints)
    steps = torch.linspace(-options.radius, options.radius, options.points)
    found: dict[str, Any] = {"axis": steps.tolist(), "clip": options.clip, "models": {}}
    for name, path in models.items():
        network, spec = load_network(path)
        assert spec is not None
        moved = {"root": options.root} if options.root else {}
        data = build({**spec, "init_args": {**spec["init_args"], **moved}}, catalogue(datamodules))
        x, y, index = random_images(data.dataset("test"), options.images)
        r = rademacher(x, Noise.keyed(0, index))
        found["models"][name] = surface(network, x, y, r, steps, options.clip).tolist()
        found["index"] = index.tolist()
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "loss_surface.json").write_text(json.dumps(found) + "\n")
    titles = [f"image {number}" for number in found["index"]]
    keep(draw_surfaces(steps, found["models"], titles), options.output / "loss_surface.png", options.tensorboard)


if __name__ == "__main__":
    main()
