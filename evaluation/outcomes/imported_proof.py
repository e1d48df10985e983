"""Proof of an import: the mapping of foreign weights, and the published clean accuracy beside the measured one.

`networks.load_weights` reads and matches; here the outcome is put on record with the evaluation it belongs to.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.evaluation.outcomes.statistics import sampling_interval, wilson
from adversarial_lightning.evaluation.outcomes.subset import Samples
from adversarial_lightning.networks.foreign_weights import Report

NAME = "weights.json"
ROUNDING = 0.001  # of a share: printed figures are rounded, and a few images lie on a boundary
ORDER = 0.05  # by so much the first images of a set may well be easier or harder than all


def record(folder: Path, report: Report) -> None:
    """Write the mapping of a file's tensors to ``weights.json`` in the folder of the evaluation."""
    write_whole(folder / NAME, json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def compared(measured: float, published: float, samples: Samples) -> dict[str, Any]:
    """Entry "published" of results.json: the published clean accuracy, and how far the measured one is from it.

    `differs` where `published` lies outside the 95 % interval of `measured` by more than rounding. On all images there
    is no interval: the same weights give the same figure. The first images are no sample; they are given the interval
    of one, and some room for the order of their set.
    """
    low, high = sampling_interval(measured, samples) or (measured, measured)
    room = ROUNDING
    if samples.chosen == "first" and samples.n < samples.of:
        low, high, room = *wilson(measured, samples.n), ORDER
    differs = not low - room - 1e-9 <= published <= high + room + 1e-9
    return {"clean_accuracy": published, "difference": round(measured - published, 6), "differs": differs}
