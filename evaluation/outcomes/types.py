"""The types that outcomes are kept in: columns, bits, and what a run cost."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AttackContext = Callable[[], AbstractContextManager[None]]  # entered around every attack
Columns = dict[str, NDArray[Any]]
Bits = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass
class RunCost:
    """What one process of one run of the program cost so far.

    `run` names the run, `world` is its number of processes; `code` is the digest of the program (`identity.code`).
    `seconds` are those it took so far, `done` says that it got to its end. `batches` are those committed, `peak_memory`
    is in bytes, `energy` in joules or None. `probabilities`: the model was seen to return probabilities.
    `global_draws`: attacks, one a line, under which a global generator changed ("clean": under the model alone).
    """

    run: str
    rank: int
    world: int
    code: str = ""
    seconds: float = 0.0
    done: bool = False
    batches: int = 0
    peak_memory: int = 0
    energy: float | None = None
    probabilities: bool = False
    global_draws: str = ""
