"""Does a campaign survive being killed? ``pytest -m slow tests/test_kill_campaign.py``, or with other numbers

python tests/test_kill_campaign.py [--kills 50] [--samples 1000] [--seed 0]

Runs evaluate.py over 1,000 images of digits under 5 attacks on 2 processes: once undisturbed, once with random
SIGKILLs, after each of which the same command goes on with a random number of processes. Half of the kills hit the
process that was started, and with it all workers; half hit one worker, whose siblings go on. Kills are spread over the
campaign by the rows that are recorded. Prints what was lost, and fails where results.json differs in anything but cost,
or where a killed process lost more than one batch.
"""

import argparse
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn

from adversarial_lightning.attacks import Attack, Noise
from adversarial_lightning.attacks.combinators import Combination
from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.datamodules import Digits, ImageFolder
from adversarial_lightning.networks import MLP

ROOT = Path(__file__).resolve().parent.parent
BATCH, LOG = 25, "KILL_CAMPAIGN_LOG"
COSTS = ("seconds", "forwards", "backwards")
SUITE: dict[str, dict[str, Any]] = {
    "fgsm": {"class_path": "FGSM", "init_args": {"eps": 0.1}},
    "pgd": {"class_path": "PGD", "init_args": {"eps": 0.1, "steps": 60}},
    "restarted": {"class_path": "PGD", "init_args": {"eps": 0.1, "steps": 40}},
    "apgd": {"class_path": "APGD", "init_args": {"eps": 0.1, "steps": 60}},
    "ddn": {"class_path": "DDN", "init_args": {"steps": 80}},
}


@dataclass(frozen=True)
class Logged(Combination):
    """The attack itself, after a line with the process's id in the file that the environment names."""

    attack: Attack

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        with open(os.environ[LOG], "a") as log:
            log.write(f"{os.getpid()}\n")
        return self.attack.perturb(model, x, y, noise)


def prepare(folder: Path, samples: int) -> None:
    """Images, a small trained network and a suite, as evaluate.py wants them."""
    digits = Digits(size=8, val_size=1)
    pixels, labels, _ = digits.dataset("train").__getitems__(list(range(samples)))
    for i, (x, y) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        for part in ("train", "test") if i < 20 else ("test",):
            home = folder / "images" / part / str(y)
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray((x[0] * 255).round().byte().numpy()).save(home / f"{i:05}.png")
    data = ImageFolder(str(folder / "images"), num_classes=10, image_size=8, channels=1, val_size=1)
    torch.manual_seed(0)
    net = MLP(10, 64, [64])
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(pixels), labels).backward()
        optimizer.step()
    weights = {f"network.{name}": tensor for name, tensor in net.state_dict().items()}
    recorded = {"network": describe(net), "data": describe(data)}
    torch.save({"state_dict": weights, "catalogue": recorded}, folder / "net.ckpt")
    suite = {}
    for name, attack in SUITE.items():
        suite[name] = {"class_path": "test_kill_campaign.Logged", "init_args": {"attack": attack}}
    suite["restarted"] = {"class_path": "Restarts", "init_args": {"n": 3, "attack": suite["restarted"]}}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))


def start(folder: Path, output: Path, processes: int) -> "subprocess.Popen[bytes]":
    words = {"checkpoint": folder / "net.ckpt", "suite": folder / "suite.yaml", "output": output}
    words |= {"devices": processes, "batch_size": BATCH, "accelerator": "cpu"}
    command = [sys.executable, str(ROOT / "evaluate.py"), *(f"--{name}={value}" for name, value in words.items())]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), LOG: str(output) + ".log", "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environ, **quiet)  # type: ignore[call-overload,no-any-return]


