"""Ledgers of outcomes: one SQLite file per process, one commit per batch, read together as one.

SQLite's default rollback journal is used, because WAL does not work on network file systems. A writer that was killed
leaves a hot journal, which the next one who opens the file rolls back: ledgers are therefore never opened read-only.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from adversarial_lightning.checkpoints.files import writing
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.locks import claimed, ledgers
from adversarial_lightning.evaluation.outcomes.outcome import Outcome
from adversarial_lightning.evaluation.outcomes.types import Columns, RunCost

_SCHEMA = 4  # of the tables; kept in SQLite's user_version
_COLUMNS = ["sample" if f.name == "index" else f.name for f in fields(Outcome)]
_WHOLE = {"index", "label", "clean", "adversarial", "right_draws", "attack_failed", "l0"}  # columns of whole numbers
_COST_COLUMNS = ", ".join(f.name for f in fields(RunCost))
_values = attrgetter(
    *(f.name for f in fields(Outcome))
)  # dataclasses.astuple copies deeply, which takes 50 times as long
_CREATE = f"""
CREATE TABLE IF NOT EXISTS campaign (identity TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS costs ({_COST_COLUMNS});
CREATE TABLE IF NOT EXISTS outcomes (
    attack TEXT, restart INTEGER, {", ".join(_COLUMNS)}, PRIMARY KEY (attack, restart, sample)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS raised (attack TEXT, restart INTEGER, sample INTEGER, error TEXT);
"""
_AT_ONCE = 20_000  # rows that are Python objects at the same time
_PATIENCE = 60.0  # seconds to wait for a reader on the same file


class Ledger:
    """Ledger that this process writes: `folder`/ledgers/rank`rank`.sqlite, locked until `close`.

    `run` names the run that this process belongs to. Raises ValueError where a process of another run writes into the
    same folder, where the ledger belongs to a campaign with another `identity`, and where it is damaged; OSError where
    nothing can be written.
    """

    def __init__(self, folder: Path, rank: int, *, identity: str, run: str) -> None:
        home = folder / "ledgers"
        self.path = home / f"rank{rank}.sqlite"
        self._row: int | None = None  # of this run in the table of costs
        with ExitStack() as stack:
            with writing(folder):
                home.mkdir(parents=True, exist_ok=True)
                self._lock = stack.enter_context(claimed(self.path, run))
            with _explained(self.path):
                self._connection = stack.enter_context(closing(_connect(self.path)))
                _check_schema(self._connection, self.path)
                # One transaction, because siblings read at any moment: tables never exist without the identity.
                with self._connection:
                    for statement in ("BEGIN IMMEDIATE", *_CREATE.strip().split(";\n")):
                        self._connection.execute(statement)
                    if not self._connection.execute("SELECT 1 FROM campaign").fetchone():
                        self._connection.execute("INSERT INTO campaign VALUES (?)", (identity,))
                        self._connection.execute(f"PRAGMA user_version = {_SCHEMA}")
                _check(self._connection, self.path, identity)
            self._stack = stack.pop_all()

    def add(
        self,
        attack: str,
        restart: int,
        outcomes: Iterable[Outcome],
        cost: RunCost | None = None,
        raised: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Write the outcomes of one batch and the cost so far in one transaction: all or, after a kill, nothing.

        `raised` are the errors of the model, by the numbers of the samples on which it raised them.
        """
        rows = [(attack, restart, *_values(o)) for o in outcomes]
        with _explained(self.path), self._connection:
            marks = ", ".join("?" * (2 + len(fields(Outcome))))
            self._connection.executemany(f"INSERT INTO outcomes VALUES ({marks})", rows)
            errors = [(attack, restart, sample, error) for sample, error in raised.items()]
            self._connection.executemany("INSERT INTO raised VALUES (?, ?, ?, ?)", errors)
            if cost is not None:
                self._store_cost(cost)

    def store_cost(self, cost: RunCost) -> None:
        """Write the cost without outcomes."""
        with _explained(self.path), self._connection:
            self._store_cost(cost)

    def _store_cost(self, cost: RunCost) -> None:
        """Write one row as long as this ledger is open: a run that is started again may have the same name."""
        if self._row is None:
            found = self._connection.execute("SELECT coalesce(max(rowid), 0) + 1 FROM costs").fetchone()
            self._row = int(found[0])
        marks = ", ".join("?" * (1 + len(fields(RunCost))))
        self._connection.execute(
            f"INSERT OR REPLACE INTO costs (rowid, {_COST_COLUMNS}) VALUES ({marks})", (self._row, *vars(cost).values())
        )

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def columns(outcomes: Iterable[Outcome]) -> Columns:
    """Outcomes as one array a field: whole numbers int64, all others float64 (no score: nan)."""
    return _columns([_values(o) for o in outcomes])


def _columns(rows: list[tuple[Any, ...]]) -> Columns:
    parts = list(zip(*rows, strict=True)) if rows else [()] * len(fields(Outcome))
    return {
        f.name: np.array(part, np.int64 if f.name in _WHOLE else np.float64)
        for f, part in zip(fields(Outcome), parts, strict=True)
    }


def table(folder: Path, attack: str, restart: int, *, identity: str) -> Columns:
    """Outcomes of one run of one attack in all ledgers of the folder, in ascending order of the samples.

    One array a field of `Outcome`. Raises ValueError for damaged and foreign ledgers, and for a sample that is recorded
    twice.
    """
    paths = ledgers(folder)
    parts = [_rows(path, attack, restart, identity) for path in paths]
    whole = {f.name: np.concatenate([columns([])[f.name], *(p[f.name] for p in parts)]) for f in fields(Outcome)}
    order = np.argsort(whole["index"], kind="stable")
    whole = {name: column[order] for name, column in whole.items()}
    twice = np.flatnonzero(np.diff(whole["index"]) == 0)
    if len(twice):
        sample = whole["index"][twice[0]]
        where = " and ".join(str(path) for path, part in zip(paths, parts, strict=True) if sample in part["index"])
        raise UserError(
            f"sample {sample} of {attack} (restart {restart}) is recorded twice, in {where}: "
            "two evaluations have written into one folder; move one of the files away and run the command again"
        )
    return whole


def run_costs(folder: Path, *, identity: str) -> list[RunCost]:
    """Cost of all processes of all runs on this campaign."""
    found = []
    for path in ledgers(folder):
        with _explained(path), closing(_connect(path)) as connection:
            if _started(connection, path, identity):
                rows = connection.execute(f"SELECT {_COST_COLUMNS} FROM costs ORDER BY rowid")
                found += [RunCost(*row) for row in rows]
    return found


def raised(folder: Path, *, identity: str) -> list[tuple[str, int, str]]:
    """Errors that the model raised: name of the attack, number of the sample, the error; ascending."""
    found: list[tuple[str, int, str]] = []
    for path in ledgers(folder):
        with _explained(path), closing(_connect(path)) as connection:
            if _started(connection, path, identity) and _has(connection, "raised"):  # older ledgers have no such table
                found += connection.execute("SELECT attack, sample, error FROM raised")
    return sorted(found)


def _rows(path: Path, attack: str, restart: int, identity: str) -> Columns:
    with _explained(path), closing(_connect(path)) as connection:
        if not _started(connection, path, identity):
            return columns([])
        query = f"SELECT {', '.join(_COLUMNS)} FROM outcomes WHERE attack = ? AND restart = ? ORDER BY sample"
        cursor = connection.execute(query, (attack, restart))
        parts = [columns([])]
        while rows := cursor.fetchmany(_AT_ONCE):
            parts.append(_columns(rows))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _started(connection: sqlite3.Connection, path: Path, identity: str) -> bool:
    """Whether the ledger holds anything: not if its writer was killed before its first commit."""
    _check_schema(connection, path)
    if not _has(connection, "outcomes"):
        return False
    _check(connection, path, identity)
    return True


def _has(connection: sqlite3.Connection, name: str) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone())


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_PATIENCE)


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    empty = not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    if version != _SCHEMA and not empty:
        raise UserError(
            f"{path} was written by another version of this program (its tables are of version {version}, ours of "
            f"version {_SCHEMA}), which chose other samples and named its outcomes otherwise: finish that evaluation "
            "with the version that began it, or choose another --output"
        )


def _check(connection: sqlite3.Connection, path: Path, identity: str) -> None:
    found = [row[0] for row in connection.execute("SELECT identity FROM campaign")]
    if found != [identity]:
        raise UserError(f"{path} was not written by this campaign: move it away, or choose another --output")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Explain SQLite's errors in the terms of a campaign."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"{path} cannot be used: {error}. What is recorded is safe; run again to resume") from error
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.DatabaseError, TypeError) as error:
        raise UserError(
            f"the ledger {path} is damaged ({error}): move it away and run the same command again; "
            "only the samples that it held are then computed anew"
        ) from error
