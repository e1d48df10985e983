"""An evaluation that survives a kill: every process attacks its own samples and journals every batch."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attacks import Attack
from evaluation.cascade import CLEAN, MOST_DRAWS, Cascade, Flags, Mode, Unit, units
from evaluation.haste import Around
from evaluation.identity import code
from evaluation.ledger import Columns, Effort, Ledger, columns, table
from evaluation.meter import Meter
from evaluation.outcome import Outcome, defender, evaluate_batch, gives_probabilities
from evaluation.processes import Place, Tell

Foretell = Callable[[float], None]  # seconds that this run will take from its start to its end

_PADDING = -1  # position of the data set's dummy image, whose index is negative
_MANY = 16  # batches of a share from which on a cascade of part-filled first batches costs little


@dataclass(frozen=True)
class Campaign:
    """What is evaluated: `suite` (attacks by name) on the first `n` of `data`, journaled in `folder` under `identity`.

    `data` is a data set of numbered images: `indices`, and batches ``(x, y, index)`` by position, where position -1
    is a dummy with a negative index. A `Restarts` of a budget attack at the top of the suite becomes as many runs,
    each with its rows; a later run sees only the samples that the earlier ones have left standing. In mode worst_case,
    an attack sees only what the earlier ones of its threat model have left. `draws` is the number of the defender's
    draws in which every result is judged. `scored`: the model carries a `detector`, whose scores are recorded; then
    every run sees every sample, because one run may fool the classifier and another one both.

    Raises ValueError for an empty suite, an attack called "clean", an n without samples, draws out of range, and mode
    worst_case with a detector.
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

    def run(
        self,
        model: nn.Module,
        here: Place = Place(),  # noqa: B008 (frozen)
        *,
        batch_size: int = 128,
        workers: int = 0,
        tell: Tell = lambda name, done, fallen: None,
        foretell: Foretell = lambda seconds: None,
        around: Around = nullcontext,
    ) -> None:
        """Do everything that the process `here` owns and no ledger holds; needs no other process.

        `model` maps images in [0, 1] to logits, on the device where it lies. `workers` processes load the data.
        `tell` hears of progress, `foretell` once, after the first batch of every attack, how long it all will take.
        `around` is entered for every attack (see `hasten`).
        Raises ValueError where another run writes into the folder.
        """
        with Ledger(self.folder, here.rank, identity=self.identity, run=here.run) as ledger:
            share = _Share(self, model, here, ledger, min(batch_size, self.n), workers, tell, around)
            share.sweep(self.units(CLEAN))
            seconds = share.forecast()
            if seconds is not None:
                foretell(seconds)
            share.sweep([unit for name in self.suite for unit in self.units(name)])
            share.finish()


