"""Intrinsic dimension of a data set from distances to nearest neighbours (Levina and Bickel 2005).

python -m adversarial_lightning.reproduce.intrinsic_dimension --data configs/data/mnist.yaml [--images 1000]
    [--estimator mackay] [--seed 0]

Table 10 of the ER-Classifier paper has MNIST 13, CIFAR10 17, STL10 20, Tiny ImageNet 19: the `levina` form.
"""

import argparse
import json
from pathlib import Path
from typing import Literal

import torch
import yaml
from torch import Tensor

from adversarial_lightning import datamodules
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.errors import UserError


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="YAML file of a data set")
    add("--root", help="folder of the data, where it is not the file's")
    add("--images", type=int, default=1000, help="random training images")
    add("--k1", type=int, default=10)
    add("--k2", type=int, default=20)
    add("--estimator", choices=["levina", "mackay"], default="levina")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    spec = yaml.safe_load(options.data.read_text())
    moved = {"root": options.root} if options.root else {}
    images = build({**spec, "init_args": {**spec.get("init_args", {}), **moved}}, catalogue(datamodules)).dataset(
        "train"
    )
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))[: options.images]
    x, _, _ = images.__getitems__(chosen.tolist())
    value, by_k, duplicates = intrinsic_dimension(x, options.k1, options.k2, options.estimator)
    print(json.dumps({"dimension": round(value, 3), "by_k": by_k, "images": len(x), "duplicates": duplicates}))


if __name__ == "__main__":
    main()
