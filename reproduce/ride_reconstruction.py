"""Reconstruction quality and time of RIDE on photographs, without a classifier; says nothing of robustness.

python -m adversarial_lightning.reproduce.ride_reconstruction --images FOLDER_OR_TAR [--limit 8] [--steps 75]
    [--stages 2] [--output FILE]

Fits ImageNet's network (in pixels, sigma 0.1) to images of 224 x 224, as they are and with every value moved by linf
eps up or down at random, which is as large as an attack, but is none. Prints PSNR to the untouched image before and
after the fit, the same behind the median and the mean of 3 x 3 pixels, seconds an image, and what the paper's 10,000
steps would take at that rate (140 s on a Titan X there). Images: a folder of class folders, or an archive of one.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.datamodules import ImageFolder
from adversarial_lightning.defenses import RIDE, MeanFilter, Median
from adversarial_lightning.defenses.base import Purifier
from adversarial_lightning.reproduce.record import record_benchmark


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, for pixels in [0, 1]."""
    return float(-10 * (a - b).square().flatten(1).mean(1).clamp(min=1e-12).log10().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=75)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    data = ImageFolder(root=options.images, image_size=options.size, val_size=1).dataset("test")
    index = torch.arange(min(options.limit, len(data)))
    x = torch.stack([data[i][0] for i in index.tolist()]).to(options.device)
    noise = Noise.keyed(0, index.to(options.device))
    moved = (x + options.eps * (2 * noise.fork("moved").uniform(x) - 1).sign()).clamp(0, 1)
    ride = RIDE(steps=options.steps, stages=options.stages, learning_rate=options.learning_rate)
    purifiers: dict[str, Purifier | None] = {
        "nothing": None,
        "mean 3": MeanFilter(3),
        "median 3": Median(3),
        "RIDE": ride,
    }
    figures = {}
    print(f"{len(x)} images of {options.size} x {options.size}; PSNR in dB to the untouched image")
    for name, purifier in purifiers.items():
        found = {}
        started, cpu = time.perf_counter(), time.process_time()
        for title, images in {"clean": x, f"moved by {options.eps:g}": moved}.items():
            with torch.no_grad(), noise_for(ride, noise):
                found[title] = psnr(images if purifier is None else purifier(images), x)
        seconds, cpu = (time.perf_counter() - started) / len(x) / 2, (time.process_time() - cpu) / len(x) / 2
        figures[name] = {**found, "seconds an image": seconds, "CPU seconds an image": cpu}
        print(f"{name}: " + ", ".join(f"{title} {value:.3g}" for title, value in figures[name].items()))
    paper = figures["RIDE"]["seconds an image"] / (options.steps * options.stages) * 10_000
    print(f"the paper's 10,000 steps at this rate: {paper:.0f} s an image (140 s on a Titan X in the paper)")
    figures["RIDE"]["seconds of 10,000 steps"] = paper
    if options.output:
        settings = {k: v for k, v in vars(options).items() if k not in ("images", "output")}
        record_benchmark(options.output, {}, settings, figures, f"{len(x)} photographs; no robustness is claimed")


if __name__ == "__main__":
    main()
