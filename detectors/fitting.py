"""Fit detectors: the reference on training images, the regression on set I, a seeded fifth of the test images."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from adversarial_lightning.attacks import Attack, Noise, noise_for, threat
from adversarial_lightning.attacks.core.norms import displacement, distance, outside_ball
from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.detectors.base import Detector
from adversarial_lightning.detectors.fitted import FittedDetector
from adversarial_lightning.detectors.lid import CAP, LID
from adversarial_lightning.detectors.noisy import noisy_copies
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import frozen_eval

SHARE = 0.2  # of the test images is set I (Li et al. 2021, section 4.5.1)


def calibration_split(images: Any, seed: int = 0, share: float = SHARE) -> Any:
    """Set I of a data set of test images with sample numbers, the same for all detectors; the others are set II.

    Raises ValueError where either set would be empty.
    """
    count = round(share * len(images))
    if not 0 < count < len(images):
        raise UserError(f"a share of {share} of {len(images)} test images leaves set I or set II empty")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.select(order[:count].sort().values)


def test_split(images: Any, seen: frozenset[int]) -> Any:
    """Images of a data set that a detector was not fitted on (`seen`). Raises ValueError where none is left."""
    positions = [i for i, number in enumerate(images.indices.tolist()) if number not in seen]
    if not positions:
        raise UserError(f"all {len(images)} test images are set I, on which the detector was fitted: take more images")
    left = images.select(torch.tensor(positions))
    if len(positions) < len(images):
        left.drawn_from = images.drawn_from or len(images)  # set I was drawn at random
    return left


def fit_on(detector: Detector, data: Any, attack: Attack, *, seed: int = 0, batch_size: int = 128) -> dict[str, Any]:
    """Fit a detector on all training images of `data` and set I of its test images; returns its ``about``.

    Raises ValueError for a detector that needs no fitting.
    """
    if not isinstance(detector, FittedDetector):
        raise UserError(f"{type(detector).__name__} needs no fitting: give it to --detector as it is")
    one = calibration_split(data.dataset("test"), seed)
    fit(detector, data.dataset("train"), one, attack, seed=seed, batch_size=batch_size)
    return detector.about


def fit(
    detector: FittedDetector,
    train: Any,
    one: Any,
    attack: Attack,
    *,
    seed: int = 0,
    batch_size: int = 128,
) -> None:
    """Fit `detector` on the data set `train` (clean) and on set I, `one`, under `attack`.

    The attack knows the classifier, not the detector. Each image of set I has a noisy and an adversarial version; a
    minimum-norm attack that finds nothing in its ball gives none. ``detector.about`` records how it was fitted.
    Raises ValueError as the detector.
    """
    detector.fit_reference(train, batch_size)
    versions = versions_of(detector.classifier, one, attack, seed=seed, batch_size=batch_size)
    x, noisy, z, found, index, std = versions
    parts = {"clean": x, "noisy": noisy, "adversarial": z[found]}
    numbers = {"clean": index, "noisy": index, "adversarial": index[found]}
    sets = {name: features(detector, part, numbers[name], seed, batch_size) for name, part in parts.items()}
    detector.fit_detector(sets["clean"], sets["noisy"], sets["adversarial"])
    detector.seen = frozenset(index.tolist())
    with torch.no_grad():
        odds = {n: ((f - detector.mean) / detector.std) @ detector.weight + detector.bias for n, f in sets.items()}
    every = torch.cat(list(sets.values()))
    densities = getattr(detector, "densities", None)
    detector.about = {
        "attack": describe(attack),
        "seed": seed,
        "set_one": len(index),
        "adversarial": int(found.sum()),
        "train_images": len(train),
        "noise_std": round(std, 6),
        "width": None if densities is None else float(densities.width),
        "log_density_by_width": None if densities is None else {f"{w:.6g}": v for w, v in densities.curve.items()},
        # One minibatch at the cap lifts the mean above this, which no dimension does.
        "features_at_cap": int((every >= CAP / detector.batches).sum()) if isinstance(detector, LID) else None,
        "auroc_set_one": _auroc(torch.cat([odds["clean"], odds["noisy"]]), odds["adversarial"]),
        "weight": detector.weight.tolist(),
        "bias": float(detector.bias),
    }


def versions_of(
    classifier: nn.Module, images: Any, attack: Attack, *, seed: int, batch_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Clean, noisy and adversarial images; mask of those found; sample numbers; standard deviation of the noise.

    A minimum-norm attack has found an image where it changed it and, where it has a radius, stayed inside the ball
    (`outside_ball`). The length of the noise is that of the images found.
    """
    device = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    clean, adversarial, numbers = [], [], []
    for start in range(0, len(images), batch_size):
        x, y, index = images.__getitems__(list(range(start, min(start + batch_size, len(images)))))
        x, index = x.to(device), index.to(device)
        clean.append(x)
        numbers.append(index)
        adversarial.append(attack(classifier, x, y.to(device), Noise.keyed(seed, index).fork("attacker").fork("set")))
    x, z, index = torch.cat(clean), torch.cat(adversarial), torch.cat(numbers)
    norm, eps = threat(attack)
    found = torch.ones_like(index, dtype=torch.bool)
    if attack.kind == "minimum-norm":
        found = (z != x).flatten(1).any(1)
        if eps is not None:
            found &= ~outside_ball(distance(str(norm), displacement(z, x)), eps, attack.kind).to(found.device)
    noise = Noise.keyed(seed, index).fork("noisy")
    _, std = noisy_copies(x[found], z[found], noise[found], norm)
    copies = noisy_copies(x, z, noise, norm)[0] if norm == "l0" else (x + std * noise.normal(x)).clamp(0, 1)
    return x, copies, z, found, index, std


def features(detector: FittedDetector, x: Tensor, index: Tensor, seed: int, batch_size: int) -> Tensor:
    """Features (n, F) of images `x`, in batches, with noise keyed by the sample numbers `index`."""
    parts = []
    for rows in np.array_split(np.arange(len(x)), max(1, -(-len(x) // batch_size))):
        noise = Noise.keyed(seed, index[rows]).fork("defender").fork("detector")
        with frozen_eval(detector), torch.no_grad(), noise_for(detector, noise):
            parts.append(detector.features(x[rows]))
    return torch.cat(parts)


def _auroc(clean: Tensor, adversarial: Tensor) -> float | None:
    """Area under the ROC curve of scores (N,) and (M,); None where one side is empty."""
    if not len(clean) or not len(adversarial):
        return None
    truth = torch.cat([torch.zeros(len(clean)), torch.ones(len(adversarial))])
    return float(roc_auc_score(truth.numpy(), torch.cat([clean, adversarial]).cpu().numpy()))
