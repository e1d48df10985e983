"""A paper's tables as read from ``configs/papers/NAME.yaml``: rows, columns, printed numbers, claims, and trainings."""

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from adversarial_lightning.configs import FOLDER
from adversarial_lightning.errors import UserError

Scale = Literal["paper", "cores"]
SCALES: tuple[Scale, ...] = ("paper", "cores")
Direction = Literal["worse", "better", "both", "nothing"]
PAPERS = FOLDER / "papers"
TRAININGS = "trainings"  # the folder beside the papers with what is trained

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training, shared by all rows that name it; it fills a run folder of the same name.

    `experiment` is a packaged one, `arguments` are further words of ``lightning fit``, `minutes` the CPU-minutes on one
    core. `weights`: the best or the last checkpoint. `leaves_out` says what is reduced against the paper, `explains`
    what that can explain: numbers that are worse than the paper's, better, both, or nothing; by column where it differs
    (``other`` for those that are not named).
    `needs` names trainings whose checkpoints stand in `arguments` as ``{NAME}``. `model` are words of ``lightning
    evaluate`` that name a model from elsewhere, instead of `experiment`: nothing is trained then.
    """

    experiment: str | None = None
    arguments: Sequence[str] = ()
    minutes: float = 0.0
    weights: Literal["best", "last"] = "best"
    leaves_out: str = ""
    explains: Direction | Mapping[str, Direction] = "nothing"
    seeds: Sequence[int] = (0,)
    needs: Sequence[str] = ()
    model: Sequence[str] = ()

    def can_explain(self, column: str) -> Direction:
        """What the reduction can explain in a column."""
        if isinstance(self.explains, str):
            return self.explains
        return self.explains.get(column, self.explains.get("other", "nothing"))


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: the `entry` of a `suite` (``clean``, an attack, ``worst``), or the `key` of what `measure` returns.

    `value` is what is read of a suite's entry: accuracy, error, or a key of ``attacks`` in results.json, such as
    success_rate and relative_norm. Shares are shown in percent (`percent`). `n` test images; `better`: higher or lower
    numbers are better for the defender. `attack` compares it with the paper's: same, stronger, weaker, other.
    `minutes` of evaluation on one core, a row; of all columns of one suite and n the largest counts, once. `audit` is
    the level.
    `options` are further words of ``lightning evaluate``.
    """

    suite: str | None = None
    entry: str = ""
    value: str = "accuracy"
    measure: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    n: int | None = None
    percent: bool = True
    better: Literal["higher", "lower"] = "higher"
    attack: Literal["same", "stronger", "weaker", "other"] = "same"
    minutes: float = 0.0
    audit: Literal["none", "brief", "quick", "full"] = "none"
    mode: Literal["full", "worst_case"] = "full"
    options: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: the trainings of its scales, what stands in front of the classifier, and the printed numbers by column.

    `spread` are their standard deviations over the paper's runs, where those are printed.
    `only` are the columns that this row has besides those with a printed number. `reason` says why it cannot be made.
    `times` is how much more an evaluation costs than the column's `minutes` say. `key` is what ``{row}`` in the key of
    a measure stands for, so that several rows read one evaluation.
    """

    paper: str | None = None
    cores: str | None = None
    printed: Mapping[str, float | str] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    only: Sequence[str] | None = None
    defenses: str | None = None
    detector: str | None = None
    options: Sequence[str] = ()
    reason: str = ""
    note: str = ""
    times: float = 1.0
    key: str = ""

    def training(self, scale: Scale) -> str | None:
        """Name of the training at a scale; None where there is none."""
        return self.paper if scale == "paper" else self.cores


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim in words, tested on the same images: row `better` is better than row `than` in column `column`."""

    better: str
    than: str
    column: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table or figure of a paper. One that cannot be made has a `reason`; a drawn one has the word of a `figure`."""

    title: str
    columns: Mapping[str, Column] = field(default_factory=dict)
    rows: Mapping[str, Row] = field(default_factory=dict)
    claims: Sequence[Claim] = ()
    figure: str = ""
    picture: str = ""
    reason: str = ""
    note: str = ""

    def columns_of(self, row: Row) -> list[str]:
        """Names of the columns that a row has, in the table's order."""
        if row.only is not None:
            return [name for name in self.columns if name in row.only or name in row.printed]
        ours = [name for name in self.columns if not any(name in other.printed for other in self.rows.values())]
        return [name for name in self.columns if name in row.printed or name in ours]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper: its source, its tables and figures by number, and what its symbols are called here."""

    name: str
    title: str
    authors: str
    year: int
    source: str
    code: str | None
    tables: Mapping[str, Table]
    symbols: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def names() -> list[str]:
    """Names of the papers that there are."""
    return sorted(path.stem for path in PAPERS.glob("*.yaml"))


@functools.cache
def trainings(folder: Path = PAPERS) -> Mapping[str, Training]:
    """All trainings by name, of all files. Raises UserError for a setting that there is not, and a name given twice."""
    found: dict[str, Training] = {}
    for path in sorted((folder / TRAININGS).glob("*.yaml")):
        for name, entry in _content(path).items():
            if name in found:
                raise UserError(f"{path}: there is another training {name!r}")
            found[name] = _made(Training, entry, f"{path.name}: {name}")
    for name, training in found.items():
        if bool(training.experiment) == bool(training.model):
            raise UserError(f"training {name}: it has either an experiment or the words of a model")
        for needed in training.needs:
            if needed not in found:
                raise UserError(f"training {name} needs {needed!r}, which there is not{known(needed, found)}")
    return found


@functools.cache
def load(name: str, folder: Path = PAPERS) -> Paper:
    """The paper of a file in `folder`, or of the file that `name` is the path of.

    Raises UserError for an unknown paper (and names the known ones), a setting, column, row or training that there is
    not.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"there is no paper {name!r}{known(name, names())}")
    content = _content(path)
    tables = {str(key): _table(entry, f"{path.name}, table {key}") for key, entry in content.pop("tables", {}).items()}
    paper: Paper = _made(Paper, {"name": path.stem, "tables": tables, **content}, path.name)
    for key, table in tables.items():
        _check(table, f"{path.name}, table {key}", trainings(path.parent))
    return paper


