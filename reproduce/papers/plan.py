"""Plan of a paper: fits and evaluations behind the cells of its tables, what of them is done, and what they cost."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from adversarial_lightning import datamodules
from adversarial_lightning.configs import FOLDER
from adversarial_lightning.errors import UserError
from adversarial_lightning.reproduce.papers import digests, records
from adversarial_lightning.reproduce.papers.paper import Column, Paper, Row, Scale, Table, Training, known, trainings

State = Literal["done", "begun", "to do"]


@dataclass(frozen=True)
class Places:
    """Where run folders, records and pages, and the data lie. `data` is None for the experiments' own folder."""

    runs: Path
    output: Path
    data: Path | None = None
    papers: Path = FOLDER / "papers"

    def record(self, run: str, name: str) -> Path:
        return self.output / "records" / run / f"{name}.json"


@dataclass(frozen=True)
class Fit:
    """Training `name` with one seed. `run` is its folder under `places.runs`."""

    name: str
    training: Training
    seed: int
    places: Places

    @property
    def run(self) -> str:
        return self.name if self.seed == 0 else f"{self.name}_seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.places.runs / self.run

    @property
    def minutes(self) -> float:
        return self.training.minutes

    @property
    def title(self) -> str:
        return f"fit {self.run}"

    @property
    def state(self) -> State:
        if self.training.model:  # nothing is trained; it is there when what it needs is
            return "done" if all(fit.state == "done" for fit in self.before) else "to do"
        if (self.folder / "done").exists() and not self.other_settings:
            return "done"
        return "begun" if (self.folder / "checkpoints" / "last.ckpt").exists() else "to do"

    @property
    def other_settings(self) -> bool:
        """Whether the folder holds a fit that was begun with other settings."""
        path = self.folder / "settings.txt"
        return path.exists() and path.read_text() != self.settings

    @property
    def record(self) -> Path:
        return self.places.record(self.run, "fit")

    @cached_property
    def experiment(self) -> Path | None:
        return packaged("experiments", self.training.experiment) if self.training.experiment else None

    @cached_property
    def content(self) -> Any:
        """The experiment as written, with the words that change it, and what it needs."""
        words = [*self.training.arguments, *self.training.model]
        experiment = digests.written(self.experiment) if self.experiment else None
        needed = {"needs": [fit.content for fit in self.before]} if self.before else {}
        return {"experiment": experiment, "words": words, **needed}

    @cached_property
    def settings(self) -> str:
        return digests.settings(self.content, self.seed)

    @property
    def model_words(self) -> list[str]:
        """Words of ``lightning evaluate`` that name the trained model."""
        if self.training.model:
            return [self.filled(word) for word in self.training.model]
        return ["--checkpoint", str(self.checkpoint)]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"{self.training.weights}.ckpt"

    @property
    def before(self) -> list["Fit"]:
        """Fits whose checkpoints this one needs, each after those that it needs itself."""
        known_ones = trainings(self.places.papers)
        needed = [Fit(name, known_ones[name], 0, self.places) for name in self.training.needs]
        return list({fit.run: fit for direct in needed for fit in (*direct.before, direct)}.values())

    def filled(self, word: str) -> str:
        """`word` with ``{NAME}`` replaced by the checkpoint of a training that it needs, ``{data}`` by the data."""
        for fit in self.before:
            word = word.replace("{" + fit.name + "}", str(fit.checkpoint))
        return word.replace("{data}", str(self.places.data or "data"))

    def command(self) -> list[str]:
        """Words of ``lightning`` that fit it, or go on with it."""
        words = ["fit", "--config", str(self.experiment), *(self.filled(word) for word in self.training.arguments)]
        words += ["--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.folder)]
        words += ["--trainer.enable_progress_bar", "false"]
        own = {"--data", "--data.init_args.root"} & set(self.training.arguments)  # {data} stands in them
        if self.places.data is not None and not own and has_root(digests.written(self.experiment or Path())["data"]):
            words += ["--data.init_args.root", str(self.places.data)]
        if self.state == "begun":
            words += ["--ckpt_path", str(self.folder / "checkpoints" / "last.ckpt")]
        return words


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a fit: the `entries` of a suite, or a measure with its arguments, on `n` test images."""

    fit: Fit
    column: Column
    row: Row
    entries: tuple[str, ...] = ()
    minutes: float = 0.0

    @property
    def run(self) -> str:
        return self.fit.run

    @property
    def title(self) -> str:
        return f"evaluate {self.run}: {self.name}"

    @cached_property
    def name(self) -> str:
        """Name of its record, which tells evaluations of one fit apart."""
        what = self.column.suite or str(self.column.measure).removesuffix(".measure")
        parts = [what, "all" if self.column.n is None else str(self.column.n)]
        parts += [part for part in (self.row.defenses, self.row.detector) if part]
        parts += [part for part in (self.column.mode, self.column.audit) if part not in ("full", "none")]
        if self.entries:
            parts.append("+".join(self.entries))
        name = "-".join(parts).replace("/", "_")
        extra = [dict(self.column.arguments), *self.column.options, *self.row.options]
        long = len(name) > 80 or any(extra)
        return f"{name[:60]}-{digests.settings(name, extra)[:6]}" if long else name

    @property
    def folder(self) -> Path:
        return self.fit.folder / "evaluations" / f"{self.name}-{self.settings[:6]}"  # other settings, another folder

    @property
    def record(self) -> Path:
        return self.fit.places.record(self.run, self.name)

    @cached_property
    def content(self) -> Any:
        """All that was asked for, files followed."""
        column, row = self.column, self.row
        suite = column.suite or column.arguments.get("suite")
        parts = {"suites": suite, "defenses": row.defenses, "detectors": row.detector}
        files = {room: digests.written(packaged(room, name)) if name else None for room, name in parts.items()}
        rest = [column.n, column.mode, column.audit, [*column.options, *row.options], list(self.entries)]
        return {**files, "measure": column.measure, "arguments": dict(column.arguments), "rest": rest}

    @cached_property
    def settings(self) -> str:
        return digests.settings(self.fit.settings, self.fit.training.weights, self.content)

    @cached_property
    def code(self) -> digests.Code:
        """Digests of the code that would compute it now."""
        return digests.code([self.fit.content, self.content], self.column.measure)

    @property
    def recorded(self) -> records.Record | None:
        """Its record, if it was made with the settings of today."""
        record = records.read(self.record)
        return record if record and record.settings == self.settings else None

    @property
    def state(self) -> State:
        if self.recorded:
            return "done"
        return "begun" if (self.folder / "campaign.json").exists() else "to do"

    def command(self) -> list[str]:
        """Words of ``lightning evaluate``."""
        column, row = self.column, self.row
        words = ["evaluate", *self.fit.model_words, "--suite", str(packaged("suites", column.suite or ""))]
        words += ["--only", "[" + ",".join(self.entries) + "]"] if self.entries else []
        words += ["--limit", str(column.n)] if column.n is not None else []
        for option, room, value in (("defenses",) * 2 + (row.defenses,), ("detector", "detectors", row.detector)):
            words += [f"--{option}", str(packaged(room, value))] if value else []
        words += ["--mode", column.mode, "--audit", column.audit, "--output", str(self.folder)]
        return words + [self.fit.filled(word) for word in (*column.options, *row.options)]


@dataclass(frozen=True)
class Cell:
    """One cell of a table at one scale: the evaluations, one a seed, that its number comes from."""

    table: str
    row: str
    column: str
    scale: Scale
    evaluations: tuple[Evaluation, ...]


@dataclass
class Plan:
    """The cells of some tables and rows of a paper at a scale, and the tasks behind them, each once."""

    paper: Paper
    places: Places
    scale: Scale
    tables: Sequence[str] = ()
    only: Sequence[str] = ()
    cells: list[Cell] = field(init=False)

    def __post_init__(self) -> None:
        for name in self.tables:
            if name not in self.paper.tables:
                raise UserError(f"{self.paper.name} has no table {name!r}{known(name, self.paper.tables)}")
        chosen = {k: t for k, t in self.paper.tables.items() if not self.tables or k in self.tables}
        rows = [row for table in chosen.values() for row in table.rows]
        for name in self.only:
            if name not in rows:
                raise UserError(f"there is no row {name!r} in {', '.join(chosen)}{known(name, set(rows))}")
        self.cells = [cell for key, table in chosen.items() for cell in self._cells_of(key, table)]

    def _cells_of(self, key: str, table: Table) -> Iterator[Cell]:
        for name, row in table.rows.items():
            training = row.training(self.scale)
            if training is None or (self.only and name not in self.only):
                continue
            chosen = trainings(self.places.papers)[training]
            fits = [Fit(training, chosen, seed, self.places) for seed in chosen.seeds]
            for column in table.columns_of(row):
                yield Cell(key, name, column, self.scale, tuple(self._evaluation(f, table, row, column) for f in fits))

    def _evaluation(self, fit: Fit, table: Table, row: Row, name: str) -> Evaluation:
        """The evaluation behind a column: of all columns of the row that one evaluation answers."""
        column = table.columns[name]
        together = [c for c in (table.columns[n] for n in table.columns_of(row)) if _group(c) == _group(column)]
        minutes = row.times * max(c.minutes for c in together)
        entries = {c.entry for c in together} - {"clean"}
        if column.measure or not entries or any(entry.startswith("worst") for entry in entries):
            entries = set()
        return Evaluation(fit, column, row, tuple(sorted(entries)), minutes)

    @property
    def evaluations(self) -> list[Evaluation]:
        """Each evaluation once, in the order of the cells."""
        return list({e.record: e for cell in self.cells for e in cell.evaluations}.values())

    @property
    def fits(self) -> list[Fit]:
        """Fits of which an evaluation is missing, each after those it needs; without models from elsewhere."""
        found: dict[str, Fit] = {}
        for evaluation in self.evaluations:
            if evaluation.state != "done":
                for fit in (*evaluation.fit.before, evaluation.fit):
                    found.setdefault(fit.run, fit)
        return [fit for fit in found.values() if not fit.training.model]

    @property
    def missing(self) -> float:
        """CPU-minutes of what is missing."""
        return sum(task.minutes for task in self.tasks if task.state != "done")

    @property
    def tasks(self) -> list[Fit | Evaluation]:
        """Fits and evaluations."""
        return [*self.fits, *self.evaluations]


def _group(column: Column) -> tuple[Any, ...]:
    """What columns of one evaluation have in common."""
    arguments = tuple(sorted(column.arguments.items()))
    return column.suite, column.measure, arguments, column.n, column.mode, column.audit, tuple(column.options)


def packaged(room: str, name: str) -> Path:
    """File of a packaged configuration. Raises UserError where there is none."""
    files = {path.stem: path for path in (FOLDER / room).rglob("*.yaml")}
    names = {str(path.relative_to(FOLDER / room).with_suffix("")): path for path in files.values()} | {
        path.name.removesuffix(".yaml"): path for path in files.values()
    }
    if Path(name).is_file():
        return Path(name)
    if name not in names:
        raise UserError(f"there is no packaged configuration {name!r} in {room}{known(name, names)}")
    return names[name]


def has_root(data: Mapping[str, Any] | str) -> bool:
    """Whether the data of an experiment lies in a folder."""
    path = data["class_path"] if isinstance(data, Mapping) else data
    return "root" in inspect.signature(getattr(datamodules, str(path).rpartition(".")[2])).parameters
