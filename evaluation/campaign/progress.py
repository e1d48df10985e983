"""Progress of a campaign: a bar for each attack, with the robust accuracy so far."""

import sys
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Rate(ProgressColumn):
    """Samples a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.3g} samples/s")


class Bars:
    """Progress bars on a terminal, else a line for each finished attack; a context manager.

    `runs` maps names of attacks to their number of runs, `n` is the number of samples; `quiet` shows nothing.
    """

    def __init__(self, runs: Mapping[str, int], n: int, quiet: bool = False) -> None:
        self.n, self.quiet = n, quiet
        self.left = {name: n * times for name, times in runs.items()}
        self.robust = {name: float(n) for name in runs}
        self.live = sys.stderr.isatty() and not quiet
        columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        robust = TextColumn("{task.fields[robust]}")
        console = Console(stderr=True)
        self.progress = Progress(*columns, Rate(), robust, console=console, disable=not self.live)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def update(self, name: str, done: int, broken: float) -> None:
        """Advance the bar of one attack by so many rows `done` and samples `broken`."""
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=self.left[name], robust="")
        self.left[name] -= done
        self.robust[name] -= broken
        robust = f"{100 * self.robust[name] / self.n:.1f} % robust"
        self.progress.update(self.tasks[name], advance=done, robust=robust)
        if not (self.live or self.quiet) and done and self.left[name] <= 0:
            print(f"{name}: {robust} of {self.n} samples", file=sys.stderr, flush=True)
