"""How far a campaign is: a bar for each attack with the robust accuracy that still stands."""

import sys
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bars:
    """Context manager; `tell(name, rows done, samples fallen)` advances: on a terminal bars, else a line an attack.

    `runs` maps names to the number of runs, `n` is the number of samples; `quiet` shows nothing.
    """

    def __init__(self, runs: Mapping[str, int], n: int, quiet: bool = False) -> None:
        self.n, self.quiet = n, quiet
        self.left = {name: n * times for name, times in runs.items()}
        self.standing = dict.fromkeys(runs, n)
        self.live = sys.stderr.isatty() and not quiet
        columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        standing = TextColumn("{task.fields[standing]}")
        self.progress = Progress(*columns, standing, console=Console(stderr=True), disable=not self.live)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def tell(self, name: str, done: int, fallen: int) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=self.left[name], standing="")
        self.left[name] -= done
        self.standing[name] -= fallen
        standing = f"{100 * self.standing[name] / self.n:.1f} % standing"
        self.progress.update(self.tasks[name], advance=done, standing=standing)
        if not (self.live or self.quiet) and done and self.left[name] <= 0:
            print(f"{name}: {standing} of {self.n} samples", file=sys.stderr, flush=True)
