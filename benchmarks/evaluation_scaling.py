"""Overhead and scaling of an evaluation: python benchmarks/evaluation_scaling.py [--samples 256]

Prints (a) samples/s of 2 processes with 1 thread each against 1 process with 1 thread, in the attack phase only: by the
wall clock, which needs 2 idle cores, and by the CPU time of the slower process, which does not; (b) the additional time
of ledger and verification beyond the bare attack. Random pixels: only time is measured. Targets: >= 1.8x and <= 3 %.
"""

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

import torch

from adversarial_lightning.attacks import PGD
from adversarial_lightning.datamodules.images import TensorImages
from adversarial_lightning.evaluation import Campaign, evaluate_batch, run_campaign
from adversarial_lightning.evaluation.campaign.launch import Rank
from adversarial_lightning.evaluation.campaign.ledger import Ledger
from adversarial_lightning.networks import SmallCNN

BATCH = 64


def campaign(folder: Path, samples: int, steps: int) -> tuple[SmallCNN, Campaign]:
    """Campaign with a network that is always right, so that every sample takes the same work."""
    torch.manual_seed(0)
    model = SmallCNN().eval()  # its last layer is zero: always class 0
    images = TensorImages(torch.rand(samples, 1, 28, 28), torch.zeros(samples, dtype=torch.int64))
    return model, Campaign({"pgd": PGD(eps=0.1, steps=steps)}, images, samples, 0, folder, "benchmark")


def work(folder: Path, samples: int, steps: int, rank: int, world: int, barrier: Barrier) -> None:
    """Run one process of a campaign; writes the seconds (wall, CPU) of its attack phase to a file."""
    torch.set_num_threads(1)
    model, c = campaign(folder, samples, steps)
    marks: list[tuple[float, float]] = []
    x, y, _ = c.data.__getitems__(list(range(BATCH)))
    c.suite["pgd"](model, x, y)  # the first call allocates and compiles

    def tell(name: str, done: int, broken: int) -> None:
        if name == "pgd":
            if not marks:
                barrier.wait()  # all start attacking together
            marks.append((time.perf_counter(), time.process_time()))

    run_campaign(c, model, Rank(rank, world, run="benchmark"), batch_size=BATCH, tell=tell)
    wall, cpu = (after - before for before, after in zip(marks[0], marks[-1], strict=True))
    (folder / f"seconds{rank}").write_text(f"{wall} {cpu}")


def slowest(samples: int, steps: int, world: int) -> tuple[float, float]:
    """Seconds (wall, CPU) of the slowest of `world` processes in the attack."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder, barrier = Path(name), context.Barrier(world)
        ranks = range(world)
        processes = [context.Process(target=work, args=(folder, samples, steps, r, world, barrier)) for r in ranks]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        seconds = [tuple(map(float, (folder / f"seconds{rank}").read_text().split())) for rank in ranks]
    return max(s[0] for s in seconds), max(s[1] for s in seconds)


def overhead(samples: int, steps: int) -> float:
    """Additional time of an evaluated and stored batch, in per cent of the bare attack (median)."""
    shares = []
    with tempfile.TemporaryDirectory() as name:
        model, c = campaign(Path(name), samples, steps)
        with Ledger(c.folder, 0, identity="benchmark", run="benchmark") as ledger:
            for i in range(0, samples - BATCH + 1, BATCH):
                x, y, index = c.data.__getitems__(list(range(i, i + BATCH)))
                started = time.perf_counter()
                outcomes, _ = evaluate_batch(model, c.suite["pgd"], x, y, index, seed=0, name="pgd", clean=y)
                ledger.add("pgd", 0, outcomes)
                attacked = sum(o.seconds for o in outcomes)
                shares.append(100 * (time.perf_counter() - started - attacked) / attacked)
    return median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    walls, cpus, costs = [], [], []
    for _ in range(given.repeats):
        (wall1, cpu1), (wall2, cpu2) = (slowest(given.samples, given.steps, world) for world in (1, 2))
        walls.append(wall1 / wall2)
        cpus.append(cpu1 / cpu2)
        costs.append(overhead(given.samples, given.steps))
        rates = f"{given.samples / wall1:.1f} and {given.samples / wall2:.1f} samples/s"
        print(
            f"1 and 2 processes: {rates}, {walls[-1]:.2f}x; by CPU time {cpus[-1]:.2f}x; evaluation {costs[-1]:+.1f} %"
        )
    print(f"median: 2 processes {median(walls):.2f}x, by CPU time {median(cpus):.2f}x (target >= 1.8)")
    print(f"median: ledger and verification {median(costs):+.1f} % of PGD-{given.steps} (target <= 3)")


if __name__ == "__main__":
    main()
