"""Time and memory of merging a large campaign: python benchmarks/ledger_scale.py [--rows 1000000]

Fills the ledgers of 8 processes with invented outcomes of 50,000 samples under as many attacks as give so many rows,
and then, in fresh processes, merges them and writes the whole report. Prints seconds and the largest resident memory.
Targets: merge and report of 1,000,000 rows in 60 s and 2 GB.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adversarial_lightning.attacks import DDN, PGD, Attack
from adversarial_lightning.evaluation import Campaign, Outcome, write_report
from adversarial_lightning.evaluation.campaign.ledger import Ledger
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.outcomes.types import RunCost

RANKS, BATCH = 8, 128


class Numbers:
    """Data set without pixels: only the numbers of `n` samples, which is all that merging needs."""

    def __init__(self, n: int) -> None:
        self.indices = torch.arange(n)

    def __len__(self) -> int:
        return len(self.indices)


def campaign(folder: Path, rows: int, samples: int) -> Campaign:
    """Campaign of two thirds budget attacks at growing radii and one third minimum-norm attacks."""
    attacks = max(1, rows // samples - 1)
    suite: dict[str, Attack] = {}
    for i in range(attacks):
        suite[f"a{i:02}"] = DDN(steps=100 + i) if i % 3 == 2 else PGD(eps=0.01 * (i + 1))
    return Campaign(suite, Numbers(samples), samples, 0, folder, "benchmark")


def fill(folder: Path, rows: int, samples: int) -> int:
    """Write the ledgers; returns the number of rows."""
    c, written = campaign(folder, rows, samples), 0
    rng = np.random.default_rng(0)
    for rank in range(RANKS):
        own = c.samples[rank::RANKS]
        with Ledger(folder, rank, identity="benchmark", run="fill") as ledger:
            ledger._connection.execute("PRAGMA synchronous = OFF")  # the disk is not what is measured
            cost = RunCost("fill", rank, RANKS, seconds=1.0, done=True)
            for k, name in enumerate(("clean", *c.suite)):
                breaks = rng.random(len(own)) < 0.9 * k / (1 + len(c.suite))
                lengths = rng.random(len(own)) * 0.01 * (k if k else 0)
                for start in range(0, len(own), BATCH):
                    batch = [
                        Outcome(
                            own[i],
                            0,
                            0,
                            int(breaks[i]),
                            int(not breaks[i]),
                            3,
                            *[lengths[i]] * 3,
                            9.0,
                            None,
                            2,
                            2,
                            0.01,
                        )
                        for i in range(start, min(start + BATCH, len(own)))
                    ]
                    ledger.add(name, 0, batch, cost)
                    written += len(batch)
    return written


def measured(phase: str, folder: Path, rows: int, samples: int, tell: Any) -> None:
    """Run one phase in this process; sends seconds of wall and CPU, peak memory before and after in MB, and a note."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter(), time.process_time()
    c = campaign(folder, rows, samples)
    if phase == "merge":
        note = str(merge(c)["worst_case"][0]["robust_accuracy"])
    else:
        facts = {"checkpoint": {"path": "a.ckpt", "sha256": "0"}, "data": {"class_path": "X", "init_args": {}}}
        write_report(c, merge(c), **facts, defenses=[], required_adaptations={}, command="python evaluate.py")
        note = ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in sorted(folder.glob("re*.*")))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tell.put((time.perf_counter() - wall, time.process_time() - cpu, before, after, note))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=50_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        written = fill(Path(name), given.rows, given.samples)
        size = sum(p.stat().st_size for p in Path(name).glob("ledgers/*.sqlite")) / 1e6
        print(f"{written:,} rows in {RANKS} ledgers, {size:.0f} MB, written in {time.perf_counter() - started:.1f} s")
        context = multiprocessing.get_context("spawn")
        for phase in ("merge", "merge and report"):
            tell = context.Queue()
            process = context.Process(target=measured, args=(phase, Path(name), given.rows, given.samples, tell))
            process.start()
            wall, cpu, before, after, note = tell.get()
            process.join()
            memory = f"peak memory {after:,.0f} MB ({before:,.0f} MB before)"
            print(f"{phase}: {wall:.1f} s by the clock, {cpu:.1f} s of CPU, {memory}; {note}")
    print("targets: 60 s and 2,000 MB for 1,000,000 rows")


if __name__ == "__main__":
    main()