@dataclass
class _Share:
    """What one process has to do: its samples, their fates so far, and the means to go on."""

    campaign: Campaign
    model: nn.Module
    here: Place
    ledger: Ledger
    shape: int
    workers: int
    tell: Tell
    around: Around
    told: dict[str, tuple[int, float]] = field(default_factory=dict)
    pace: dict[str, list[float]] = field(default_factory=dict)  # seconds of the batches of each attack
    loaded: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self.device = next((t.device for t in tensors), torch.device("cpu"))
        self.cascade = self.campaign.cascade(self.campaign.samples[self.here.rank :: self.here.world])
        self.positions = {sample: position for position, sample in enumerate(self.campaign.samples)}
        self.classes = np.full(len(self.cascade.samples), -1)  # predicted without an attack
        self.meter = Meter(self.device)
        self.effort = Effort(self.here.run, self.here.rank, self.here.world, code())

    def sweep(self, runs: Sequence[Unit], only: Flags | None = None, most: int | None = None) -> None:
        """Do what is missing of these runs, in their order: of the samples `only`, and no more than `most` a run."""
        for unit in runs:
            flags = self.todo(unit)
            todo = self.cascade.samples[flags if only is None else flags & only][:most]
            self.say(unit.name)
            for x, y, index in self.batches(todo.tolist()):
                self.do(unit, x.to(self.device), y.to(self.device), index.to(self.device))
                self.say(unit.name)

    def todo(self, unit: Unit) -> Flags:
        """Which samples a run has still to see; what the ledgers hold of it is read the first time."""
        key = unit.name, unit.restart
        if key not in self.loaded:
            self.loaded.add(key)
            self.record(unit, self.campaign.table(unit))
        return self.cascade.asked(unit) & ~self.cascade.seen[key]

    def do(self, unit: Unit, x: Tensor, y: Tensor, index: Tensor) -> None:
        """Evaluate and journal one batch."""
        campaign = self.campaign
        if unit.name == CLEAN and not self.effort.batches:
            self.look(x, index)
        outcomes = evaluate_batch(
            *(self.model, unit.attack, x, y, index),
            seed=campaign.seed,
            name=unit.name,
            restart=unit.restart,
            clean=None if unit.attack is None else self.known(y, index),
            draws=campaign.draws,
            detector=self.model.detector if campaign.scored else None,  # type: ignore[arg-type]
            around=self.around,
        )
        self.here.alive()
        self.pace.setdefault(unit.name, []).append(self.meter.lap())
        self.spent(self.effort.batches + 1)
        self.ledger.add(unit.name, unit.restart, outcomes, self.effort)
        self.record(unit, columns(outcomes))

    def look(self, x: Tensor, index: Tensor) -> None:
        """Say so early where the model returns probabilities."""
        self.effort.probabilities = gives_probabilities(self.model, x, defender(self.campaign.seed, index, 1)[0])
        if self.effort.probabilities and self.here.rank == 0:
            print(f"warning: {PROBABILITIES}", file=sys.stderr, flush=True)

    def known(self, y: Tensor, index: Tensor) -> Tensor:
        """The classes (B,) predicted without an attack; the label for padding."""
        at = np.searchsorted(self.cascade.samples, index.clamp(min=0).cpu().numpy())
        classes = torch.from_numpy(self.classes[at.clip(max=len(self.classes) - 1)]).to(y.device)
        return torch.where(index < 0, y, classes)

    def record(self, unit: Unit, rows: Columns) -> None:
        self.cascade.record(unit, rows)
        if unit.name == CLEAN:
            at, own = self.cascade.find(rows["index"])
            self.classes[at] = rows["adversarial"][own]

    def say(self, name: str) -> None:
        """Pass on what is new since the last time."""
        before, now = self.told.get(name, (0, 0.0)), self.cascade.progress(name)
        self.told[name] = now
        self.tell(name, now[0] - before[0], now[1] - before[1])

    def spent(self, batches: int) -> None:
        meter = self.meter
        self.effort.batches, self.effort.seconds = batches, meter.seconds
        self.effort.peak_memory, self.effort.energy = meter.peak_memory, meter.energy

    def finish(self) -> None:
        """Leave a note that all is done, where anything was to do."""
        if self.effort.batches:
            self.meter.lap()
            self.spent(self.effort.batches)
            self.effort.done = True
            self.ledger.spend(self.effort)

    def forecast(self) -> float | None:
        """Seconds of this run from its start to its end, from the first batch of every attack, which is done for it.

        Nothing is done twice, but in mode worst_case the first samples go through the whole cascade in batches that are
        not full: None where that is a large part of the work, and where there is nothing to foretell.
        """
        campaign, cascade, shape = self.campaign, self.cascade, self.shape
        known = cascade.fates[CLEAN] != 0
        block = np.zeros(len(known), bool)
        if campaign.mode == "worst_case":
            if known.sum() < _MANY * shape:
                return None
            runs = [unit for name in campaign.suite for unit in campaign.units(name)]
            block[np.flatnonzero(np.any([self.todo(unit) for unit in runs], axis=0))[:shape]] = True
            self.sweep(runs, only=block)
        left = 0.0
        for name in campaign.suite:
            runs = campaign.units(name)
            begun = next((unit for unit in runs if self.todo(unit).any()), None)
            if begun is None:
                continue
            if campaign.mode == "full":
                self.sweep([begun], most=shape)
                block = cascade.seen[name, 0]
            for unit in runs:
                seen = cascade.seen[name, unit.restart]
                share = self.share(unit, block)
                batches = math.ceil(max(0.0, share * known.sum() - seen.sum()) / shape)
                left += batches * float(np.mean(self.pace.get(name, [0.0])))
        if not left:
            return None
        self.effort.forecast = self.meter.seconds + left
        return self.effort.forecast

    def share(self, unit: Unit, block: Flags) -> float:
        """The share of the samples that are right without an attack which this run will see, going by `block`."""
        if not block.any():
            return 0.0
        if self.campaign.mode == "worst_case":
            return float(self.cascade.seen[unit.name, unit.restart][block].mean())
        if unit.restart == 0 or self.campaign.scored:
            return 1.0
        return float((self.cascade.fates[unit.name][block] != 0).mean())

    def batches(self, samples: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The samples in batches that all have the same shape, because rounding depends on it."""
        positions = [self.positions[sample] for sample in samples]
        batches = [positions[i : i + self.shape] for i in range(0, len(positions), self.shape)]
        if batches:
            batches[-1] += [_PADDING] * (self.shape - len(batches[-1]))
            data = self.campaign.data
            yield from DataLoader(data, batch_sampler=batches, collate_fn=_whole, num_workers=self.workers)


PROBABILITIES = (
    "the model returns probabilities, not logits (every row lies in [0, 1] and sums to 1): gradients through a softmax "
    "vanish where the model is sure, attacks then look weak; leave out the last softmax"
)


def _whole(batch: Any) -> Any:
    """Collate function of batches that the data set has already put together."""
    return batch
