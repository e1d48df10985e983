"""evaluate.py as people run it: processes that are killed, folders in use, files that lie."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PLANTED, numbers, save

from adversarial_lightning.cli import evaluate, main
from adversarial_lightning.evaluation.campaign.ledger import Ledger

SUITE = """
fgsm: {class_path: FGSM, init_args: {eps: 0.05}}
slow:
  class_path: Restarts
  init_args: {n: 2, attack: {class_path: PGD, init_args: {eps: 0.05, steps: 30, eot_samples: 2}}}
"""
DEFENSES = """
- class_path: Purified
  init_args: {purifier: {class_path: RandomQuantizer}}
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """A folder with a checkpoint, a suite and a stochastic defense; the SIGTERM handler is put back afterwards."""
    save(tmp_path / "a.ckpt")
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "defenses.yaml").write_text(DEFENSES)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def arguments(files: Path, output: str, **more: Any) -> list[str]:
    given = {"checkpoint": files / "a.ckpt", "suite": files / "suite.yaml", "output": files / output, **more}
    given = {"accelerator": "cpu", "limit": 60, "audit": "none", **given}
    return [f"--{name}={value}" for name, value in given.items()]


def start(argv: list[str], **environ: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(Path(__file__).resolve().parent.parent / "evaluate.py"), *argv]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ}
    )


def results(folder: Path) -> dict[str, Any]:
    return numbers(json.loads((folder / "results.json").read_text()))


def outcomes(folder: Path) -> list[tuple[Any, ...]]:
    """Attack, restart, sample, label and predictions of all rows in all ledgers."""
    rows = []
    for path in (folder / "ledgers").glob("*.sqlite"):
        connection = sqlite3.connect(path, timeout=30)
        try:
            rows += connection.execute(
                "SELECT attack, restart, sample, label, clean, adversarial FROM outcomes"
            ).fetchall()
        except sqlite3.OperationalError:  # not yet created
            pass
        finally:
            connection.close()
    return sorted(rows)


