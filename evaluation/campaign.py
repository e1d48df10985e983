"""An evaluation that survives a kill: every process attacks its own samples and journals every batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attacks import Attack, Restarts, threat
from evaluation.ledger import Ledger, read
from evaluation.outcome import Outcome, evaluate_batch, robust
from evaluation.processes import Place, Tell

CLEAN = "clean"  # the name of the rows without an attack
_PADDING = -1  # position of the data set's dummy image, whose index is negative


@dataclass(frozen=True)
class Unit:
    """One run of one attack (None: no attack) over the samples that still stand."""

    name: str
    restart: int
    attack: Attack | None


@dataclass(frozen=True)
class Campaign:
    """What is evaluated: `suite` (attacks by name) on the first `n` of `data`, journaled in `folder` under `identity`.

    `data` is a data set of numbered images: `indices`, and batches ``(x, y, index)`` by position, where position -1
    is a dummy with a negative index. A `Restarts` of a budget attack at the top of the suite becomes as many runs,
    each with its rows; a later run sees only the samples that the earlier ones have left standing. Raises ValueError
    for an empty suite, an attack called "clean", and an n without samples.
    """

    suite: Mapping[str, Attack]
    data: Any
    n: int
    seed: int
    folder: Path
    identity: str

    def __post_init__(self) -> None:
        if not self.suite:
            raise ValueError("the suite names no attack: write at least one, `name: {class_path: ..., init_args: ...}`")
        if CLEAN in self.suite:
            raise ValueError(f"an attack cannot be called {CLEAN!r}, the name of the rows without one: rename it")
        if not 1 <= self.n <= len(self.data):
            raise ValueError(f"{self.n} samples were asked for and the data has {len(self.data)}: set --limit between")

    @cached_property
    def samples(self) -> list[int]:
        """Numbers of the chosen samples, in the order of the data."""
        numbers: list[int] = self.data.indices[: self.n].tolist()
        return numbers

    def units(self, name: str) -> list[Unit]:
        """The runs of one attack of the suite, or of `CLEAN`."""
        attack = None if name == CLEAN else self.suite[name]
        if isinstance(attack, Restarts) and attack.kind == "budget":
            return [Unit(name, restart, attack.attack) for restart in range(attack.n)]
        return [Unit(name, 0, attack)]

    def stands(self, name: str, outcome: Outcome) -> bool:
        """Whether the model withstood: `robust` in the ball of the attack."""
        if name == CLEAN:
            return outcome.clean == outcome.label
        return robust(outcome, *threat(self.suite[name]), self.suite[name].kind)

    def outcomes(self, unit: Unit) -> Iterator[Outcome]:
        """What the ledgers hold of one run, in ascending order of the samples."""
        return read(self.folder, unit.name, unit.restart, identity=self.identity)

    def run(
        self,
        model: nn.Module,
        here: Place = Place(),  # noqa: B008 (frozen)
        *,
        batch_size: int = 128,
        workers: int = 0,
        tell: Tell = lambda name, done, fallen: None,
    ) -> None:
        """Do everything that the process `here` owns and no ledger holds; needs no other process.

        `model` maps images in [0, 1] to logits, on the device where it lies. `workers` processes load the data.
        `tell` hears of progress. Raises ValueError where another run writes into the folder.
        """
        device = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
        owned = self.samples[here.rank :: here.world]
        correct = owned
        with Ledger(self.folder, here.rank, identity=self.identity, run=here.run) as ledger:
            for name in (CLEAN, *self.suite):
                units = self.units(name)
                standing = owned if name == CLEAN else correct
                tell(name, (len(owned) - len(standing)) * len(units), len(owned) - len(standing))
                for unit in units:
                    verdicts = {o.index: self.stands(name, o) for o in self.outcomes(unit)}
                    verdicts = {sample: verdicts[sample] for sample in standing if sample in verdicts}
                    self._tell(tell, unit, len(units), verdicts)
                    missing = [sample for sample in standing if sample not in verdicts]
                    for x, y, index in self._batches(missing, min(batch_size, self.n), workers):
                        x, y, index = x.to(device), y.to(device), index.to(device)
                        batch = evaluate_batch(
                            *(model, unit.attack, x, y, index),
                            seed=self.seed,
                            name=name,
                            restart=unit.restart,
                            clean=None if unit.attack is None else y,  # only what stands is attacked
                        )
                        here.alive()
                        ledger.add(name, unit.restart, batch)
                        news = {o.index: self.stands(name, o) for o in batch}
                        self._tell(tell, unit, len(units), news)
                        verdicts |= news
                    standing = [sample for sample in standing if verdicts[sample]]
                if name == CLEAN:
                    correct = standing

    def _batches(self, samples: Sequence[int], shape: int, workers: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The samples in batches that all have `shape` rows, because rounding depends on the shape."""
        where = {sample: position for position, sample in enumerate(self.samples)}
        positions = [where[sample] for sample in samples]
        batches = [positions[i : i + shape] for i in range(0, len(positions), shape)]
        if batches:
            batches[-1] += [_PADDING] * (shape - len(batches[-1]))
            yield from DataLoader(self.data, batch_sampler=batches, collate_fn=_whole, num_workers=workers)

    @staticmethod
    def _tell(tell: Tell, unit: Unit, runs: int, verdicts: Mapping[int, bool]) -> None:
        """A fallen sample has its later runs behind it."""
        fallen = sum(not stands for stands in verdicts.values())
        tell(unit.name, len(verdicts) + fallen * (runs - unit.restart - 1), fallen)


def _whole(batch: Any) -> Any:
    """Collate function of batches that the data set has already put together."""
    return batch
