"""What one process does of a campaign: it finds out what is missing of its samples, foretells, attacks and journals."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adversarial_lightning.evaluation.campaign.identity import code
from adversarial_lightning.evaluation.campaign.launch import Place, Tell
from adversarial_lightning.evaluation.campaign.ledger import Ledger, columns
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.resources import Meter
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, Unit
from adversarial_lightning.evaluation.outcomes.outcome import (
    PROBABILITIES,
    defender,
    evaluate_batch,
    gives_probabilities,
)
from adversarial_lightning.evaluation.outcomes.types import Around, Columns, Effort, Flags

Foretell = Callable[[float], None]  # seconds that this run will take from its start to its end

_PADDING = -1  # position of the data set's dummy image, whose index is negative
_MANY = 16  # batches of a share from which on a cascade of part-filled first batches costs little


@dataclass
class Share:
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


def _whole(batch: Any) -> Any:
    """Collate function of batches that the data set has already put together."""
    return batch


def run_campaign(
    campaign: Campaign,
    model: nn.Module,
    here: Place = Place(),  # noqa: B008 (frozen)
    *,
    batch_size: int = 128,
    workers: int = 0,
    tell: Tell = lambda name, done, fallen: None,
    foretell: Foretell = lambda seconds: None,
    around: Around = nullcontext,
) -> None:
    """Do everything of a campaign that the process `here` owns and no ledger holds; needs no other process.

    `model` maps images in [0, 1] to logits, on the device where it lies. `workers` processes load the data.
    `tell` hears of progress, `foretell` once, after the first batch of every attack, how long it all will take.
    `around` is entered for every attack (see `hasten`).
    Raises ValueError where another run writes into the folder.
    """
    with Ledger(campaign.folder, here.rank, identity=campaign.identity, run=here.run) as ledger:
        share = Share(campaign, model, here, ledger, min(batch_size, campaign.n), workers, tell, around)
        share.sweep(campaign.units(CLEAN))
        seconds = share.forecast()
        if seconds is not None:
            foretell(seconds)
        share.sweep([unit for name in campaign.suite for unit in campaign.units(name)])
        share.finish()
