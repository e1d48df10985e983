"""Record of foreign weights: checksum, mapping of names, published clean accuracy beside the measured one.

`networks.load_weights` reads and matches; here the outcome is put on record with the evaluation it belongs to.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.evaluation.outcomes.statistics import wilson
from adversarial_lightning.networks.foreign_weights import Report

NAME = "weights.json"


def record(folder: Path, report: Report) -> None:
    """Write the mapping of a file's tensors to ``weights.json`` in the folder of the evaluation."""
    write_whole(folder / NAME, json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def prove(folder: Path, clean_accuracy: float, n: int, published: float | None) -> list[str]:
    """Add the clean accuracy on `n` images and the `published` one to ``weights.json``; return sentences on both.

    They agree if the published figure lies in the 95 % (Wilson) interval of ours. On the whole test set the same
    weights should give the same figure to 0.1 points or so: more is another preprocessing, most often.
    """
    content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    proof = compared(clean_accuracy, n, published)
    write_whole(folder / NAME, json.dumps({**content, "proof": proof}, indent=2) + "\n")
    lines = Report(**{k: v for k, v in content.items() if k != "proof"}).lines()
    interval = (
        f"{100 * clean_accuracy:.2f} % clean (95 %: {100 * proof['low']:.2f} to {100 * proof['high']:.2f}, n = {n})"
    )
    if published is None:
        return [*lines, f"{interval}; no published figure to compare with: --published 0.8492"]
    answer = "which agrees" if proof["agrees"] else "which DIFFERS: check normalisation, resizing, labels and the file"
    return [*lines, f"{interval}; published {100 * published:.2f} %, {answer}"]


def compared(accuracy: float, n: int, published: float | None) -> dict[str, Any]:
    """Interval of `accuracy` on `n` images, and whether the share `published` lies in it."""
    low, high = wilson(accuracy, n)
    agrees = None if published is None else bool(low <= published <= high)
    return {"clean_accuracy": accuracy, "n": n, "low": low, "high": high, "published": published, "agrees": agrees}
