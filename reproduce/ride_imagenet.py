"""RIDE's Tables 4 to 6 on 125 photographs, and Table 1 under images made on another classifier (EfficientNet-Lite1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import FGSM, PGD, Attack, Noise
from adversarial_lightning.datamodules import ImageNet
from adversarial_lightning.defenses import Median, Purifier, TVBregman
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.statistics import wilson
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_images
from adversarial_lightning.networks import TimmClassifier
from adversarial_lightning.reproduce.papers.measure import measured
from adversarial_lightning.reproduce.ride_figures import SWEEPS

FILES = ("imagenet_sample_125.tar", "efficientnet_lite0.safetensors", "efficientnet_lite1.safetensors")


def transfer(
    *, checkpoint: Path | None, data: str | None, n: int | None, output: Path, eps: float = 0.015, steps: int = 40
) -> dict[str, Any]:
    """Accuracies of EfficientNet-Lite0 behind filters under FGSM and PGD on Lite1, with 95 % intervals.

    `data` is the folder of FILES. Raises UserError where one is missing.
    """
    judge, maker = (classifier(data, name) for name in FILES[1:])
    filters: dict[str, Purifier | None] = {"none": None, "median 7": Median(7), "tv 0.75": TVBregman(0.75)}
    return _judged(judge, maker, data, n, filters, eps, steps)


def filters(
    *, checkpoint: Path | None, data: str | None, n: int | None, output: Path, eps: float = 0.015, steps: int = 40
) -> dict[str, Any]:
    """Tables 4 to 6: accuracies of EfficientNet-Lite0 behind each filter under FGSM and PGD on it alone.

    As `transfer`.
    """
    judge = classifier(data, FILES[1])
    tried: dict[str, Purifier | None] = {}
    for name, (kind, values) in SWEEPS.items():
        tried |= {f"{name} {v:g}": kind(int(v) if kind is Median else v) for v in values}
    return _judged(judge, judge, data, n, tried, eps, steps)


def classifier(data: str | None, name: str) -> TimmClassifier:
    """EfficientNet-Lite of a file in the folder `data`. Raises UserError where one of FILES is missing."""
    folder = Path(data or "data")
    if missing := [name for name in FILES if not (folder / name).exists()]:
        raise UserError(f"{folder.absolute()} lacks {', '.join(missing)}: set --data-root to the folder that has them")
    return TimmClassifier(f"tf_{Path(name).stem}", weights=str(folder / name)).eval()


def _judged(
    judge: nn.Module,
    maker: nn.Module,
    data: str | None,
    n: int | None,
    filters: Mapping[str, Purifier | None],
    eps: float,
    steps: int,
) -> dict[str, Any]:
    """Accuracies of `judge` behind `filters`, on clean images and on those that FGSM and PGD make on `maker`."""
    images = ImageNet(root=str(Path(data or "data") / FILES[0]), workers=0).dataset("test")
    x, y, index = random_images(images, n or len(images))
    attacks: dict[str, Attack] = {"fgsm": FGSM(eps=eps), "pgd": PGD(eps=eps, steps=steps)}
    right: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(x)).split(25):
        noise = Noise.keyed(0, index[rows]).fork("attacker")
        views = {name: attack(maker, x[rows], y[rows], noise) for name, attack in attacks.items()}
        with torch.no_grad():
            for view, z in {"clean": x[rows], **views}.items():
                for name, purifier in filters.items():
                    hits = judge(z if purifier is None else purifier(z)).argmax(1) == y[rows]
                    right.setdefault(f"{name}, {view}", []).append(hits)
    found: dict[str, tuple[float | None, list[float] | None]] = {}
    for name, parts in right.items():
        share = float(torch.cat(parts).double().mean())
        found[name] = share, list(wilson(share, len(x)))
    return measured(Samples("all" if len(x) == len(images) else "random", 0, len(x), len(images)), found)
