"""Threshold rule of detectors: the scores that are flagged, and those that an attack accepts."""

import math
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@overload
def flagged(scores: Tensor, theta: float) -> Tensor: ...
@overload
def flagged(scores: NDArray[np.float64], theta: float) -> NDArray[np.bool_]: ...
def flagged(scores: Any, theta: float) -> Any:
    """Mask of the scores that a detector flags: those above `theta`.

    A score that is not a number counts as infinite. So an infinite threshold, which means no detector, flags nothing.
    A score of exactly `theta` is not flagged: an attack must reach ``score <= theta``.
    """
    return (scores > theta) | ((scores != scores) & (theta < math.inf))


def evades(scores: Tensor, theta: float) -> Tensor:
    """Mask of the scores that an attack accepts: strictly below `theta`, so never `flagged`.

    Attacks leave out a score of exactly `theta`, for safety: in another batch it may be rounded to the other side, and
    detectors of other libraries flag at their threshold.
    """
    return scores < theta