def wait_for_rows(folder: Path, attack: str, number: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 90
    while sum(row[0] == attack for row in outcomes(folder)) < number:
        assert process.poll() is None and time.monotonic() < deadline, "never came that far"
        time.sleep(0.02)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "ledgers").glob("*.sqlite")}


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_kill_nine_and_other_processes_change_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1 process x 64, 2 x 7, and 2 killed in the middle, then finished by 1: the same; and no orphan writes."""
    defended = {"defenses": files / "defenses.yaml", "draws": 3}
    assert evaluate.main(arguments(files, "one", batch_size=64, **defended)) == 0
    assert "60 " not in capsys.readouterr().err.split("clean")[0]
    expected, rows = results(files / "one"), outcomes(files / "one")
    assert len(rows) > 150 and expected["n"] == 60

    killed = start(arguments(files, "killed", batch_size=2, devices=2, **defended))
    wait_for_rows(files / "killed", "slow", 6, killed)
    workers = children(killed.pid)
    assert len(workers) == 2
    killed.kill()
    killed.communicate()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    before = digests(files / "killed")
    assert before and set(before) <= {"rank0.sqlite", "rank1.sqlite"}  # a slow starter has none yet
    time.sleep(1)
    assert digests(files / "killed") == before  # nobody writes any more
    done = outcomes(files / "killed")
    assert 0 < len(done) < len(rows)

    assert evaluate.main(arguments(files, "killed", batch_size=7, **defended)) == 0
    assert outcomes(files / "killed") == rows and set(done) < set(rows)
    assert results(files / "killed") == expected

    assert evaluate.main(arguments(files, "two", batch_size=7, devices=2, **defended)) == 0
    assert outcomes(files / "two") == rows
    assert results(files / "two") == expected
    assert {p.name for p in (files / "two/ledgers").glob("*.sqlite")} == {"rank0.sqlite", "rank1.sqlite"}
    assert "EOT" not in capsys.readouterr().out  # `slow` averages gradients


@pytest.mark.long
def test_sigterm_ends_with_143_and_the_same_command_resumes(files: Path) -> None:
    argv = arguments(files, "a", batch_size=2)
    process = start(argv)
    wait_for_rows(files / "a", "slow", 4, process)
    process.terminate()
    process.communicate()
    assert process.returncode == 143
    done = outcomes(files / "a")
    assert not (files / "a/results.json").exists()
    assert evaluate.main(argv) == 0
    assert set(done) < set(outcomes(files / "a"))
    assert evaluate.main(arguments(files, "b", batch_size=60)) == 0
    assert results(files / "a") == results(files / "b") and outcomes(files / "a") == outcomes(files / "b")


def test_ranks_of_torchrun_need_no_parent_and_the_last_one_reports(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More processes than samples, and each alone: whoever finds the ledgers complete writes the report."""
    for rank in (1, 3, 0, 2):
        for name, value in {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        assert evaluate.main(arguments(files, "a", limit=3)) == 0
        assert (files / "a/results.json").exists() == (rank == 2)
    assert "process 0 of 4 is done" in capsys.readouterr().out
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    assert evaluate.main(arguments(files, "b", limit=3)) == 0
    assert results(files / "a") == results(files / "b")


def test_another_evaluation_on_the_folder_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adversarial_lightning.evaluation.campaign.locks._GRACE", 0.2)
    assert evaluate.main(arguments(files, "a", limit=2)) == 0
    identity = json.loads((files / "a/campaign.json").read_text())["identity"]
    with Ledger(files / "a", 5, identity=identity, run="another"):
        for devices in (1, 2):
            assert evaluate.main(arguments(files, "a", limit=2, devices=devices)) == 2
            assert f"another evaluation (pid {os.getpid()} on" in capsys.readouterr().err
    assert evaluate.main(arguments(files, "a", limit=2)) == 0


# options that differ from the first evaluation -> the part that the refusal names
OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, "seed"),
    "limit": ({"limit": 4}, "samples"),
    "sample": ({"sample": "first"}, "samples"),
    "sample seed": ({"sample_seed": 1}, "samples"),
    "suite": ({"suite": "other.yaml"}, "suite"),
    "checkpoint": ({"checkpoint": "other.ckpt"}, "checkpoint"),
    "network": ({"network": "network.yaml"}, "checkpoint"),
    "data": ({"data": "data.yaml"}, "data"),
    "defenses": ({"defenses": "defenses.yaml", "draws": 1}, "defenses"),
    "mode": ({"mode": "worst_case"}, "mode"),
    "draws": ({"draws": 2}, "draws"),
}


