"""The types that outcomes are kept in: columns, bits, and what a run cost."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Around = Callable[[], AbstractContextManager[None]]  # entered around every attack
Columns = dict[str, NDArray[Any]]
Fate = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass
class Effort:
    """What one process spent in one run of the program, kept up to date with every batch.

    `run` names the run, `world` is its number of processes; `code` is the digest of the program (`identity.code`).
    `forecast` are the seconds that the run was expected to take, 0 where nobody knew; `seconds` are those it took so
    far, `done` says that it got to its end. `batches` are those committed, `peak_memory` is in bytes, `energy` in
    joules or None. `probabilities`: the model was seen to return probabilities.
    """

    run: str
    rank: int
    world: int
    code: str = ""
    forecast: float = 0.0
    seconds: float = 0.0
    done: bool = False
    batches: int = 0
    peak_memory: int = 0
    energy: float | None = None
    probabilities: bool = False
