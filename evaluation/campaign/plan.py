"""An evaluation that survives a kill: every process attacks its own samples and journals every batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adversarial_lightning.attacks import Attack, Sweep
from adversarial_lightning.evaluation.campaign.ledger import table
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, MOST_DRAWS, Cascade, Mode, Unit, units
from adversarial_lightning.evaluation.outcomes.outcome import Outcome
from adversarial_lightning.evaluation.outcomes.types import Columns


@dataclass(frozen=True)
class Campaign:
    """What is evaluated: `suite` (attacks by name) on the first `n` of `data`, journaled in `folder` under `identity`.

    `data` is a data set of numbered images: `indices`, and batches ``(x, y, index)`` by position, where position -1
    is a dummy with a negative index. A `Restarts` of a budget attack at the top of the suite becomes as many runs,
    each with its rows; a later run sees only the samples that the earlier ones have left standing. In mode worst_case,
    an attack sees only what the earlier ones of its threat model have left. `draws` is the number of the defender's
    draws in which every result is judged. `scored`: the model carries a `detector`, whose scores are recorded; then
    every run sees every sample, because one run may fool the classifier and another one both.

    Raises ValueError for an empty suite, an attack called "clean", a Sweep that is not expanded, an n without samples,
    draws out of range, and mode worst_case with a detector.
    """

    suite: Mapping[str, Attack]
    data: Any
    n: int
    seed: int
    folder: Path
    identity: str
    mode: Mode = "full"
    draws: int = 1
    scored: bool = False

    def __post_init__(self) -> None:
        if not self.suite:
            raise ValueError("the suite names no attack: write at least one, `name: {class_path: ..., init_args: ...}`")
        if CLEAN in self.suite:
            raise ValueError(f"an attack cannot be called {CLEAN!r}, the name of the rows without one: rename it")
        if unexpanded := [name for name, attack in self.suite.items() if isinstance(attack, Sweep)]:
            raise ValueError(f"{unexpanded[0]} is a Sweep: pass the suite through attacks.expanded first")
        if not 1 <= self.n <= len(self.data):
            raise ValueError(f"{self.n} samples were asked for and the data has {len(self.data)}: set --limit between")
        if not 1 <= self.draws <= MOST_DRAWS:
            raise ValueError(f"--draws must lie between 1 and {MOST_DRAWS}, not {self.draws}")
        if self.scored and self.mode == "worst_case":
            raise ValueError(
                "--mode worst_case leaves out samples whose classifier has fallen, but with --detector another attack "
                "may still get past both: use --mode full"
            )

    @cached_property
    def samples(self) -> list[int]:
        """Numbers of the chosen samples, in the order of the data."""
        numbers: list[int] = self.data.indices[: self.n].tolist()
        return numbers

    def units(self, name: str) -> list[Unit]:
        """The runs of one attack of the suite, or of `CLEAN`."""
        return units(self.suite, name)

    def cascade(self, samples: Sequence[int]) -> Cascade:
        """The bookkeeping for some of the samples, with nothing recorded yet."""
        return Cascade(self.suite, np.sort(np.array(samples, np.int64)), self.mode, self.draws, self.scored)

    def table(self, unit: Unit) -> Columns:
        """What the ledgers hold of one run, one array a field of `Outcome`, in ascending order of the samples."""
        return table(self.folder, unit.name, unit.restart, identity=self.identity)

    def outcomes(self, unit: Unit) -> Iterator[Outcome]:
        """The rows of `table`, one by one."""
        rows = self.table(unit)
        for values in zip(*(column.tolist() for column in rows.values()), strict=True):
            outcome = dict(zip(rows, values, strict=True))
            yield Outcome(**{**outcome, "score": None if math.isnan(outcome["score"]) else outcome["score"]})
