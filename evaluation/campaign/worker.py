"""Worker: finds its missing samples, attacks them, stores the outcomes."""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_convert

from adversarial_lightning.attacks.core.noise import noise_for
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.identity import code
from adversarial_lightning.evaluation.campaign.launch import OnProgress, Rank
from adversarial_lightning.evaluation.campaign.ledger import Ledger, columns
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.resources import ResourceMeter
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, AttackRun
from adversarial_lightning.evaluation.outcomes.model_error import (
    is_finding,
    out_of_memory,
    place,
    raised_outcomes,
    words,
)
from adversarial_lightning.evaluation.outcomes.outcome import (
    PROBABILITIES,
    Outcome,
    defender_noise,
    evaluate_batch,
    predict,
)
from adversarial_lightning.evaluation.outcomes.types import AttackContext, Columns, Flags, RunCost
from adversarial_lightning.networks.eval_mode import device_of, returns_probabilities

_PADDING = -1  # position of the data set's dummy image, whose index is negative


def run_campaign(
    campaign: Campaign,
    model: nn.Module,
    rank: Rank = Rank(),  # noqa: B008 (frozen)
    *,
    batch_size: int = 128,
    workers: int = 0,
    on_progress: OnProgress = lambda name, done, broken: None,
    attack_context: AttackContext = nullcontext,
) -> None:
    """Do everything of a campaign that the process `rank` owns and no ledger holds; needs no other process.

    `model` maps images in [0, 1] to logits, on the device where it lies. `workers` processes load the data of each
    process. `on_progress` hears of every batch; `attack_context` is entered for every attack (see `low_precision`).
    Raises ValueError where another run writes into the folder.
    """
    with Ledger(campaign.folder, rank.rank, identity=campaign.identity, run=rank.run) as ledger:
        worker = Worker(
            campaign=campaign,
            model=model,
            rank=rank,
            ledger=ledger,
            batch_size=min(batch_size, campaign.n),
            workers=workers,
            on_progress=on_progress,
            attack_context=attack_context,
        )
        for name in (CLEAN, *campaign.suite):
            worker.attack(campaign.runs(name))
        worker.finish()


