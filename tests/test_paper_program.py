"""The paper program: verdicts by rule, what a plan asks for, records and digests, and a paper of digits end to end."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from adversarial_lightning import cli
from adversarial_lightning.cli.paper import paper as command
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.launch import find_rank
from adversarial_lightning.reproduce.papers import digests, judged, leaderboard, numbers, page, records, verdict
from adversarial_lightning.reproduce.papers.paper import Column, load, trainings
from adversarial_lightning.reproduce.papers.plan import Places, Plan
from adversarial_lightning.reproduce.papers.work import Work, alone

FIXTURES = Path(__file__).parent / "fixtures" / "papers"
DIGITS = FIXTURES / "digits.yaml"
UNDECIDED = "not decided at this scale"

NUMBERS = [
    # printed, ours, interval, settings, verdict, a word of the reason
    (0.96, 0.955, (0.945, 0.963), {}, "confirmed", "interval"),
    (0.96, 0.955, (0.945, 0.963), {"explains": "worse", "leaves_out": "8 of 30 epochs"}, "confirmed", "8 of 30"),
    (0.96, 0.955, (0.945, 0.963), {"attack": "stronger"}, "confirmed", "interval"),
    (0.96, 0.955, (0.945, 0.963), {"attack": "weaker"}, UNDECIDED, "weaker"),
    (0.96, 0.955, (0.945, 0.963), {"attack": "other"}, UNDECIDED, "not the paper's"),
    (0.96, 0.955, (0.945, 0.963), {"explains": "both", "leaves_out": "another network"}, UNDECIDED, "another network"),
    (0.96, 0.92, (0.88, 0.97), {}, UNDECIDED, "takes n 315"),  # 0.92 x 0.08 x (1.96 / 0.03)^2
    (0.96, 0.90, (0.89, 0.91), {}, "contradicted", "worse"),
    (0.96, 0.90, (0.89, 0.91), {"explains": "worse"}, UNDECIDED, "reduced"),
    (0.96, 0.90, (0.89, 0.91), {"explains": "better"}, "contradicted", "worse"),
    (0.96, 0.90, (0.89, 0.91), {"attack": "stronger"}, UNDECIDED, "stronger"),
    (0.96, 0.99, (0.985, 0.993), {"explains": "worse"}, "contradicted", "better"),
    (0.96, 0.99, (0.985, 0.993), {"attack": "stronger"}, "contradicted", "better"),
    (0.96, 0.99, (0.985, 0.993), {"attack": "weaker"}, UNDECIDED, "weaker"),
    (0.014, 0.030, (0.027, 0.033), {"better": "lower", "explains": "worse"}, UNDECIDED, "worse"),
    (0.014, 0.010, (0.008, 0.012), {"better": "lower", "explains": "worse"}, "contradicted", "better"),
    (0.9645, 0.96, (0.957, 0.9642), {"rounding": 0.0005}, "confirmed", "interval"),  # 0.964 as printed is up to 0.9650
    (0.2433, 0.27, (0.261, 0.279), {"better": "lower"}, "contradicted", "worse"),
    (0.2433, 0.27, (0.261, 0.279), {"better": "lower", "spread": 0.0138}, UNDECIDED, "the paper's own runs"),
    (0.2433, 0.30, (0.291, 0.309), {"better": "lower", "spread": 0.0138}, "contradicted", "worse"),
    (0.114, 0.115, (0.113, 0.117), {"share": False}, "confirmed", "interval"),
    (0.114, 0.115, (0.105, 0.125), {"share": False}, UNDECIDED, "wide"),
]


@pytest.mark.parametrize(("printed", "value", "interval", "settings", "word", "reason"), NUMBERS)
def test_verdict_on_a_number(
    printed: float, value: float, interval: tuple[float, float], settings: dict[str, Any], word: str, reason: str
) -> None:
    found = verdict.of_number(printed, value, interval, **settings)
    assert found.word == word
    assert reason in found.reason


def flags(both: int, first: int, second: int, none: int) -> tuple[verdict.Flags, verdict.Flags]:
    one = np.repeat([True, True, False, False], [both, first, second, none])
    other = np.repeat([True, False, True, False], [both, first, second, none])
    return one, other


@pytest.mark.parametrize(
    ("counts", "alike", "word", "reason"),
    [
        ((50, 20, 2, 28), True, "confirmed", "+18.0 points"),
        ((50, 2, 20, 28), True, "contradicted", "-18.0 points"),
        ((50, 20, 2, 28), False, UNDECIDED, "not reduced alike"),
        ((50, 6, 4, 40), True, UNDECIDED, "no order is shown; a difference like this takes n 961"),
        ((50, 5, 5, 40), True, UNDECIDED, "no order is shown"),
    ],
)
def test_verdict_on_an_order(counts: tuple[int, int, int, int], alike: bool, word: str, reason: str) -> None:
    """McNemar's p of 20 against 2 is 0.0001; (6 + 4) / 100 (1.96 / 0.02)^2 = 961 images."""
    one, other = flags(*counts)
    found = verdict.of_order(one, other, verdict.p_of_order(one, other), alike=alike)
    assert found.word == word
    assert reason in found.reason