def known(given: str, candidates: Iterable[str]) -> str:
    """End of a sentence on an unknown name: what was meant, and what there is."""
    there = sorted(candidates)
    close = difflib.get_close_matches(given, there, n=1)
    return (f"; did you mean {close[0]}?" if close else "") + f" (known: {', '.join(there)})"


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no mapping of names to settings")
    return content


def _table(entry: Any, where: str) -> Table:
    entry = dict(_mapping(entry, where))
    shared = _mapping(entry.pop("shared", {}), f"{where}, shared")  # settings of all columns
    columns = {
        str(name): _made(Column, {**shared, **_mapping(c, where)}, f"{where}, column {name}")
        for name, c in _mapping(entry.pop("columns", {}), where).items()
    }
    rows = {
        str(name): _made(Row, _row(row), f"{where}, row {name}")
        for name, row in _mapping(entry.pop("rows", {}), where).items()
    }
    claims = [_made(Claim, claim, f"{where}, claim") for claim in entry.pop("claims", [])]
    table: Table = _made(Table, {**entry, "columns": columns, "rows": rows, "claims": claims}, where)
    return table


def _row(entry: Any) -> Any:
    if isinstance(entry, dict) and isinstance(entry.get("printed"), dict):
        return {**entry, "printed": {str(name): value for name, value in entry["printed"].items()}}
    return entry


def _mapping(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {entry!r} is no mapping of names to settings")
    return entry


def _made(cls: type[T], entry: Any, where: str) -> T:
    given = _mapping(entry, where)
    there = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for name in given:
        if name not in there:
            raise UserError(f"{where}: there is no setting {name!r}{known(str(name), there)}")
    for name, hint in get_type_hints(cls).items():
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        if name in given and choices and given[name] not in choices:
            raise UserError(f"{where}: {name} is {given[name]!r}{known(str(given[name]), map(str, choices))}")
    ways = given.get("explains", "nothing")
    for way in ways.values() if isinstance(ways, dict) else (ways,):
        if way not in get_args(Direction):
            raise UserError(f"{where}: explains is {way!r}{known(str(way), get_args(Direction))}")
    try:
        return cls(**given)
    except TypeError as error:
        raise UserError(f"{where}: {str(error).partition(') ')[2] or error}") from error


def _check(table: Table, where: str, trained: Mapping[str, Training]) -> None:
    """Raise UserError where a name means nothing."""
    for name, row in table.rows.items():
        for column in (*row.printed, *row.spread, *(row.only or ())):
            if column not in table.columns:
                raise UserError(f"{where}, row {name}: there is no column {column!r}{known(column, table.columns)}")
        for scale in SCALES:
            if (training := row.training(scale)) and training not in trained:
                raise UserError(f"{where}, row {name}: there is no training {training!r}{known(training, trained)}")
    for claim in table.claims:
        for named in (claim.better, claim.than):
            if named not in table.rows:
                raise UserError(f"{where}: a claim is on row {named!r}, which there is not{known(named, table.rows)}")
        if claim.column not in table.columns:
            raise UserError(f"{where}: a claim is on column {claim.column!r}{known(claim.column, table.columns)}")
    for name, spec in table.columns.items():
        if bool(spec.suite) == bool(spec.measure):
            raise UserError(f"{where}, column {name}: it has either a suite (with an entry) or a measure (with a key)")
