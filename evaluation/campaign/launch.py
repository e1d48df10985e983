"""Rank of this process; starts worker processes and stops them when the parent dies."""

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

OnProgress = Callable[[str, int, float], None]  # name of the attack, rows done, samples broken

_PARENT, _RUN = "EVALUATION_PARENT", "EVALUATION_RUN"


@dataclass(frozen=True)
class Rank:
    """Rank of a process among those of one run, its rank on this machine, and the run's name.

    `parent` is the pid of the process that must be alive for this one to write, None for a process that runs alone;
    `spawned` says that it is one of our own workers.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    run: str = "one process"
    parent: int | None = None
    spawned: bool = False

    def exit_if_orphaned(self) -> None:
        """Exit where the parent is gone: nobody waits for the outcomes, and a new run may already be writing."""
        if self.parent is not None and os.getppid() != self.parent:
            sys.exit(f"worker {self.rank}: the process that started me (pid {self.parent}) is gone")


def find_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """The rank of this process, from our own launcher, torchrun or SLURM; alone where nothing is set."""
    if _PARENT in environ:
        rank, world, local = (int(environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return Rank(rank, world, local, environ[_RUN], int(environ[_PARENT]), spawned=True)
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
        run = "torchrun " + " ".join(environ.get(name, "-") for name in names)
        rank, world = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        parent = os.getppid() if "TORCHELASTIC_RUN_ID" in environ else None
        return Rank(rank, world, int(environ.get("LOCAL_RANK", rank)), run, parent)
    # In a batch script outside srun, SLURM_PROCID is set too, but there is only one process.
    outside_srun = "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ
    if "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ and not outside_srun:
        run = "slurm " + " ".join(environ.get(name, "-") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        rank, world = int(environ["SLURM_PROCID"]), int(environ["SLURM_NTASKS"])
        return Rank(rank, world, int(environ.get("SLURM_LOCALID", rank)), run)
    return Rank(run=uuid.uuid4().hex)


def install_signal_handlers(rank: Rank) -> None:
    """End with status 143 on SIGTERM, and at once when the parent dies (Linux)."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if rank.parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; `exit_if_orphaned` guards elsewhere
    rank.exit_if_orphaned()


def spawn(command: Sequence[str], world: int, on_progress: OnProgress) -> int:
    """Run `world` workers of `command` and pass on their progress.

    Returns the exit status of the first worker that failed, or 0.

    Plain subprocesses with the environment of torchrun: one code path for all launchers, and nothing to pickle.
    """
    threads = str(max(1, cores() // world))
    environ = {"OMP_NUM_THREADS": threads, **os.environ, _PARENT: str(os.getpid()), _RUN: uuid.uuid4().hex}
    reader, writer = os.pipe()  # one for all: lines are shorter than PIPE_BUF, so they arrive whole
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(world):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            worker = subprocess.Popen(command, env={**environ, **ranks}, stdin=subprocess.DEVNULL, stdout=writer)
            workers.append(worker)
        os.close(writer)
        with open(reader) as lines:
            for line in lines:
                try:
                    name, done, broken = json.loads(line)
                except (ValueError, TypeError):
                    print(line, end="")  # something else that a worker printed
                else:
                    on_progress(name, done, broken)
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in workers:
            worker.wait()
    for rank, code in enumerate(codes):
        if code < 0:
            print(f"worker {rank} was killed by signal {-code}; finished batches are kept, run again:", file=sys.stderr)
            print(shlex.join(command), file=sys.stderr)
    return next((code if code > 0 else 1 for code in codes if code), 0)


def report_to_parent(name: str, done: int, broken: float) -> None:
    """Pass a worker's progress on to the process that started it."""
    os.write(sys.stdout.fileno(), f"{json.dumps([name, done, broken])}\n".encode())  # one write: whole lines only


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
