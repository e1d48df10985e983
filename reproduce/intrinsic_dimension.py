"""Intrinsic dimension of a data set from distances to nearest neighbours (Levina and Bickel 2005).

Table 10 of the ER-Classifier paper has MNIST 13, CIFAR10 17, STL10 20, Tiny ImageNet 19: the `levina` form, on a sample
of 1,000 images.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
import yaml
from scipy.stats import t as student
from torch import Tensor

from adversarial_lightning import datamodules
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_images
from adversarial_lightning.reproduce.papers.measure import measured
from adversarial_lightning.reproduce.papers.plan import packaged


def intrinsic_dimension(
    x: Tensor, k1: int = 10, k2: int = 20, estimator: Literal["levina", "mackay"] = "levina"
) -> tuple[float, dict[int, float], int]:
    """Estimate, estimates for every k from `k1` to `k2`, and number of duplicate rows of `x` (n, ...), left out.

    levina: mean over the images of m_k(x) = [sum_j log(T_k / T_j) / (k - 2)]^-1, j < k, then over k. mackay: the
    inverse of the mean of 1 / m_k with k - 1 (MacKay and Ghahramani 2005). T_j: distance to the j-th neighbour.
    Raises ValueError for k1 < 3, k2 < k1 and fewer than k2 + 1 different images.
    """
    flat = x.flatten(1).double().unique(dim=0)
    duplicates = len(x) - len(flat)
    if not 3 <= k1 <= k2 < len(flat):
        raise UserError(f"k1 ({k1}) must be at least 3, k2 ({k2}) between k1 and {len(flat)} different images - 1")
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    logs = distances.topk(k2, largest=False, sorted=True).values.log()
    found = {}
    for k in range(k1, k2 + 1):
        gaps = (logs[:, k - 1, None] - logs[:, : k - 1]).sum(1)
        found[k] = float(((k - 2) / gaps).mean() if estimator == "levina" else 1 / (gaps / (k - 1)).mean())
    return sum(found.values()) / len(found), found, duplicates


def over_samples(values: Sequence[float]) -> list[float] | None:
    """Student's 95 % interval of the mean of estimates from several samples; None for one."""
    if len(values) < 2:
        return None
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [round(mean(values) - half, 3), round(mean(values) + half, 3)]


def measure(
    *,
    checkpoint: Path | None = None,
    data: str | None,
    n: int | None,
    output: Path | None = None,
    data_set: str,
    seeds: Sequence[int] = tuple(range(10)),
) -> dict[str, Any]:
    """Intrinsic dimension of the training images of a packaged `data_set`: key ``dimension``, and ``mackay``.

    The mean over samples of `n` random images (None: 1,000), one for each of `seeds`, with its interval; one sample, as
    a paper has, may lie outside of it. `data` is the folder of the data; `checkpoint` and `output` are not used.
    Raises UserError for an unknown data set, and for data that are not there.
    """
    spec = yaml.safe_load(packaged("data", data_set).read_text(encoding="utf-8"))
    settings = dict(spec.get("init_args", {}))
    if data is not None:
        parts = Path(settings.get("root", "data")).parts[1:]  # data/FILE: the file lies in the folder of the data
        settings["root"] = str(Path(data, *parts))
    try:
        images = getattr(datamodules, spec["class_path"])(**settings).dataset("train")
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    count = min(n or 1000, len(images))
    numbers: dict[str, tuple[float | None, list[float] | None]] = {}
    samples = [random_images(images, count, seed)[0] for seed in seeds]
    for key, estimator in (("dimension", "levina"), ("mackay", "mackay")):
        values = [intrinsic_dimension(x, estimator=estimator)[0] for x in samples]  # type: ignore[arg-type]
        numbers[key] = (round(mean(values), 3), over_samples(values))
        print(f"{data_set}, {estimator}: {', '.join(f'{value:.3f}' for value in values)}")
    return measured(Samples("random", seeds[0], count, len(images)), numbers)
