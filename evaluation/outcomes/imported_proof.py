"""Proof of an import: the mapping of foreign weights, and the published clean accuracy beside the measured one.

`networks.load_weights` reads and matches; here the outcome is put on record with the evaluation it belongs to.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.networks.foreign_weights import Report

NAME = "weights.json"
TOLERANCE = 0.001  # of a share: printed figures are rounded, and a few images lie on a boundary


def record(folder: Path, report: Report) -> None:
    """Write the mapping of a file's tensors to ``weights.json`` in the folder of the evaluation."""
    write_whole(folder / NAME, json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def compared(
    measured: float, published: float, interval: Sequence[float] | None, sample: bool = True
) -> dict[str, Any]:
    """Entry "published" of results.json: the published clean accuracy, and how far the measured one is from it.

    `differs` is True where they are more than `TOLERANCE` apart and `published` is outside the 95 % `interval` of
    `measured`. Without an interval all test images were used, and the tolerance alone decides; where the images are
    neither all nor a random `sample` of them, nothing can be said and `differs` is None.
    """
    far = abs(measured - published) > TOLERANCE + 1e-9
    outside = interval is None or not interval[0] <= published <= interval[1]
    differs = far and outside if interval is not None or sample else None
    return {"clean_accuracy": published, "difference": round(measured - published, 6), "differs": differs}