@dataclass
class Worker:
    """One process of a campaign: its samples, what is known of them so far, and the means to go on."""

    campaign: Campaign
    model: nn.Module
    rank: Rank
    ledger: Ledger
    batch_size: int
    workers: int
    on_progress: OnProgress
    attack_context: AttackContext
    reported: dict[str, tuple[int, float]] = field(default_factory=dict)
    loaded: set[tuple[str, int]] = field(default_factory=set)
    answered: bool = False  # the model has answered in this process

    def __post_init__(self) -> None:
        self.device = device_of(self.model)
        self.status = self.campaign.blank_status(self.campaign.samples[self.rank.rank :: self.rank.world])
        self.classes = np.full(len(self.status.samples), -1)  # predicted without an attack
        self.meter = ResourceMeter(self.device)
        self.cost = RunCost(self.rank.run, self.rank.rank, self.rank.world, code())

    def attack(self, runs: Sequence[AttackRun]) -> None:
        """Do what is missing of these runs, in their order."""
        for run in runs:
            missing = self.status.samples[self.missing(run)]
            self.report_progress(run.name)
            for x, y, index in self.batches(missing.tolist()):
                self.attack_batch(run, x.to(self.device), y.to(self.device), index.to(self.device))
                self.report_progress(run.name)

    def missing(self, run: AttackRun) -> Flags:
        """Which samples a run has still to attack; what the ledgers hold of it is read the first time."""
        key = run.name, run.restart
        if key not in self.loaded:
            self.loaded.add(key)
            self.record(run, self.campaign.table(run))
        return self.status.needs(run) & ~self.status.seen[key]

    def attack_batch(self, run: AttackRun, x: Tensor, y: Tensor, index: Tensor) -> None:
        """Evaluate one batch and store its outcomes."""
        before = global_states(self.device)
        outcomes, errors = self.attempt(run, x, y, index)
        if errors and len(errors) == len(outcomes) and not (self.answered or self.answers()):
            raise _never_answers(next(iter(errors.values())), run.name, x)
        self.answered = self.answered or len(errors) < len(outcomes)
        if before != global_states(self.device) and run.name not in self.cost.global_draws.splitlines():
            self.cost.global_draws += f"{run.name}\n"
        # A worker whose parent is gone must not write: the next run may have taken over its samples already.
        self.rank.exit_if_orphaned()
        self.update_cost(self.cost.batches + 1)
        raised = {number: words(error) for number, error in errors.items()}
        self.ledger.add(run.name, run.restart, outcomes, self.cost, raised)
        self.record(run, columns(outcomes))

    def attempt(
        self, run: AttackRun, x: Tensor, y: Tensor, index: Tensor
    ) -> tuple[list[Outcome], dict[int, Exception]]:
        """Outcomes of a batch, and errors of the model by the numbers of the samples on which it raised them.

        Where the model raises an error the batch is halved until it is known which samples are to blame: they count as
        wrong. Where halves raise none, it is no sample's, and all of these rows count as wrong. Errors that do not come
        out of the model, UserError and lack of memory are raised again.
        """
        try:
            return self.evaluated(run, x, y, index), {}
        except Exception as error:
            if out_of_memory(error):
                raise UserError(f"{words(error)} (in {run.name}): set a smaller --batch_size than {len(x)}") from error
            if not is_finding(self.model, error):
                raise
            if (index < 0).any():  # it may be the padding's
                return self.attempt(run, *(t[index >= 0] for t in (x, y, index)))
            parts = list(zip(x.chunk(2), y.chunk(2), index.chunk(2), strict=True)) if len(x) > 1 else []
            halves = [self.attempt(run, *part) for part in parts]
            errors = {number: each for _, part in halves for number, each in part.items()}
            if errors:
                return [outcome for part, _ in halves for outcome in part], errors
            clean = torch.full_like(y, -1) if run.attack is None else self.clean_predictions(y, index)
            return raised_outcomes(x, y, index, clean, self.campaign.scored), dict.fromkeys(index.tolist(), error)

    def evaluated(self, run: AttackRun, x: Tensor, y: Tensor, index: Tensor) -> list[Outcome]:
        """Outcomes of a batch."""
        if run.name == CLEAN and not self.cost.batches:
            self.warn_of_probabilities(x, index)
        outcomes, _ = evaluate_batch(
            self.model,
            run.attack,
            x,
            y,
            index,
            seed=self.campaign.seed,
            name=run.name,
            restart=run.restart,
            # Predictions without an attack are in the ledger already: one forward less for each batch.
            clean=None if run.attack is None else self.clean_predictions(y, index),
            draws=self.campaign.draws,
            detector=self.model.detector if self.campaign.scored else None,  # type: ignore[arg-type]
            attack_context=self.attack_context,
        )
        return outcomes

    def answers(self) -> bool:
        """Whether the model answers on images on which it has answered before, in whatever process."""
        known = self.campaign.table(AttackRun(CLEAN, 0, None))
        numbers = known["index"][known["adversarial"] >= 0][: self.batch_size].tolist()
        x, y, index = self.campaign.batch(numbers, self.device)
        try:
            predict(self.model, x, y, defender_noise(self.campaign.seed, index, 1))
        except Exception:
            return False
        return len(numbers) > 0

    def warn_of_probabilities(self, x: Tensor, index: Tensor) -> None:
        """Warn early where the model returns probabilities instead of logits."""
        with noise_for(self.model, defender_noise(self.campaign.seed, index, 1)[0]):
            self.cost.probabilities = returns_probabilities(self.model, x)
        if self.cost.probabilities and self.rank.rank == 0:
            print(f"warning: {PROBABILITIES}", file=sys.stderr, flush=True)

    def clean_predictions(self, y: Tensor, index: Tensor) -> Tensor:
        """The classes (B,) predicted without an attack; the label for padding."""
        at = np.searchsorted(self.status.samples, index.clamp(min=0).cpu().numpy())
        classes = torch.from_numpy(self.classes[at.clip(max=len(self.classes) - 1)]).to(y.device)
        return torch.where(index < 0, y, classes)

    def record(self, run: AttackRun, rows: Columns) -> None:
        """Take rows of the ledgers, or new ones, into the status of the samples."""
        self.status.record(run, rows)
        if run.name == CLEAN:
            at, own = self.status.find(rows["index"])
            self.classes[at] = rows["adversarial"][own]

    def report_progress(self, name: str) -> None:
        """Report the rows that are done, and the samples broken, since the last time."""
        before, now = self.reported.get(name, (0, 0.0)), self.status.progress(name)
        self.reported[name] = now
        self.on_progress(name, now[0] - before[0], now[1] - before[1])

    def update_cost(self, batches: int) -> None:
        """Read the meter."""
        self.meter.lap()
        self.cost.batches, self.cost.seconds = batches, self.meter.seconds
        self.cost.peak_memory, self.cost.energy = self.meter.peak_memory, self.meter.energy

    def finish(self) -> None:
        """Note that all is done, where anything was to do."""
        if self.cost.batches:
            self.update_cost(self.cost.batches)
            self.cost.done = True
            self.ledger.store_cost(self.cost)

    def batches(self, samples: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The samples in batches that all have the same shape, because rounding depends on it."""
        positions = [self.campaign.positions[sample] for sample in samples]
        batches = [positions[i : i + self.batch_size] for i in range(0, len(positions), self.batch_size)]
        if batches:
            batches[-1] += [_PADDING] * (self.batch_size - len(batches[-1]))
            data = self.campaign.data
            yield from DataLoader(data, batch_sampler=batches, collate_fn=default_convert, num_workers=self.workers)


def _never_answers(error: Exception, name: str, x: Tensor) -> UserError:
    """The message where the model has not answered on a single image: it was set up wrongly."""
    size = " x ".join(map(str, x.shape[1:]))
    where = "" if name == CLEAN else f" under {name}"
    mistake = UserError(
        f"the model raised an error on each of the first images{where}, before it had answered on any: {words(error)} "
        f"(at {place(error)}). Does it fit the data, whose images are {size}, and is every file there that it reads?"
    )
    mistake.__cause__ = error
    return mistake


def global_states(device: torch.device) -> tuple[object, ...]:
    """States of the global generators of torch (the CPU's and that of `device`), numpy and Python: draws change one."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    of_numpy: dict[str, Any] = np.random.get_state(legacy=False)
    inner = of_numpy["state"]
    return *(state.numpy().tobytes() for state in states), inner["key"].tobytes(), inner["pos"], random.getstate()
