"""Cross-entropy round test images, along the sign of the gradient and a random sign vector (Fig. 10, ER-Classifier).

python benchmarks/loss_surface.py --checkpoints ER=CKPT Madry=CKPT --output DIR [--radius 0.06] [--tensorboard DIR]

CE(x + a sign(grad CE) + b r), r a Rademacher vector, the same for all models; a, b in [-radius, radius], not clipped.
A smooth surface that rises along a is what gradients can be trusted on; a flat one with cliffs along b is a masked
gradient. Writes loss_surface.json, then loss_surface.png: a row a model, a column an image.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import datamodules  # noqa: E402
from attacks import Noise, guard  # noqa: E402
from attacks.gradient import input_gradient  # noqa: E402
from attacks.objectives import ce  # noqa: E402
from evaluation import build, catalogue, load_network  # noqa: E402


def surface(model: nn.Module, x: Tensor, y: Tensor, r: Tensor, steps: Tensor, clip: bool = False) -> Tensor:
    """Cross-entropy (B, n, n) at ``x + a sign(gradient) + b r`` for a (first) and b (second) in `steps` (n,)."""
    with guard(model):
        slope = input_gradient(model, x, y, ce)[0].sign()
        with torch.no_grad():
            rows = []
            for a in steps:
                points = x[None] + a * slope[None] + steps.view(-1, *[1] * x.ndim) * r[None]
                points = points.clamp(0, 1) if clip else points
                losses = ce(model(points.flatten(0, 1)), y.repeat(len(steps)))
                rows.append(losses.view(len(steps), len(x)).T)
    return torch.stack(rows, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoints", nargs="+", required=True, metavar="NAME=CKPT")
    add("--output", type=Path, required=True)
    add("--root", help="folder of the data, where it is not the checkpoint's")
    add("--images", type=int, default=5, help="the first so many test images")
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
        x, y, index = data.dataset("test").__getitems__(list(range(options.images)))
        r = torch.where(Noise.keyed(0, index).fork("surface").uniform(x) < 0.5, -1.0, 1.0)
        found["models"][name] = surface(network, x, y, r, steps, options.clip).tolist()
        found["index"] = index.tolist()
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "loss_surface.json").write_text(json.dumps(found) + "\n")
    figure = Figure(figsize=(3 * options.images, 3 * len(models)))
    a, b = torch.meshgrid(steps, steps, indexing="ij")
    for row, (name, surfaces) in enumerate(found["models"].items()):
        for column, values in enumerate(surfaces):
            place = row * options.images + column + 1
            panel: Any = figure.add_subplot(len(models), options.images, place, projection="3d")
            panel.plot_surface(a.numpy(), b.numpy(), np.array(values), cmap="viridis")
            panel.set_title(f"{name}, image {found['index'][column]}", fontsize=8)
            panel.tick_params(labelsize=5)
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(str(options.output / "loss_surface.png"))
    if options.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(options.tensorboard)) as writer:
            writer.add_image("loss_surface", np.asarray(canvas.buffer_rgba())[:, :, :3], dataformats="HWC")


if __name__ == "__main__":
    main()
