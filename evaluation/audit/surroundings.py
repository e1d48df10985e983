"""A check for models whose answers depend on clock, files, environment or process."""

import datetime
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.evaluation.audit.check import Share
from adversarial_lightning.evaluation.audit.inputs import Task
from adversarial_lightning.evaluation.audit.samples import differs
from adversarial_lightning.evaluation.audit.untouched import Namespace, namespaces

_YEAR = 365.25 * 86400
_CLOCKS = "time", "monotonic", "perf_counter", "process_time", "thread_time"


def same_elsewhere(task: Task) -> Share:
    """M4: answers are the same at another time, by a clock that stands, in another folder and as another process.

    Asked are the images and points of the ball, of the model and of a copy that was never asked. A defense that reads
    its clock or its surroundings in another way than Python's is not found.
    """
    samples, claim = task.samples, task.threat_model
    few = samples[slice(0, samples.rows)]
    near = few.moved(claim.norm, claim.eps, few.noise("M4")).x
    asked = [replace(few, model=model) for model in (samples.model, samples.judge)]

    def answers() -> list[Tensor]:
        return [part.logits(z) for z in (near, few.x) for part in asked]  # what is perturbed is asked first

    before, odd = answers(), {}
    for place, there in places(samples.model).items():
        with there():
            now = answers()
        odd[place] = torch.stack([differs(a, b) for a, b in zip(before, now, strict=True)]).any(0)
    k = int(torch.stack(list(odd.values())).any(0).sum())
    said = ", ".join(place for place, rows in odd.items() if bool(rows.any())) or "at other times and places"
    return Share(
        k=k,
        n=len(few),
        of=samples.of,
        sentence=f"The answers for {k} of {len(few)} samples were others {said}",
        bad="what was printed holds only there",
    )


def places(model: nn.Module) -> dict[str, Callable[[], Any]]:
    """Contexts in which Python's clock, folders, environment or process are others."""
    spaces = [space for space in namespaces(model) if not isinstance(space, type)]
    return {
        "a year later": partial(_clock, spaces, lambda true: true + _YEAR),
        "eleven hours later": partial(_clock, spaces, lambda true: true + 11 * 3600),
        "by a clock that stands": partial(_clock, spaces, lambda true: 1e9),
        "in an empty folder": _elsewhere,
        "as another process": partial(_replaced, spaces, {(os, "getpid"): lambda: 1, (os, "getppid"): lambda: 0}),
    }


@contextmanager
def _clock(spaces: Sequence[Namespace], now: Callable[[float], float]) -> Iterator[None]:
    """Context in which Python's clocks show `now` of the true time, also where `spaces` have them by name."""
    others: dict[tuple[Any, str], Any] = {}
    for clock in _CLOCKS:
        true = getattr(time, clock)
        others[time, clock] = lambda true=true: now(true())
        others[time, f"{clock}_ns"] = lambda true=true: int(1e9 * now(true()))
    wall = time.time
    for parts in ("localtime", "gmtime", "ctime"):
        true = getattr(time, parts)
        others[time, parts] = lambda seconds=None, true=true: true(now(wall()) if seconds is None else seconds)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return cls.fromtimestamp(now(wall()), tz)

        @classmethod
        def utcnow(cls) -> "Later":
            return cls.fromtimestamp(now(wall()), datetime.timezone.utc).replace(tzinfo=None)

    class Day(datetime.date):
        @classmethod
        def today(cls) -> "Day":
            return cls.fromtimestamp(now(wall()))

    others |= {(datetime, "datetime"): Later, (datetime, "date"): Day}
    with _replaced(spaces, others):
        yield


@contextmanager
def _replaced(spaces: Sequence[Namespace], others: dict[tuple[Any, str], Any]) -> Iterator[None]:
    """Context in which attributes have other values, and also the variables of `spaces` that are the same object."""
    true = {id(getattr(owner, name)): other for (owner, name), other in others.items()}
    owners = [*dict.fromkeys(owner for owner, _ in others), *spaces]
    changed = [(space, n, v, true[id(v)]) for space in owners for n, v in list(vars(space).items()) if id(v) in true]
    try:
        for space, name, _, other in changed:
            setattr(space, name, other)
        yield
    finally:
        for space, name, value, _ in changed:
            setattr(space, name, value)


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Context with few variables and an empty folder: for work, for temporary files and as the user's own."""
    folder, variables_before, temporary = os.getcwd(), dict(os.environ), tempfile.tempdir
    with ExitStack() as stack:
        empty = stack.enter_context(tempfile.TemporaryDirectory())
        try:
            os.chdir(empty)
            kept = {n: v for n, v in variables_before.items() if n in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")}
            os.environ.clear()
            os.environ.update(kept | {"HOME": empty, "TMPDIR": empty})
            tempfile.tempdir = empty
            yield
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(variables_before)
            tempfile.tempdir = temporary
