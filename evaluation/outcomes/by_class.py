"""Accuracies of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adversarial_lightning.evaluation.outcomes.statistics import number


def by_class(
    label: NDArray[np.int64], clean: NDArray[np.float64], robust: Sequence[NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """Entry "classes" of results.json: one for every class that occurs among `label` (n,), ascending.

    `clean` (n,) and each of `robust` (n,), one a threat model, say in which share of the draws a sample is right.
    """
    found = []
    for c in np.unique(label):
        own = label == c
        shares = [number(float(right[own].mean())) for right in (clean, *robust)]
        entry = {"label": int(c), "n": int(own.sum()), "clean_accuracy": shares[0], "robust_accuracy": shares[1:]}
        found.append(entry)
    return found
