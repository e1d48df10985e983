"""Works through a plan: fits what is not fitted and evaluates, beside other processes that do the same."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adversarial_lightning.checkpoints.files import digest_file
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.launch import cores
from adversarial_lightning.reproduce.papers import digests, records
from adversarial_lightning.reproduce.papers.plan import Evaluation, Fit, Plan

Task = Fit | Evaluation
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any process is forked
_CLI, _MEASURE = "adversarial_lightning.cli", "adversarial_lightning.reproduce.papers.measure"


class Failed(Exception):
    """A command ended with an error."""


class Work:
    """The tasks of a plan, each claimed by a lock in its folder, so that no two processes do one at once.

    A killed process loses what a killed fit or evaluation loses: the next one goes on from its checkpoint or ledger.
    """

    def __init__(self, plan: Plan, jobs: int = 1, tell: Callable[[str], None] = print) -> None:
        self.plan, self.jobs, self.tell = plan, jobs, tell
        self.claiming = threading.Lock()
        self.taken: set[str] = set()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.elsewhere: set[str] = set()
        self.failed: dict[str, str] = {}
        self.stopped = False

    def run(self) -> int:
        """Do all that can be done; return the number of tasks that failed."""
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.stop())
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                workers = [pool.submit(self._work) for _ in range(self.jobs)]
                try:
                    for worker in workers:
                        worker.result()
                except BaseException:  # else the pool would first wait for all that is left
                    self.stop()
                    raise
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
        if self.stopped:
            sys.exit(143)
        for title in sorted(self.elsewhere):
            self.tell(f"another process is at it: {title}")
        return len(self.failed)

    def stop(self) -> None:
        """Let the commands that run write what they have, and begin no other."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()

    def _work(self) -> None:
        while not self.stopped and (task := self._next()):
            self.tell(f"begin {task.title} (about {task.minutes:.1f} CPU-minutes)")
            try:
                minutes = self._do(task)
            except Timeout:
                self.elsewhere.add(task.title)
            except Failed as error:
                self.failed[task.title] = str(error)
                if not self.stopped:
                    self.tell(f"failed: {task.title}: {error}")
            else:
                self.tell(f"done {task.title} ({minutes:.1f} CPU-minutes)")

    def _next(self) -> Task | None:
        """The first task whose fits are there, and that nobody has taken."""
        with self.claiming:
            order = sorted(self.plan.tasks, key=lambda task: isinstance(task, Fit))  # evaluate what is fitted first
            for task in order:
                needs = task.before if isinstance(task, Fit) else [task.fit]
                ready = all(fit.state == "done" for fit in needs)
                if task.state != "done" and task.title not in self.taken and ready:
                    self.taken.add(task.title)
                    return task
        return None

    def _do(self, task: Task) -> float:
        """Do a task and record it; return its CPU-minutes. Timeout where another process has claimed it."""
        task.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(task.folder / "claim.lock", timeout=0):
            if task.state == "done":
                return 0.0
            return self._fit(task) if isinstance(task, Fit) else self._evaluate(task)

    def _fit(self, fit: Fit) -> float:
        if fit.other_settings:
            raise Failed(
                f"{fit.folder} holds a fit with other settings than those of today: move it away, or remove it"
            )
        (fit.folder / "settings.txt").write_text(fit.settings)
        self._command([_CLI, *fit.command()], fit.folder)
        minutes = spent(fit.folder)
        content = {"training": fit.name, "seed": fit.seed, "checkpoint": digest_file(fit.checkpoint)}
        code = digests.code(fit.content)
        records.write(fit.record, content, settings=fit.settings, code=code, minutes=minutes)
        (fit.folder / "done").touch()
        return minutes

    def _evaluate(self, evaluation: Evaluation) -> float:
        if evaluation.column.measure:
            self._command(measure_words(evaluation), evaluation.folder)
            content = json.loads((evaluation.folder / "measured.json").read_text())
        else:
            self._command([_CLI, *evaluation.command()], evaluation.folder)
            content = records.of_evaluation(json.loads((evaluation.folder / "results.json").read_text()))
        minutes = spent(evaluation.folder)
        content = {"training": evaluation.fit.name, "seed": evaluation.fit.seed, **content}
        record = {"settings": evaluation.settings, "code": evaluation.code, "minutes": minutes}
        records.write(evaluation.record, content, **record)  # type: ignore[arg-type]
        return minutes

    def _command(self, words: Sequence[str], folder: Path) -> None:
        """Run a module of ours with its share of the cores; its output and CPU time go into the folder."""
        threads = str(max(1, cores() // self.jobs))
        environ = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **alone(os.environ)}
        log = folder / "log.txt"
        with log.open("ab") as output:
            command = [sys.executable, "-m", *words]
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environ, preexec_fn=_end_with_parent
            )
            self.running.add(process)
            if self.stopped:
                process.terminate()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.running.discard(process)
        with (folder / "spent.txt").open("a") as file:
            file.write(f"{usage.ru_utime + usage.ru_stime:.1f}\n")
        if process.returncode not in (0, 3):  # 3: the clean accuracy is not the published one
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            raise Failed(f"{' '.join(last)} (status {process.returncode}, {log})")


def alone(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment without what a launcher says of its ranks: each command here works alone, on a task of its own."""
    launchers = ("SLURM_", "TORCHELASTIC_", "MASTER_", "OMPI_", "PMI_")
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "ROLE_RANK")
    return {name: value for name, value in environ.items() if name not in ranks and not name.startswith(launchers)}


def _end_with_parent() -> None:
    """Let this new process get SIGTERM when its parent is killed: nobody holds the claim of its folder then (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def spent(folder: Path) -> float:
    """CPU-minutes that the commands in a folder have taken, all tries together."""
    path = folder / "spent.txt"
    return sum(map(float, path.read_text().split())) / 60 if path.exists() else 0.0


def measure_words(evaluation: Evaluation) -> list[str]:
    """Module and words of the process that calls a measure."""
    column, fit = evaluation.column, evaluation.fit
    request = {
        "measure": column.measure,
        "arguments": dict(column.arguments),
        "checkpoint": None if fit.training.model else str(fit.checkpoint),
        "data": str(fit.places.data) if fit.places.data else None,
        "n": column.n,
        "output": str(evaluation.folder),
    }
    return [_MEASURE, json.dumps(request)]


def measure_named(path: str) -> Callable[..., dict[str, Any]]:
    """The function behind the import path of a measure, below reproduce. UserError where there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(f"adversarial_lightning.reproduce.{module}"), name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise UserError(f"there is no measure {path!r} in reproduce: {error}") from error
