"""Locks of ledgers: one for each, and beside it the name of the run that holds it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from adversarial_lightning.errors import UserError

_PATIENCE = 60.0  # seconds to wait for others who look around too
_GRACE = 3.0  # seconds in which the killed workers of an earlier run let go of their locks


def ledgers(folder: Path) -> list[Path]:
    """Ledger files of a campaign's folder."""
    return sorted((folder / "ledgers").glob("rank*.sqlite"))


def check_free(folder: Path, run: str) -> None:
    """Raise ValueError where a process of another run than `run` is writing ledgers in this folder."""
    deadline = time.monotonic() + _GRACE
    for path in ledgers(folder):
        _wait_for(path, run, deadline)


@contextmanager
def claimed(path: Path, run: str) -> Iterator[FileLock]:
    """Hold the lock of one ledger, while no process of another run holds any lock of the folder."""
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
    """Wait until nobody, or only `run`, holds the lock of `path`; raise UserError at the deadline."""
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


def _occupied(path: Path) -> UserError:
    owner = _owner(path)
    return UserError(
        f"another evaluation (pid {owner.get('pid', '?')} on {owner.get('host', '?')}) is writing into "
        f"{path.parent.parent}: wait for it, stop it, or choose another --output"
    )
