"""Where outcomes are kept: one SQLite file per process, one commit per batch, read together as one.

SQLite's default rollback journal is used, because WAL does not work on network file systems. A writer that was killed
leaves a hot journal, which the next one who opens the file rolls back: ledgers are therefore never opened read-only.
"""

import heapq
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path

from filelock import FileLock, Timeout

from evaluation.outcome import Outcome

_COLUMNS = ", ".join("sample" if f.name == "index" else f.name for f in fields(Outcome))
_CREATE = f"""
CREATE TABLE IF NOT EXISTS campaign (identity TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS outcomes (
    attack TEXT, restart INTEGER, {_COLUMNS}, PRIMARY KEY (attack, restart, sample)
) WITHOUT ROWID;
"""
_PATIENCE = 60.0  # seconds to wait for a reader on the same file
_GRACE = 3.0  # seconds in which the killed workers of an earlier run let go of their locks


class Ledger:
    """The ledger that this process writes: `folder`/ledgers/rank`rank`.sqlite, locked until `close`.

    `run` names the run that this process belongs to. Raises ValueError where a process of another run writes into the
    same folder, where the ledger belongs to a campaign with another `identity`, and where it is damaged.
    """

    def __init__(self, folder: Path, rank: int, *, identity: str, run: str) -> None:
        home = folder / "ledgers"
        home.mkdir(parents=True, exist_ok=True)
        self.path = home / f"rank{rank}.sqlite"
        with ExitStack() as stack:
            self._lock = stack.enter_context(_claimed(self.path, run))
            with _explained(self.path):
                self._connection = stack.enter_context(closing(_connect(self.path)))
                # One transaction, because siblings read at any moment: tables never stand without the identity.
                with self._connection:
                    for statement in ("BEGIN IMMEDIATE", *_CREATE.strip().split(";\n")):
                        self._connection.execute(statement)
                    if not self._connection.execute("SELECT 1 FROM campaign").fetchone():
                        self._connection.execute("INSERT INTO campaign VALUES (?)", (identity,))
                _check(self._connection, self.path, identity)
            self._stack = stack.pop_all()

    def add(self, attack: str, restart: int, outcomes: Iterable[Outcome]) -> None:
        """Write the outcomes of one batch in one transaction: all of them or, after a kill, none."""
        rows = [(attack, restart, *astuple(o)) for o in outcomes]
        with _explained(self.path), self._connection:
            marks = ", ".join("?" * (2 + len(fields(Outcome))))
            self._connection.executemany(f"INSERT INTO outcomes VALUES ({marks})", rows)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(folder: Path, attack: str, restart: int, *, identity: str) -> Iterator[Outcome]:
    """The outcomes of one run of one attack in all ledgers of the folder, in ascending order of the samples.

    Raises ValueError for damaged and foreign ledgers, and for a sample that is recorded twice.
    """
    last: tuple[int, Path] | None = None
    for outcome, path in heapq.merge(
        *(_rows(p, attack, restart, identity) for p in ledgers(folder)), key=lambda row: row[0].index
    ):
        if last is not None and last[0] == outcome.index:
            raise ValueError(
                f"sample {outcome.index} of {attack} (restart {restart}) is recorded twice, in {last[1]} and {path}: "
                "two evaluations have written into one folder; move one of the files away and run the command again"
            )
        last = (outcome.index, path)
        yield outcome


def ledgers(folder: Path) -> list[Path]:
    """The ledger files of a campaign's folder."""
    return sorted((folder / "ledgers").glob("rank*.sqlite"))


def check_free(folder: Path, run: str) -> None:
    """Raise ValueError where a process of another run than `run` is writing ledgers in this folder."""
    deadline = time.monotonic() + _GRACE
    for path in ledgers(folder):
        _wait_for(path, run, deadline)


def _rows(path: Path, attack: str, restart: int, identity: str) -> list[tuple[Outcome, Path]]:
    with _explained(path), closing(_connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'outcomes'").fetchone():
            return []  # its writer was killed before its first commit
        _check(connection, path, identity)
        query = f"SELECT {_COLUMNS} FROM outcomes WHERE attack = ? AND restart = ? ORDER BY sample"
        return [(Outcome(*row), path) for row in connection.execute(query, (attack, restart))]


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_PATIENCE)


def _check(connection: sqlite3.Connection, path: Path, identity: str) -> None:
    found = [row[0] for row in connection.execute("SELECT identity FROM campaign")]
    if found != [identity]:
        raise ValueError(f"{path} was not written by this campaign: move it away, or choose another --output")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as what they mean here."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"{path} cannot be used: {error}. What is recorded is safe; run again to resume") from error
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.DatabaseError, TypeError) as error:
        raise ValueError(
            f"the ledger {path} is damaged ({error}): move it away and run the same command again; "
            "only the samples that it held are then computed anew"
        ) from error


@contextmanager
def _claimed(path: Path, run: str) -> Iterator[FileLock]:
    """Hold the lock of one ledger; nobody of another run holds any of the folder at that moment."""
    deadline = time.monotonic() + _GRACE
    # Only one process at a time looks around and takes its lock, so an owner file is never older than its lock.
    with FileLock(path.parent / "start.lock", timeout=_PATIENCE):
        for other in ledgers(path.parent.parent):
            if other != path:
                _wait_for(other, run, deadline)
        lock = _lock_of(path)
        try:
            lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        except Timeout:
            raise _occupied(path) from None
        owner = {"run": run, "pid": os.getpid(), "host": socket.gethostname()}
        _owner_of(path).write_text(json.dumps(owner))
    try:
        yield lock
    finally:
        lock.release()


def _wait_for(path: Path, run: str, deadline: float) -> None:
    """Return as soon as nobody, or only `run`, holds the lock of `path`; raise ValueError at the deadline."""
    while True:
        lock = _lock_of(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if _owner(path).get("run") == run:
                return
            if time.monotonic() > deadline:
                raise _occupied(path) from None
            time.sleep(0.1)
        else:
            lock.release()
            return


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"))


def _owner_of(path: Path) -> Path:
    return path.with_suffix(".owner")  # not in the lock file: taking a lock may truncate that


def _owner(path: Path) -> dict[str, object]:
    try:
        owner = json.loads(_owner_of(path).read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _occupied(path: Path) -> ValueError:
    owner = _owner(path)
    return ValueError(
        f"another evaluation (pid {owner.get('pid', '?')} on {owner.get('host', '?')}) is writing into "
        f"{path.parent.parent}: wait for it, stop it, or choose another --output"
    )
