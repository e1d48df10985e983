"""Lengths that minimum-norm attacks find, and robust accuracies at any radii, from one run each (Matyasko 2020, ch. 5).

The tables of chapter 5 compare attacks on one model. An attack that seeks the nearest adversarial point is run once,
and every radius is read from the lengths that it found.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.ledger import table
from adversarial_lightning.evaluation.outcomes.statistics import bootstrap, mean, wilson
from adversarial_lightning.evaluation.outcomes.subset import Samples
from adversarial_lightning.reproduce.papers.measure import measured

_SLACK = 1 + 1e-6  # of a length that is compared with a radius: float32
Lengths = npt.NDArray[np.float64]


def measure(
    *,
    checkpoint: Path,
    data: str | None,
    n: int | None,
    output: Path,
    suite: str,
    entries: Sequence[str],
    radii: Mapping[str, Sequence[float]],
    shorter: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Numbers of the `entries` of a `suite` on `n` random test images (none: all); every one a minimum-norm attack.

    "ENTRY": mean length of the found perturbations in the entry's norm, over images that are right without an attack.
    "ENTRY found": share of these that it broke. "ENTRY at R": robust accuracy at each of the `radii` of its norm.
    "A - B" for each pair of `shorter`: mean difference of the two attacks' lengths over the images that both broke,
    negative where A's are shorter. Intervals are 95 %, over images. The data lie where the checkpoint says, as in every
    evaluation. What was cut off goes on.
    """
    folder = output / "evaluation"
    words = ["evaluate", "--checkpoint", str(checkpoint), "--suite", suite, "--only", f"[{','.join(entries)}]"]
    words += ["--audit", "none", "--output", str(folder)] + (["--limit", str(n)] if n else [])
    if subprocess.run([sys.executable, "-m", "adversarial_lightning.cli", *words]).returncode:
        raise UserError(f"the evaluation in {folder} ended with an error")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    identity = json.loads((folder / "campaign.json").read_text(encoding="utf-8"))["identity"]
    samples = Samples(**results["samples"])
    whole = Samples("random", 0, samples.n, 10**9) if samples.n == samples.of else samples
    found: dict[str, Lengths] = {}
    numbers: dict[str, tuple[float | None, list[float] | None]] = {}
    for attack in results["attacks"]:
        name, norm = attack["name"], attack["norm"]
        if attack["kind"] != "minimum-norm":
            raise UserError(f"{suite}: {name} has a radius of its own, which is no minimum-norm attack")
        rows = table(folder, name, 0, identity=identity)
        found[name] = lengths(rows, norm)
        numbers |= of_lengths(name, found[name], radii.get(norm, ()), whole)
    for one, other in shorter:
        both = np.isfinite(found[one]) & np.isfinite(found[other]) & (found[one] > 0)
        difference = (found[one] - found[other])[both]
        numbers[f"{one} - {other}"] = (mean(difference), bootstrap(difference, whole))
    return measured(samples, numbers)


def lengths(rows: Mapping[str, npt.NDArray[Any]], norm: str) -> Lengths:
    """Length of each image's perturbation in `norm`: 0 if it is wrong without one, infinite if none was found."""
    broken = rows["adversarial"] != rows["label"]
    wrong = rows["clean"] != rows["label"]
    return np.where(wrong, 0.0, np.where(broken, rows[norm].astype(np.float64), np.inf))


def of_lengths(
    name: str, found: Lengths, radii: Sequence[float], samples: Samples
) -> dict[str, tuple[float | None, list[float] | None]]:
    """Numbers of one attack, from the length of each image's perturbation."""
    broken, attacked = np.isfinite(found) & (found > 0), found > 0
    share = float(broken.sum() / max(attacked.sum(), 1))
    numbers: dict[str, tuple[float | None, list[float] | None]] = {
        name: (mean(found[broken]), bootstrap(found[broken], samples)),
        f"{name} found": (share, wilson(share, max(int(attacked.sum()), 1))),
    }
    for radius in radii:
        robust = float((found > radius * _SLACK).mean())
        numbers[f"{name} at {radius:g}"] = (robust, wilson(robust, len(found)))
    return numbers