@pytest.mark.long
@pytest.mark.parametrize("case", OTHER)
def test_the_folder_of_another_evaluation_is_refused(
    case: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, part = OTHER[case]
    (files / "other.yaml").write_text("fgsm: {class_path: FGSM, init_args: {eps: 0.06}}")
    (files / "data.yaml").write_text("class_path: Digits\ninit_args: {size: 8, test_limit: 100}")
    (files / "network.yaml").write_text("class_path: networks.MLP\ninit_args: {features: 64, hidden: [32]}")
    save(files / "other.ckpt", epoch=3)
    paths = {name: files / value if "." in str(value) else value for name, value in options.items()}
    (files / "suite.yaml").write_text("fgsm: {class_path: FGSM, init_args: {eps: 0.05}}")
    assert evaluate.main(arguments(files, "a", limit=2)) == 0
    before = digests(files / "a")
    assert evaluate.main(arguments(files, "a", **{"limit": 2, **paths})) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"holds another evaluation, with other {part}: " in error and "--output" in error
    assert digests(files / "a") == before
    assert evaluate.main(arguments(files, "b", **{"limit": 2, **paths})) == 0  # elsewhere it runs


# what is wrong -> the first words of the one line on stderr
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown class": ({}, "a: {class_path: PGDD}", "PGDD: no such class; did you mean PGD?"),
    "misspelt key": (
        {},
        "a: {class_path: PGD, init_args: {epss: 1}}",
        "Option 'epss' is not accepted; did you mean eps?",
    ),
    "nested key": (
        {},
        "a: {class_path: Restarts, init_args: {attack: {class_path: PGD, init_args: {epss: 1}}}}",
        "Option 'epss' is not accepted; did you mean eps? (in suite.attack, of attacks.PGD)",
    ),
    "eps foo": (
        {},
        "a: {class_path: PGD, init_args: {eps: foo}}",
        "Not of type Radius: 'foo' is not a number: write it",
    ),
    "negative eps": ({}, "a: {class_path: PGD, init_args: {eps: -1}}", "Not of type Radius: -1 is no radius"),
    "no steps": ({}, "a: {class_path: PGD, init_args: {steps: 0}}", "steps must be at least 1, not 0"),
    "no fragment": ({}, "a: gone.yaml", "gone.yaml: no such file (in suite)"),
    "a list": ({}, "- a", "Expected a <class 'dict'>"),
    "empty suite": ({}, "{}", "the suite names no attack"),
    "no suite": ({"suite": "/nowhere.yaml"}, "", "/nowhere.yaml: no such file"),
    "no checkpoint": ({"checkpoint": "/nowhere.ckpt"}, SUITE, "there is no checkpoint /nowhere.ckpt"),
    "no option": ({"batchsize": 3}, SUITE, "unrecognized arguments: --batchsize=3"),
    "devices": ({"devices": 0}, SUITE, "--devices must be at least 1, not 0"),
    "limit": ({"limit": 0}, SUITE, "0 samples were asked for"),
    "batch size": ({"batch_size": "many"}, SUITE, "Expected a <class 'int'>"),
    "seed of no kind": ({"seed": "x"}, SUITE, "Expected a <class 'int'>"),
    "data without a file": ({"data.init_args.root": "x"}, SUITE, "--data.… changes a data file: name it before"),
    "no gpu": ({"accelerator": "cuda"}, SUITE, "--accelerator cuda: torch sees no GPU"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_gets_one_paragraph(case: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, suite, words = WRONG[case]
    if case == "no gpu" and torch.cuda.is_available():
        pytest.skip("there is one")
    (files / "suite.yaml").write_text(suite)
    assert evaluate.main(arguments(files, "a", **options)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {words}") and error.count("\n") == 1
    assert not (files / "a/ledgers").exists()


@pytest.mark.parametrize("case", PLANTED)
@pytest.mark.parametrize("part", ["network", "data"])
def test_planted_checkpoints_end_in_one_paragraph(
    case: str, part: str, planted: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a checkpoint names, evaluate.py builds nothing of it and says so."""
    recorded = {**torch.load(files / "a.ckpt", weights_only=True)["catalogue"], part: PLANTED[case]}
    if part == "data" and case == "data class":
        pytest.skip("that one is legitimate")
    save(files / "a.ckpt", catalogue=recorded)
    assert evaluate.main(arguments(files, "a")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a.ckpt does" in error
    assert not (files / "a").exists()


def test_a_damaged_ledger_is_named_and_moving_it_away_repairs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = arguments(files, "a", limit=5)
    assert evaluate.main(argv) == 0
    expected = results(files / "a")
    ledger = files / "a/ledgers/rank0.sqlite"
    ledger.write_bytes(b"nonsense" * 999)
    assert evaluate.main(argv) == 2
    assert "rank0.sqlite is damaged" in capsys.readouterr().err
    ledger.unlink()
    assert evaluate.main(argv) == 0
    assert results(files / "a") == expected


def test_a_mistake_does_not_claim_the_folder(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(arguments(files, "out", limit=0)) == 2 and "--limit" in capsys.readouterr().err
    assert not (files / "out" / "campaign.json").exists()


def test_compare_prints_one_table(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert evaluate.main(arguments(files, name, limit=4)) == 0
    capsys.readouterr()
    assert main(["compare", str(files / "a"), str(files / "b"), "--output", str(files / "t.md")]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == ["|", "accuracy", "under", "|", "a", "|", "b", "|"]
    assert (files / "t.md").read_text() == text
    assert main(["compare", str(files / "gone")]) == 2
    assert "holds no results.json" in capsys.readouterr().err