def query(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    """The rows of all ledgers, each with its rank in front."""
    rows = []
    for path in (folder / "ledgers").glob("rank*.sqlite"):
        connection = sqlite3.connect(path, timeout=60)
        try:
            rank = int(path.stem.removeprefix("rank"))
            rows += [(rank, *row) for row in connection.execute(statement)]
        except sqlite3.OperationalError:  # not yet created
            pass
        finally:
            connection.close()
    return rows


def recorded(folder: Path) -> int:
    return sum(row[1] for row in query(folder, "SELECT count(*) FROM outcomes"))


def clean_rows(folder: Path) -> dict[int, int]:
    return dict(query(folder, "SELECT count(*) FROM outcomes WHERE attack = 'clean'"))


def writers(folder: Path) -> dict[int, int]:
    """Ranks by the ids of the processes that wrote last."""
    owners = {}
    for path in (folder / "ledgers").glob("rank*.owner"):
        with suppress(ValueError, KeyError):  # just being written
            owners[int(json.loads(path.read_text())["pid"])] = int(path.stem.removeprefix("rank"))
    return owners


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@dataclass
class Figures:
    kills: int = 0
    runs: int = 0
    lost: list[int] = field(default_factory=list)  # batches that each killed process had begun and not recorded


def lost(output: Path, dead: set[int], clean_before: dict[int, int]) -> list[int]:
    """Batches of attacks that the `dead` processes of one run began and did not record."""
    log = Path(str(output) + ".log")
    begun = [int(line) for line in log.read_text().split()] if log.exists() else []
    ranks, clean = writers(output), clean_rows(output)
    latest = {rank: batches for rank, batches in query(output, "SELECT batches FROM costs ORDER BY rowid")}
    found = []
    for pid in dead & ranks.keys() & set(begun):
        rank = ranks[pid]
        looked = math.ceil((clean[rank] - clean_before.get(rank, 0)) / BATCH)  # batches without an attack
        found.append(begun.count(pid) - (latest[rank] - looked))
    return found


def disturb(folder: Path, output: Path, kills: int, total: int, rng: random.Random) -> Figures:
    """Run the campaign to its end through so many kills."""
    figures = Figures()
    targets = sorted(rng.randrange(total) for _ in range(kills))
    while True:
        before, clean_before = recorded(output), clean_rows(output)
        running = start(folder, output, rng.choice((1, 2, 2, 3)))
        figures.runs += 1
        pids: set[int] = {running.pid}
        dead: set[int] = set()
        while running.poll() is None:
            pids |= set(children(running.pid))
            # A kill is due when its target is passed, but only once this run has recorded something of its own.
            rows = recorded(output)
            if targets and rows >= max(targets[0], before + 1):
                time.sleep(rng.random() * 0.05)
                alive = [pid for pid in children(running.pid) if pid not in dead]
                victim = rng.choice(alive) if alive and rng.random() < 0.5 else running.pid
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                targets.pop(0)
                figures.kills += 1
                dead |= pids if victim == running.pid else {victim}
                if victim == running.pid:
                    running.wait()
            time.sleep(0.1)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)  # workers die with the process that started them
        figures.lost += lost(output, dead, clean_before)
        if running.returncode == 0:
            return figures
        if not dead:
            raise SystemExit(f"a run ended with status {running.returncode} although nobody killed it")


def numbers(output: Path) -> dict[str, Any]:
    """results.json without what it cost."""
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    attacks = [{k: v for k, v in a.items() if k not in COSTS} for a in results["attacks"]]
    return {**results, "attacks": attacks, "cost": None}


@pytest.mark.slow
def test_killed_campaigns_end_with_the_same_numbers() -> None:
    main(["--kills", "10", "--samples", "400"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.samples)
        started = time.monotonic()
        if start(folder, folder / "calm", 2).wait():
            raise SystemExit("the undisturbed run failed: run its command by hand")
        total, calm = recorded(folder / "calm"), time.monotonic() - started
        print(f"undisturbed: {total:,} rows of {given.samples:,} samples and 5 attacks on 2 processes, {calm:.0f} s")
        started = time.monotonic()
        figures = disturb(folder, folder / "killed", given.kills, total, random.Random(given.seed))
        seconds = time.monotonic() - started
        calm_numbers, killed_numbers = numbers(folder / "calm"), numbers(folder / "killed")
        differing = [key for key, value in calm_numbers.items() if killed_numbers.get(key) != value]
        same = calm_numbers == killed_numbers
        verdict = "identical" if same else f"DIFFERENT in {', '.join(differing)}"
        print(f"{figures.kills} kills in {figures.runs} runs, {seconds:.0f} s: results {verdict}")
        worst = max(figures.lost, default=0)
        print(
            f"lost: {sum(figures.lost)} batches of {BATCH} by {len(figures.lost)} killed processes that had begun an "
            f"attack, at most {worst} each (target: identical, at most 1)"
        )
        if not same or worst > 1 or figures.kills < given.kills:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
