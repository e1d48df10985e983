"""Mean lengths of MALADE's salt and pepper noise (Fig. C.14) on test images."""

from pathlib import Path
from typing import Any

import torch

from adversarial_lightning import datamodules
from adversarial_lightning.attacks import Noise
from adversarial_lightning.attacks.core.norms import distances
from adversarial_lightning.attacks.corruptions import SaltAndPepper
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_images
from adversarial_lightning.reproduce.papers.measure import measured


def lengths(
    *, checkpoint: Path, data: str | None, n: int | None, output: Path, density: float = 0.25
) -> dict[str, Any]:
    """Means over `n` test images (none: all) of the noise's lengths in l1, l2 and linf, with 95 % intervals.

    The network of `checkpoint` does not take part: its run says where the images are.
    """
    network, spec = load_network(checkpoint)
    images = build(spec, catalogue(datamodules)).dataset("test")
    of = len(images)
    x, y, index = random_images(images, n or of)
    z = SaltAndPepper(density)(network, x, y, Noise.keyed(0, index).fork("attacker"))
    found: dict[str, tuple[float | None, list[float] | None]] = {}
    for norm, values in distances(z - x).items():
        found[norm] = mean_with_interval(values.double())
    return measured(Samples("all" if len(x) == of else "random", 0, len(x), of), found)


def mean_with_interval(values: torch.Tensor) -> tuple[float, list[float]]:
    """Mean of `values` (N,) and its 95 % interval, by the normal approximation."""
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return mean, [mean - half, mean + half]
