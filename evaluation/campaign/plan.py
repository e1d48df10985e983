"""Campaign: what is evaluated, and where its outcomes are kept."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adversarial_lightning.attacks import Attack, Sweep
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.ledger import table
from adversarial_lightning.evaluation.campaign.sample_status import (
    CLEAN,
    MOST_DRAWS,
    AttackRun,
    Mode,
    SampleStatus,
    attack_runs,
)
from adversarial_lightning.evaluation.outcomes.outcome import Outcome
from adversarial_lightning.evaluation.outcomes.subset import Choice, Samples, random_subset
from adversarial_lightning.evaluation.outcomes.types import Columns


@dataclass(frozen=True)
class Campaign:
    """Attacks by name (`suite`) on `n` samples of `data`; outcomes are kept in `folder` under `identity`.

    `data` is a data set of numbered images: `indices`, and batches ``(x, y, index)`` by position, where position -1
    is a dummy with a negative index. `sample` random takes the `random_subset` of `sample_seed`, first the first ones.

    A `Restarts` of a budget attack at the top of the suite becomes as many runs, each with its rows; a later run sees
    only the samples that the earlier ones have not broken. In mode worst_case, an attack sees only the samples that no
    earlier one of its threat model has broken. `draws` is the number of the
    defender's draws in which every result is judged. `scored`: the model carries a `detector`, whose scores are
    recorded; then every run sees every sample, because one run may fool the classifier and another one both.

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
    sample: Choice = "random"
    sample_seed: int = 0

    def __post_init__(self) -> None:
        if not self.suite:
            raise UserError("the suite names no attack: write at least one, `name: {class_path: ..., init_args: ...}`")
        if CLEAN in self.suite:
            raise UserError(f"an attack cannot be called {CLEAN!r}, the name of the rows without one: rename it")
        if unexpanded := [name for name, attack in self.suite.items() if isinstance(attack, Sweep)]:
            raise UserError(f"{unexpanded[0]} is a Sweep: pass the suite through attacks.expanded first")
        if not 1 <= self.n <= len(self.data):
            raise UserError(f"{self.n} samples were asked for and the data has {len(self.data)}: set --limit between")
        if not 1 <= self.draws <= MOST_DRAWS:
            raise UserError(f"--draws must lie between 1 and {MOST_DRAWS}, not {self.draws}")
        if self.scored and self.mode == "worst_case":
            raise UserError(
                "--mode worst_case leaves out samples that an attack on the classifier has broken, but with --detector "
                "another attack may still get past both: use --mode full"
            )

    @property
    def chosen(self) -> Samples:
        """How the samples were chosen, and out of how many; a data set that is a random subset itself says so."""
        drawn_from = getattr(self.data, "drawn_from", None)
        of, whole = drawn_from or len(self.data), self.n == len(self.data)
        if whole:
            return Samples("all" if drawn_from is None else "random", None, self.n, of)
        return Samples(self.sample, self.sample_seed if self.sample == "random" else None, self.n, of)

    @cached_property
    def positions(self) -> dict[int, int]:
        """Position in the data of every chosen sample, by its number, in the order of the data."""
        numbers = self.data.indices
        first = self.sample == "first"
        at = torch.arange(self.n) if first else random_subset(numbers, self.n, self.sample_seed)
        return dict(zip(numbers[at].tolist(), at.tolist(), strict=True))

    @cached_property
    def samples(self) -> list[int]:
        """Numbers of the chosen samples, in the order of the data."""
        return list(self.positions)

    def runs(self, name: str) -> list[AttackRun]:
        """The runs of one attack of the suite, or of `CLEAN`."""
        return attack_runs(self.suite, name)

    def blank_status(self, samples: Sequence[int]) -> SampleStatus:
        """The status of some of the samples before anything is recorded."""
        return SampleStatus(self.suite, np.sort(np.array(samples, np.int64)), self.mode, self.draws, self.scored)

    def status(self, samples: Sequence[int] | None = None) -> SampleStatus:
        """The status of some of the samples (none: of all) after all that the ledgers hold."""
        status = self.blank_status(self.samples if samples is None else samples)
        for name in (CLEAN, *self.suite):
            for run in self.runs(name):
                status.record(run, self.table(run))
        return status

    def batch(self, samples: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, H, W), labels (B,) and numbers (B,) of samples that are named by their numbers."""
        positions = [self.positions[int(sample)] for sample in samples]
        x, y, index = self.data.__getitems__(positions or [-1])
        keep = index >= 0  # of no samples at all there is still a dummy
        return x[keep].float().to(device), y[keep].to(device), index[keep].to(device)

    def table(self, run: AttackRun) -> Columns:
        """What the ledgers hold of one run, one array a field of `Outcome`, in ascending order of the samples."""
        return table(self.folder, run.name, run.restart, identity=self.identity)

    def outcomes(self, run: AttackRun) -> Iterator[Outcome]:
        """The rows of `table`, one by one."""
        rows = self.table(run)
        for values in zip(*(column.tolist() for column in rows.values()), strict=True):
            outcome = dict(zip(rows, values, strict=True))
            yield Outcome(**{**outcome, "score": None if math.isnan(outcome["score"]) else outcome["score"]})
