"""How far a campaign is: a bar for each attack with the robust accuracy that still stands."""

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
    """Context manager; `tell(name, rows done, samples fallen)` advances: on a terminal bars, else a line an attack.

    `runs` maps names to the number of runs, `n` is the number of samples, `processes` that of those at work; `quiet`
    shows nothing.
    """

    def __init__(self, runs: Mapping[str, int], n: int, processes: int = 1, quiet: bool = False) -> None:
        self.n, self.processes, self.quiet = n, processes, quiet
        self.left = {name: n * times for name, times in runs.items()}
        self.standing = {name: float(n) for name in runs}
        self.live = sys.stderr.isatty() and not quiet
        columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        standing = TextColumn("{task.fields[standing]}")
        console = Console(stderr=True)
        self.progress = Progress(*columns, Rate(), standing, console=console, disable=not self.live)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def tell(self, name: str, done: int, fallen: float) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=self.left[name], standing="")
        self.left[name] -= done
        self.standing[name] -= fallen
        standing = f"{100 * self.standing[name] / self.n:.1f} % standing"
        self.progress.update(self.tasks[name], advance=done, standing=standing)
        if not (self.live or self.quiet) and done and self.left[name] <= 0:
            self._print(f"{name}: {standing} of {self.n} samples")

    def foretell(self, seconds: float) -> None:
        """Say how long it all will take."""
        if not self.quiet:
            processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
            self._print(f"about {duration(seconds)} on {processes}, timed on the first batch of every attack")

    def _print(self, text: str) -> None:
        if self.live:
            self.progress.console.print(text, highlight=False)  # above the bars
        else:
            print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time as people say it, such as "41 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
