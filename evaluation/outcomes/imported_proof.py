"""Record of foreign weights: checksum, mapping of names, published clean accuracy beside the measured one.

`networks.load_weights` reads and matches; here the outcome is put on record with the evaluation it belongs to.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.evaluation.outcomes.statistics import sampling_interval
from adversarial_lightning.evaluation.outcomes.subset import Samples
from adversarial_lightning.networks.foreign_weights import Report

NAME = "weights.json"


def record(folder: Path, report: Report) -> None:
    """Write the mapping of a file's tensors to ``weights.json`` in the folder of the evaluation."""
    write_whole(folder / NAME, json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def prove(folder: Path, clean_accuracy: float, samples: Samples, published: float | None) -> list[str]:
    """Add the clean accuracy on `samples` and the `published` one to ``weights.json``; return sentences on both."""
    content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    proof = compared(clean_accuracy, samples, published)
    write_whole(folder / NAME, json.dumps({**content, "proof": proof}, indent=2) + "\n")
    lines = Report(**{k: v for k, v in content.items() if k != "proof"}).lines()
    low, high = 100 * proof["low"], 100 * proof["high"]
    interval = f"{100 * clean_accuracy:.2f} % clean (n = {samples.n}; it allows for {low:.2f} to {high:.2f})"
    if published is None:
        return [*lines, f"{interval}; no published figure to compare with: --published 0.8492"]
    answer = "which agrees" if proof["agrees"] else "which DIFFERS: check normalisation, resizing, labels and the file"
    return [*lines, f"{interval}; published {100 * published:.2f} %, {answer}"]


def compared(accuracy: float, samples: Samples, published: float | None) -> dict[str, Any]:
    """Whether the share `published` lies where `accuracy` leaves room for it: from `low` to `high`.

    On a random subset that is the 95 % interval. On the whole test set the same weights give the same figure but for
    rounding: 0.1 points. The first images are no sample; there a difference of 5 points is taken for another
    preprocessing.
    """
    room = 0.001 if samples.chosen == "all" else 0.05
    low, high = sampling_interval(accuracy, samples) or [max(0.0, accuracy - room), min(1.0, accuracy + room)]
    agrees = None if published is None else bool(low <= published <= high)
    return {"clean_accuracy": accuracy, "n": samples.n, "low": low, "high": high} | {
        "published": published,
        "agrees": agrees,
    }
