"""Which process am I, and how several are started: workers that never outlive the one who started them."""

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

Tell = Callable[[str, int, float], None]  # name of the attack, rows done, samples fallen

_PARENT, _RUN = "EVALUATION_PARENT", "EVALUATION_RUN"


@dataclass(frozen=True)
class Place:
    """Rank among the processes of one run, rank on this machine, and the run's name.

    `parent` is the pid of the process that must be alive for this one to write, None for a process that stands alone;
    `spawned` says that it is one of our own workers.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    run: str = "one process"
    parent: int | None = None
    spawned: bool = False

    def alive(self) -> None:
        """Exit where the parent is gone: nobody waits for the outcome, and a new run may already be writing."""
        if self.parent is not None and os.getppid() != self.parent:
            sys.exit(f"worker {self.rank}: the process that started me (pid {self.parent}) is gone")


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """This process's place, from our own launcher, torchrun or SLURM; alone where nothing is set."""
    if _PARENT in environ:
        rank, world, local = (int(environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return Place(rank, world, local, environ[_RUN], int(environ[_PARENT]), spawned=True)
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
        run = "torchrun " + " ".join(environ.get(name, "-") for name in names)
        rank, world = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        parent = os.getppid() if "TORCHELASTIC_RUN_ID" in environ else None
        return Place(rank, world, int(environ.get("LOCAL_RANK", rank)), run, parent)
    # In a batch script outside srun, SLURM_PROCID is set too, but there is only one process.
    outside_srun = "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ
    if "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ and not outside_srun:
        run = "slurm " + " ".join(environ.get(name, "-") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        rank, world = int(environ["SLURM_PROCID"]), int(environ["SLURM_NTASKS"])
        return Place(rank, world, int(environ.get("SLURM_LOCALID", rank)), run)
    return Place(run=uuid.uuid4().hex)


def behave(here: Place) -> None:
    """Die with the parent (Linux), and end with status 143 on SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if here.parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; Place.alive guards elsewhere
    here.alive()


def spawn(command: Sequence[str], world: int, tell: Tell, foretell: Callable[[float], None]) -> int:
    """Run `world` workers of `command` and pass on their progress and the first one's forecast.

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
                    name, done, fallen = json.loads(line)
                except (ValueError, TypeError):
                    print(line, end="")  # something else that a worker printed
                else:
                    if name is None:
                        foretell(fallen)
                    else:
                        tell(name, done, fallen)
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


def tell_parent(name: str | None, done: int, fallen: float) -> None:
    """What a worker does with its progress; without a name, the seconds that it foretells."""
    os.write(sys.stdout.fileno(), f"{json.dumps([name, done, fallen])}\n".encode())  # one write: whole lines only


def foretell_parent(here: Place) -> Callable[[float], None]:
    """What a worker does with its forecast: the first one speaks for all, whose shares are alike."""
    return lambda seconds: tell_parent(None, 0, seconds) if here.rank == 0 else None


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