def test_holm_corrects_for_the_whole_table() -> None:
    assert verdict.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert verdict.holm([]) == []


@pytest.mark.parametrize(("printed", "half"), [("96.44", 0.005), (13, 0.5), (0.114, 0.0005), ("97.40", 0.005)])
def test_rounding_of_a_printed_number(printed: float | str, half: float) -> None:
    assert verdict.rounding(printed) == pytest.approx(half)


def changed(tmp_path: Path, change: dict[str, Any]) -> Path:
    """The paper of digits with entries replaced, by dotted path."""
    shutil.copytree(FIXTURES, tmp_path / "papers")
    path = tmp_path / "papers" / "digits.yaml"
    content = yaml.safe_load(path.read_text())
    for keys, value in change.items():
        entry = content
        *parents, last = keys.split("/")
        for key in parents:
            entry = entry[key]
        entry[last] = value
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"titel": "x"}, ["titel", "did you mean title"]),
        ({"tables/1/rows/long/printed": {"FGMS": 1}}, ["FGMS", "did you mean FGSM", "row long"]),
        ({"tables/1/rows/long/cores": "standart"}, ["standart", "did you mean standard"]),
        ({"tables/1/claims": [{"better": "lang", "than": "short", "column": "FGSM"}]}, ["lang", "did you mean long"]),
        ({"tables/1/claims": [{"better": "long", "than": "short", "column": "x"}]}, ["'x'", "known: FGSM, clean"]),
        ({"tables/1/claims": [{"better": "long", "than": "short"}]}, ["column"]),
        ({"tables/1/columns/clean/measure": "x.y"}, ["column clean", "either a suite"]),
        ({"tables/1/columns/clean/entri": "x"}, ["entri", "did you mean entry"]),
        ({"tables/1/rows/long": "x"}, ["row long", "no mapping"]),
        ({"tables/1/columns/clean/attack": "strongr"}, ["column clean", "'strongr'", "did you mean stronger"]),
    ],
)
def test_a_mistake_in_a_papers_file_is_named(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        load(str(changed(tmp_path, change)))
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["atemt"], ["there is no paper 'atemt'"]),
        ([str(DIGITS), "--table", "7"], ["no table '7'", "known: 1, Fig. 1"]),
        ([str(DIGITS), "--only", "lon"], ["no row 'lon'", "did you mean long"]),
        ([str(DIGITS), "--jobs", "0"], ["--jobs must be at least 1"]),
        ([str(DIGITS), "--scale", "huge"], ["huge"]),
    ],
)
def test_an_unknown_name_on_the_command_line_lists_the_known_ones(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["paper", *argv, "--dry-run"]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_a_dry_run_tells_what_is_missing_and_its_cost_and_writes_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    places = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    assert command([str(DIGITS), "--dry-run", "--table", "1", *places], told.append) == 0
    assert told[0] == "4 cells at scale cores: 0 of 2 evaluations are recorded"
    assert sum("fit " in line for line in told) == 2
    assert sum("evaluate " in line for line in told) == 2
    assert told[-1] == "forecast: 0.5 CPU-minutes on one core"  # 2 x 0.15 for the fits, 2 x 0.1
    assert list(tmp_path.iterdir()) == []
    told.clear()
    assert command([str(DIGITS), "--dry-run", "--table", "[1, Fig. 1]", *places], told.append) == 0
    assert told[0].startswith("4 cells")
    told.clear()
    assert command([str(DIGITS), "--dry-run", "--only", "short", *places], told.append) == 0
    assert told[0] == "2 cells at scale cores: 0 of 1 evaluations are recorded"


def places_of(tmp_path: Path) -> Places:
    return Places(tmp_path / "runs", tmp_path / "out", None, FIXTURES)


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of the work run here, without a process; returns the list of those that were run."""
    ran: list[list[str]] = []

    def call(self: Work, words: list[str], folder: Path) -> None:
        ran.append(words[1:])
        assert cli.main(words[1:]) == 0

    monkeypatch.setattr(Work, "_command", call)
    return ran


def test_a_paper_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fits, two evaluations of two columns each, a page; with nothing to do, no command at all."""
    ran = in_this_process(monkeypatch)
    places = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    told: list[str] = []
    assert command([str(DIGITS), *places], told.append) == 0
    assert [words[0] for words in ran] == ["fit", "evaluate", "fit", "evaluate"]
    made = (tmp_path / "out" / "digits.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.splitlines() if line.startswith("| ")]
    by_cell = {(row[0], row[1]): row for row in rows}
    assert by_cell["long", "clean"][-1].startswith("**contradicted**: worse than printed")
    assert by_cell["short", "clean"][-1].startswith("not decided at this scale: worse than printed, which may be")
    assert by_cell["short", "FGSM"][-1].startswith("**confirmed**")
    assert by_cell["out of reach", "clean"][-1] == "not tried: it needs GPUs"
    assert by_cell["long better than short", "clean"][3:] == [
        UNDECIDED,
        by_cell["long better than short", "clean"][4],
    ]
    assert "the two were not reduced alike" in by_cell["long better than short", "clean"][4]
    assert "2 confirmed, 1 contradicted, 2 not decided at this scale, 1 not tried" in made
    assert "Not made here: its data are not public" in made
    html = (tmp_path / "out" / "digits.html").read_text()
    assert html.count('<span class="badge passed">confirmed</span>') == 2
    assert html.count('<span class="badge failed">contradicted</span>') == 1

    told.clear()
    assert command([str(DIGITS), *places], told.append) == 0
    assert len(ran) == 4
    assert "forecast: nothing to do" in told
    assert (tmp_path / "out" / "digits.md").read_text() == made

    # Records alone make the page: run folders may be gone.
    shutil.rmtree(tmp_path / "runs")
    told.clear()
    assert command([str(DIGITS), *places], told.append) == 0
    assert len(ran) == 4 and "forecast: nothing to do" in told

    # Other settings: the record no longer counts, the page says the cell is not tried.
    other = changed(tmp_path, {"tables/1/columns/FGSM/n": 50, "tables/1/columns/clean/n": 50})
    found = load(str(other))
    assert all(line.verdict.word == "not tried" for line in judged.lines(found, places_at(tmp_path, other), "1"))


def places_at(tmp_path: Path, file: Path) -> Places:
    return Places(tmp_path / "runs", tmp_path / "out", None, file.parent)


def record(places: Places, row: str, seed: int, **content: Any) -> None:
    """Plant a record of row `row` of the paper of digits."""
    plan = Plan(load(str(DIGITS)), places, "cores", ["1"], [row])
    (evaluation,) = plan.evaluations
    entry = {"robust_accuracy": 0.01, "interval": [0.0, 0.03], "bitmap": None}
    whole = {
        **{"training": "x", "seed": seed, "data": {"fingerprint": "f"}, "classes": 10, "epoch": 3, "audit": None},
        **{"samples": {"chosen": "random", "seed": 0, "n": 90, "of": 360}, "warnings": [], "worst_case": []},
        **{"clean": {"accuracy": 0.9, "interval": [0.88, 0.92], "bitmap": None}, "attacks": {"fgsm": entry}},
        **content,
    }
    code = content.get("code", {"pgd": "1", "own": "2"})
    records.write(evaluation.record, whole, settings=evaluation.settings, code=code, minutes=1.0)


def test_a_collapsed_fit_has_no_number(tmp_path: Path) -> None:
    places = places_of(tmp_path)
    record(places, "long", 0, clean={"accuracy": 0.11, "interval": [0.05, 0.2], "bitmap": None})
    line = judged.lines(load(str(DIGITS)), places, "1")[0]
    assert (line.verdict.word, line.verdict.reason) == (UNDECIDED, "the fit collapsed: no number")
    assert "11.0" not in page.text(load(str(DIGITS)), places)


def test_rows_of_other_code_are_marked_and_not_paired(tmp_path: Path) -> None:
    """A claim on rows that were judged by different code is not tested."""
    places = places_of(tmp_path)
    bits = "/" * 14 + "8A=="  # 90 flags
    clean = {"accuracy": 0.9, "interval": [0.88, 0.92], "bitmap": bits}
    record(places, "long", 0, clean=clean)
    record(places, "short", 0, clean=clean, code={"pgd": "other", "theirs": "3"})
    text = page.text(load(str(DIGITS)), places)
    assert "Made by an earlier version of the code" in text
    (claim,) = judged.claims(load(str(DIGITS)), places, "1")
    assert claim.verdict.reason == "the rows were made by different versions of the code"
    record(places, "short", 0, clean=clean, code={"pgd": "1", "theirs": "3"})
    (claim,) = judged.claims(load(str(DIGITS)), places, "1")
    assert "no order is shown" in claim.verdict.reason


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    places = places_of(tmp_path)
    (evaluation,) = Plan(load(str(DIGITS)), places, "cores", ["1"], ["long"]).evaluations
    evaluation.record.parent.mkdir(parents=True)
    evaluation.record.write_text("{")
    with pytest.raises(UserError, match=r"is damaged.*remove it"):
        page.text(load(str(DIGITS)), places)


@pytest.mark.parametrize(
    ("column", "value", "interval"),
    [
        (Column(suite="quick", entry="clean"), 0.9, (0.88, 0.92)),
        (Column(suite="quick", entry="clean", value="error"), 0.1, (0.08, 0.12)),
        (Column(suite="quick", entry="fgsm"), 0.01, (0.0, 0.03)),
        (Column(suite="quick", entry="cw", value="relative_norm"), 0.2, (0.1, 0.3)),
        (Column(suite="quick", entry="worst linf 0.15"), 0.4, (0.305, 0.503)),  # without what the audit broke
    ],
)
def test_what_is_read_of_a_record(column: Column, value: float, interval: tuple[float, float]) -> None:
    content = {
        **{"schema": 1, "settings": "s", "code": {}, "cpu_minutes": 1, "date": "2026-01-01"},
        **{"samples": {"chosen": "random", "seed": 0, "n": 90, "of": 360}, "classes": 10},
        "clean": {"accuracy": 0.9, "interval": [0.88, 0.92]},
        "attacks": {
            "fgsm": {"robust_accuracy": 0.01, "interval": [0.0, 0.03]},
            "cw": {"relative_norm": 0.2, "relative_norm_interval": [0.1, 0.3]},
        },
        "worst_case": [
            {"norm": "linf", "eps": 0.15, "robust_accuracy": 0.45, "at_most": 0.4, "interval": [0.3, 0.6]}
            | {"broken_by_audit": 5},
        ],
    }
    found = numbers.of_records([records.Record(Path("x"), content)], column)
    assert found.value == pytest.approx(value)
    assert found.interval == pytest.approx(interval, abs=5e-4)


def test_the_bitmap_of_lengths_is_no_order() -> None:
    """Of a minimum-norm attack it says where nothing was found: that is no comparison of lengths."""
    entry = {"robust_accuracy": 0.0, "interval": [0, 0.1], "bitmap": "8A==", "relative_norm": 0.2}
    content = {
        **{"schema": 1, "settings": "s", "code": {}, "cpu_minutes": 1, "date": "2026-01-01", "worst_case": []},
        **{"samples": {"chosen": "random", "seed": 0, "n": 6, "of": 360}, "attacks": {"cw": entry}},
    }
    made = [records.Record(Path("x"), content)]
    assert numbers.of_records(made, Column(suite="quick", entry="cw", value="relative_norm")).flags is None
    assert numbers.of_records(made, Column(suite="quick", entry="cw")).flags is not None
    assert numbers.of_records([*made, *made], Column(suite="quick", entry="cw")).flags is None  # of two trainings


def test_a_run_folder_of_other_settings_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint was trained otherwise."""
    ran = in_this_process(monkeypatch)
    folder = tmp_path / "runs" / "short"
    folder.mkdir(parents=True)
    (folder / "done").touch()
    (folder / "settings.txt").write_text("others")
    told: list[str] = []
    places = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    assert command([str(DIGITS), "--only", "short", *places], told.append) == 1
    assert ran == [] and any("holds a fit with other settings" in line for line in told)


def test_the_digest_of_code_sees_what_a_class_imports_and_no_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"class_path": "PGD"}
    before = digests.code(content)
    assert digests.code({"class_path": "attacks.PGD"}) == before
    assert digests.code({"class_path": "FGSM"}) != before
    reached = digests._reached({"adversarial_lightning.attacks.pgd"})
    assert "adversarial_lightning.attacks.core.norms" in reached
    assert "adversarial_lightning.attacks.ead" not in reached
    source = tmp_path / "module.py"
    texts = []
    for text in ['"""Words."""\nx = 1\n', '"""Other words."""\nx = 1  # a comment\n', '"""Words."""\nx = 2\n']:
        source.write_text(text)
        spec = type("Spec", (), {"origin": str(source)})
        with monkeypatch.context() as patch:
            patch.setattr(digests, "find_spec", lambda name, spec=spec: spec)
            texts.append(digests._text.__wrapped__("module") if not digests._tree.cache_clear() else "")
    digests._tree.cache_clear()
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.slow
def test_a_killed_paper_goes_on_in_two_processes_to_the_same_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(folder: str) -> list[str]:
        return [str(DIGITS), "--runs", str(tmp_path / folder / "runs"), "--output", str(tmp_path / folder)]

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "adversarial_lightning.cli", "paper", *words("killed")]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    first = start()
    checkpoint = tmp_path / "killed" / "runs" / "standard" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()  # its fit gets SIGTERM, and keeps a checkpoint
    first.wait()
    assert checkpoint.exists() and not (tmp_path / "killed" / "digits.md").exists()
    both = [start(), start()]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    fits = [json.loads(path.read_text()) for path in (tmp_path / "killed" / "records").glob("*/fit.json")]
    assert len(fits) == 2
    in_this_process(monkeypatch)
    assert command(words("whole"), print) == 0
    pages = [(tmp_path / folder / "digits.md").read_text() for folder in ("killed", "whole")]
    assert pages[0] == pages[1]
    assert "not tried: it needs GPUs" in pages[0] and pages[0].count("**confirmed**") == 2


def test_a_launchers_ranks_are_not_passed_on() -> None:
    """An evaluation below torchrun or srun would else do one rank's share only."""
    launched = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "SLURM_PROCID": "3", "MASTER_ADDR": "x", "HOME": "/"}
    assert alone(launched) == {"HOME": "/"}
    assert find_rank(alone({**os.environ, **launched})).world == 1


def test_the_leaderboard_ranks_what_may_be_called_robust_accuracy(tmp_path: Path) -> None:
    """Highest first; the lowest of several evaluations; without what the audit broke; no weak suite, no small n."""

    def plant(name: str, n: int, **case: Any) -> None:
        worst = {
            "norm": "linf",
            "eps": 0.3,
            "robust_accuracy": 0.8,
            "interval": [0.76, 0.84],
            "claim": "robust accuracy",
        }
        attack = {"norm": "linf", "eps": 0.3}
        content = {
            **{"worst_case": [{**worst, **case}], "samples": {"n": n}, "audit": {"state": "passed", "level": "quick"}},
            **{"clean": {"accuracy": 0.99}, "attacks": {"aa": attack, "l2": {"norm": "l2", "eps": 2}}},
        }
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))

    plant("a/one.json", 500)
    plant("a/two.json", 500, robust_accuracy=0.7, at_most=0.65, broken_by_audit=2, interval=[0.6, 0.7])
    plant("b/one.json", 500)
    plant("c/weak.json", 500, claim="accuracy under PGD")
    plant("d/small.json", 100)
    plant("e/refused.json", 500, refused="owes EOT")
    (tmp_path / "a" / "fit.json").write_text("{}")
    found = leaderboard.rows(tmp_path, {"b": "net"})
    assert list(found) == ["linf 0.3"]
    assert [row[:4] for row in found["linf 0.3"]] == [
        ["b", "99.0", "80.0", "[76.0, 84.0]"],
        ["a", "99.0", "65.0", "[60.7, 69.1]"],  # Wilson's around what the audit left
    ]
    assert found["linf 0.3"][0][4:] == ["500", "aa", "passed (quick)", "zoo:net"]


def test_trainings_know_what_they_need(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES, tmp_path / "papers")
    path = tmp_path / "papers" / "trainings" / "more.yaml"
    for content, words in [
        ("denoiser: {experiment: x, needs: [standart]}", "needs 'standart'"),
        ("standard: {experiment: x}", "another training 'standard'"),
        ("both: {experiment: x, model: [--weights, y]}", "either an experiment or"),
        ("odd: {experiment: x, explains: wrose}", "explains is 'wrose'; did you mean worse"),
        ("odd: {experiment: x, explains: {error: wrose}}", "explains is 'wrose'"),
    ]:
        path.write_text(content)
        trainings.cache_clear()
        with pytest.raises(UserError, match=words):
            trainings(tmp_path / "papers")
    trainings.cache_clear()
