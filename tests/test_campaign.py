"""How a campaign is run: modes, the defender's draws, what is invalid, costs, and how work is shared out."""

import json
import math
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from helpers import Shift, Threshold, Unbounded, campaign, numbers, save, trained
from scipy.stats import binomtest
from torch import Tensor, nn

from adversarial_lightning.attacks import FGSM, PGD, Attack, GaussianNoise, Noise, Restarts, Within
from adversarial_lightning.attacks.combinators import Combination
from adversarial_lightning.cli import evaluate
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.datamodules.images import TensorImages
from adversarial_lightning.defenses import Purified, Purifier, RandomQuantizer
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.campaign import ledger
from adversarial_lightning.evaluation.campaign.launch import Rank, find_rank
from adversarial_lightning.evaluation.campaign.ledger import Ledger, run_costs
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.campaign.resources import ResourceMeter
from adversarial_lightning.evaluation.campaign.sample_status import Mode
from adversarial_lightning.evaluation.outcomes.statistics import cost, over_draws, sweeps, wilson
from adversarial_lightning.evaluation.outcomes.subset import Choice, Samples
from adversarial_lightning.evaluation.outcomes.types import RunCost
from adversarial_lightning.networks.eval_mode import returns_probabilities


@pytest.fixture(autouse=True)
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers that do not wait for the disk, which may be slow and is not what is tested."""
    connect = ledger._connect

    def careless(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(ledger, "_connect", careless)


# --- modes ------------------------------------------------------------------------------------------------------------

MIXED: dict[str, Attack] = {
    "small": PGD(eps=0.03, steps=3),
    "l2": PGD(norm="l2", eps=0.4, steps=3),
    "large": Restarts(PGD(eps=0.08, steps=3), n=2),
    "free": Unbounded(by=0.05),
    "noise": GaussianNoise(0.2),
    "again": FGSM(eps=0.05),
    "near": Within(Unbounded(by=0.06), 0.06),
    "last": PGD(eps=0.08, steps=5),
}
MODELS: dict[str, Any] = {"plain": trained, "stochastic": lambda: Purified(trained(), RandomQuantizer())}


def finished(folder: Path, model: nn.Module, mode: Mode, draws: int, world: int = 1, batch_size: int = 16) -> Campaign:
    data = Digits(size=8).dataset("test")
    c = Campaign(MIXED, data, 60, 0, folder, "test", mode, draws, sample_seed=1)
    for rank in range(world):
        run_campaign(c, model, Rank(rank, world, run="a"), batch_size=batch_size)
    return c


@pytest.mark.long
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("draws", [1, 3])
def test_both_modes_have_the_same_worst_case(kind: str, draws: int, tmp_path: Path, monkeypatch: Any) -> None:
    """And mode worst_case sees fewer: for each attack what no earlier one of its norm and radius has broken."""
    model = MODELS[kind]()
    full, short = (finished(tmp_path / mode, model, mode, draws) for mode in ("full", "worst_case"))
    a, b = merge(full), merge(short)
    assert a["worst_case"] == b["worst_case"] and len(a["worst_case"]) == 5
    rows = {entry["name"]: (entry, other) for entry, other in zip(a["attacks"], b["attacks"], strict=True)}
    correct = rows["small"][0]["attacked"]
    assert all(entry["attacked"] == correct for entry, _ in rows.values())
    assert all(rows[name][1]["attacked"] == correct for name in ("small", "l2", "noise", "free"))
    for name in ("large", "again", "near", "last"):
        assert rows[name][1]["attacked"] < correct
        assert rows[name][1]["robust_accuracy"] <= rows[name][0]["robust_accuracy"]
    assert rows["last"][1]["robust_accuracy"] == b["worst_case"][2]["robust_accuracy"]
    assert rows["free"][0]["curve"] == rows["free"][1]["curve"]  # every sample, in both modes
    assert rows["near"][0]["curve"] and rows["near"][1]["curve"] is None  # its lengths are not those of all samples
    sliced = finished(tmp_path / "sliced", model, "worst_case", draws, world=3, batch_size=7)
    assert numbers(merge(sliced)) == numbers(b)


def test_a_worst_case_counts_smaller_radii_and_short_minimum_norm_results(tmp_path: Path) -> None:
    """Grey images fall where the mean pixel exceeds 1/2: the attack at 0.2 does nothing, those before it find 0.1."""
    data = TensorImages(torch.full((4, 1, 2, 2), 0.45), torch.zeros(4, dtype=torch.long))
    suites: dict[str, tuple[dict[str, Attack], list[Any]]] = {
        "smaller": ({"a": Shift(0.1, eps=0.1), "b": Shift(0.0, eps=0.2)}, [("a", 0.1, 0.0), ("ab", 0.2, 0.0)]),
        "larger": ({"b": Shift(0.0, eps=0.05), "a": Shift(0.1, eps=0.1)}, [("b", 0.05, 1.0), ("ba", 0.1, 0.0)]),
        "free": ({"f": Unbounded(0.1), "b": Shift(0.0, eps=0.2)}, [("fb", 0.2, 0.0)]),
        "free and far": ({"f": Unbounded(0.1), "b": Shift(0.0, eps=0.05)}, [("fb", 0.05, 1.0)]),
        "other norm": (
            {"a": Shift(0.1, eps=0.2, norm="l2"), "b": Shift(0.0, eps=0.2)},
            [("a", 0.2, 0.0), ("b", 0.2, 1.0), ("ab", None, 0.0)],  # and their union
        ),
    }
    for name, (suite, expected) in suites.items():
        for mode in ("full", "worst_case"):
            c = Campaign(suite, data, 4, 0, tmp_path / name / mode, "test", mode)
            run_campaign(c, Threshold())
            worst = merge(c)["worst_case"]
            assert [("".join(w["attacks"]), w["eps"], w["robust_accuracy"]) for w in worst] == expected


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples_are_a_random_nested_subset_unless_the_first_are_asked_for(tmp_path: Path) -> None:
    few, more = campaign(tmp_path, 20), campaign(tmp_path, 60)
    numbers = few.data.indices.tolist()
    assert set(few.samples) < set(more.samples) < set(numbers) and few.samples != numbers[:20]
    assert few.samples != replace(few, sample_seed=1).samples
    assert few.batch(few.samples)[2].tolist() == few.samples
    first, whole = replace(few, sample="first"), replace(few, n=len(numbers))
    assert first.samples == numbers[:20] and whole.samples == numbers
    assert [c.chosen for c in (few, first, whole)] == [
        *(Samples("random", 0, 20, 360), Samples("first", None, 20, 360), Samples("all", None, 360, 360)),
    ]
    limited = Digits(size=8, test_limit=60).dataset("test")  # a random subset already, of which 60 are not all
    assert replace(few, data=limited, n=60).chosen == Samples("random", None, 60, 360)


@pytest.mark.parametrize(("sample", "intervals"), [("random", True), ("first", False)])
def test_the_first_images_have_no_interval_in_any_format(sample: Choice, intervals: bool, tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt")
    (tmp_path / "suite.yaml").write_text("fgsm: {class_path: FGSM, init_args: {eps: 0.1}}")
    argv = [f"--checkpoint={tmp_path / 'a.ckpt'}", f"--suite={tmp_path / 'suite.yaml'}", "--limit=20", "--audit=none"]
    assert evaluate.main([*argv, "--accelerator=cpu", f"--sample={sample}", f"--output={tmp_path / 'x'}"]) == 0
    results = json.loads((tmp_path / "x/results.json").read_text())
    parts = json.loads((tmp_path / "x/campaign.json").read_text())["parts"]
    assert parts["samples"] == results["samples"] and results["samples"]["chosen"] == sample
    for entry in (*results["attacks"], *results["worst_case"]):
        assert (entry["interval"] is not None) is intervals
    for name in ("report.md", "report.html"):
        text = (tmp_path / "x" / name).read_text()
        assert ("95 % interval over images" in text) is intervals
        assert ("of these 20 images, the first of their set; no interval" in text) is not intervals


# --- the defender's draws ---------------------------------------------------------------------------------------------


class Coin(Purifier):
    """Adds to every pixel, in each draw of each image, 0.2 with probability `odds`."""

    stochastic = True

    def __init__(self, odds: float) -> None:
        super().__init__()
        self.odds = odds

    def forward(self, x: Tensor) -> Tensor:
        u = self.own_noise(x).uniform(x.flatten(1)[:, :1]).view(-1, 1, 1, 1)
        return (x + 0.2 * (u < self.odds)).clamp(0, 1)


def gray(n: int, level: float = 0.45) -> TensorImages:
    return TensorImages(torch.full((n, 1, 2, 2), level), torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize("odds", [0.25, 0.75])
def test_draws_are_counted(odds: float, tmp_path: Path) -> None:
    """A sample is right in a draw with probability 1 - odds, whatever harmless attacks come: one draw is one model."""
    suite: dict[str, Attack] = {"a": Shift(0.0), "b": Shift(0.01), "c": Restarts(Shift(0.02), n=2)}
    c = Campaign(suite, gray(300), 300, 0, tmp_path, "test", draws=20)
    run_campaign(c, Purified(Threshold(), Coin(odds)), batch_size=100)
    results = merge(c)
    (worst,) = results["worst_case"]
    assert worst["robust_accuracy"] == results["clean_accuracy"] == pytest.approx(1 - odds, abs=0.02)
    draws = worst["draws"]
    assert draws["n"] == 20 and draws["mean"] == worst["robust_accuracy"] and draws == results["clean_draws"]
    assert draws["vote"] == pytest.approx(float(odds < 0.5), abs=0.05)
    assert draws["every_draw"] == pytest.approx((1 - odds) ** 20, abs=0.02)
    assert draws["every_draw"] < draws["worst_draw"] < draws["mean"]
    low, high = draws["interval"]
    assert low < 1 - odds < high and high - low < 0.04  # on these images
    assert worst["interval"] is None  # all images: nothing is left to estimate but the draws
    assert [a["succeeded"] for a in results["attacks"]] == [0, 0, 0]


def test_an_attack_fells_the_draws_that_it_fells(tmp_path: Path) -> None:
    """0.35 + 0.1 stays right, 0.35 + 0.2 not: with the attack's 0.1 more, only heads fall; and success counts draws."""
    c = Campaign({"a": Shift(0.1)}, gray(200, 0.25), 200, 0, tmp_path, "test", draws=10)
    run_campaign(c, Purified(Threshold(), Coin(0.5)))
    results = merge(c)
    (attack,) = results["attacks"]
    assert results["clean_accuracy"] == 1 and attack["robust_accuracy"] == pytest.approx(0.5, abs=0.05)
    assert attack["succeeded"] == pytest.approx(200 * (1 - attack["robust_accuracy"]))
    assert attack["success_rate"] == pytest.approx(1 - attack["robust_accuracy"]) and attack["attacked"] == 200


def test_deterministic_models_say_nothing_of_draws(tmp_path: Path) -> None:
    c = campaign(tmp_path, 5)
    run_campaign(c, trained())
    assert "draws" not in json.dumps(merge(c))


@pytest.mark.parametrize("draws", [0, 63])
def test_draws_out_of_range(draws: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--draws must lie between 1 and 62"):
        replace(campaign(tmp_path, 5), draws=draws)


def test_most_draws_fit_into_the_ledger(tmp_path: Path) -> None:
    c = Campaign({"a": Shift(0.0)}, gray(3), 3, 0, tmp_path, "test", draws=62)
    run_campaign(c, Purified(Threshold(), Coin(0.0)))
    assert c.table(c.runs("a")[0])["right_draws"].tolist() == [2**62 - 1] * 3
    assert merge(c)["worst_case"][0]["draws"] == {
        "n": 62,
        "mean": 1,
        "interval": [1, 1],
        "vote": 1,
        "worst_draw": 1,
        "every_draw": 1,
    }


def test_intervals_against_scipy() -> None:
    for k, n in ((0, 10), (3, 10), (997, 1000), (10, 10)):
        expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k / n, n) == pytest.approx([expected.low, expected.high], abs=1e-6)
    assert over_draws([0.5, 0.5, 0.5]) == [0.5, 0.5]
    assert over_draws([0.4, 0.6]) == [0, 1]  # t with one degree of freedom knows little
    low, high = over_draws([0.7, 0.8, 0.9])
    assert (low, high) == pytest.approx((0.8 - 4.3027 * 0.1 / 3**0.5, 1.0), abs=1e-4)


def test_the_interval_covers_samples_and_draws() -> None:
    """Images with their own odds of being right, a few draws each: 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        right = rng.random((100, 5)) < rng.beta(0.5, 0.5, size=(100, 1))  # most images nearly always right or wrong
        low, high = wilson(float(right.mean()), 100)
        hits += low <= 0.5 <= high
    assert 0.94 < hits / 400 <= 1


# --- what is invalid --------------------------------------------------------------------------------------------------


class Sometimes(nn.Module):
    """Not a number in every second draw of the noise."""

    stochastic = True
    noise: Noise | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.noise is not None
        bad = self.noise.uniform(x.flatten(1)[:, :1])[:, 0] < 0.5
        return torch.tensor([1.0, 0.0]).repeat(len(x), 1).masked_fill(bad[:, None], torch.nan)


def test_logits_that_are_not_finite_are_invalid_and_never_robust(tmp_path: Path) -> None:
    """Above 0.6 the model breaks: without an attack on 2 of 6 images, under one on 3 of the 4 others."""
    levels = torch.tensor([0.2, 0.58, 0.56, 0.55, 0.7, 0.9])
    data = TensorImages(levels.view(6, 1, 1, 1).repeat(1, 1, 2, 2), torch.tensor([0, 1, 1, 1, 1, 1]))
    c = Campaign({"a": Restarts(Shift(0.06), n=2), "b": Shift(0.0)}, data, 6, 0, tmp_path, "test")
    run_campaign(c, Threshold(broken_above=0.6))
    results = merge(c)
    assert (results["invalid"], results["clean_accuracy"]) == (2, pytest.approx(4 / 6))
    assert [(a["invalid"], a["robust_accuracy"]) for a in results["attacks"]] == [(3, pytest.approx(1 / 6)), (0, 4 / 6)]
    assert sum("not finite" in text for text in results["warnings"]) == 2


def test_one_bad_draw_makes_a_sample_invalid(tmp_path: Path) -> None:
    c = Campaign({"a": Shift(0.0)}, gray(200), 200, 0, tmp_path, "test", draws=3)
    run_campaign(c, Sometimes())
    results = merge(c)
    assert results["clean_accuracy"] == pytest.approx(1 / 8, abs=0.08)
    assert results["invalid"] == 200 - round(200 * results["clean_accuracy"])
    assert results["clean_draws"]["vote"] == results["clean_draws"]["every_draw"] == results["clean_accuracy"]


class Softmax(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        p: Tensor = self.inner(x).softmax(1)
        return p


@pytest.mark.filterwarnings("ignore:the model seems to return probabilities")  # the attacks' own word
def test_probabilities_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, model in (("p", Softmax(trained())), ("z", trained())):
        c = campaign(tmp_path / name, 20, {"a": FGSM(eps=0.1)})
        for _ in range(2):  # the second time nothing is left to look at
            run_campaign(c, model, Rank(run=name), batch_size=8)
        noted = [text for text in merge(c)["warnings"] if "probabilities" in text]
        assert len(noted) == (name == "p")
        assert ("probabilities" in capsys.readouterr().err) == (name == "p")
    log_p = nn.Sequential(trained(), nn.LogSoftmax(1))
    x = Digits(size=8).dataset("test").__getitems__([0, 1, 2])[0]
    assert not returns_probabilities(log_p, x)  # log-probabilities are logits


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_relative_norm_by_hand(tmp_path: Path) -> None:
    """Images of level v move by 0.25 in four pixels: ||r|| / ||x|| = 0.25 / v. The black one has no length."""
    levels = torch.tensor([0.0, 0.25, 0.4])
    data = TensorImages(levels.view(3, 1, 1, 1).repeat(1, 1, 2, 2), torch.zeros(3, dtype=torch.long))
    c = Campaign({"a": Unbounded(by=0.25 + 2**-10), "b": Unbounded(by=0.55)}, data, 3, 0, tmp_path, "test")
    run_campaign(c, Threshold())
    one, two = merge(c)["attacks"]
    assert one["found"] == 2 and one["relative_norm"] == pytest.approx(
        (0.25 + 2**-10) * (1 / 0.25 + 1 / 0.4) / 2, abs=1e-5
    )
    assert two["found"] == 3 and two["relative_norm"] == pytest.approx(0.55 * (1 / 0.25 + 1 / 0.4) / 2, abs=1e-5)


def test_sweeps_join_one_attack_at_several_radii() -> None:
    def entry(name: str, attack: Attack, accuracy: float) -> dict[str, Any]:
        from adversarial_lightning.evaluation.campaign.identity import suite_part

        settings = suite_part({name: attack})[name]
        base = {"name": name, "kind": attack.kind, "settings": settings, "robust_accuracy": accuracy}
        return {**base, "norm": getattr(attack, "norm", "linf"), "eps": getattr(attack, "eps", 0.3), "interval": [0, 1]}

    attacks = [
        entry("c", Restarts(PGD(eps=0.3)), 0.1),
        entry("a", PGD(eps=0.1), 0.6),
        entry("weak", PGD(eps=0.1, steps=2), 0.7),
        entry("alone", FGSM(eps=0.1), 0.6),
        entry("l2", PGD(norm="l2", eps=1), 0.6),
    ]
    (sweep,) = sweeps(attacks, {"clean_accuracy": 0.9, "clean_interval": [0.8, 1]})
    assert sweep == {
        **{"attack": "attacks.PGD", "norm": "linf", "eps": [0, 0.1, 0.3], "robust_accuracy": [0.9, 0.6, 0.1]},
        **{"interval": [[0.8, 1], [0, 1], [0, 1]], "names": [None, "a", "c"]},
    }


def test_costs_of_several_runs() -> None:
    """The slowest process of each run counts."""
    spent = [
        RunCost("a", 0, 2, seconds=3.0, peak_memory=7),
        RunCost("b", 0, 2, seconds=42.0, done=True, peak_memory=9, energy=2.0),
        RunCost("a", 1, 2, seconds=5.0),
        RunCost("b", 1, 2, seconds=41.0, done=True, energy=1.5),
        RunCost("b", 0, 1, seconds=1.0, done=True),  # b was started again under its old name
    ]
    assert cost(spent) == {"wall_seconds": 48, "processes": 1, "peak_memory": 9, "energy": 3.5}
    assert cost([]) == {"wall_seconds": 0, "processes": 0, "peak_memory": 0, "energy": None}


# --- costs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ticking(Shift):
    """Takes `ticks` seconds of a clock of its own."""

    ticks: float = 1.0
    now: ClassVar[list[float]] = [0.0]

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        self.now[0] += self.ticks
        return super().perturb(model, x, y, noise)


def test_an_interrupted_run_repeats_nothing(tmp_path: Path) -> None:
    """Resumed in the middle of a run of restarts: every row is there once, and two runs are on record."""

    class Enough(Exception):
        pass

    class Stops(Rank):
        def exit_if_orphaned(self) -> None:
            seen.append(1)
            if len(seen) > 14:
                raise Enough

    seen: list[int] = []
    suite: dict[str, Attack] = {"a": Restarts(Shift(0.0), n=2), "b": Shift(0.0)}
    c = Campaign(suite, gray(40), 40, 0, tmp_path, "test")
    with pytest.raises(Enough):
        run_campaign(c, Threshold(), Stops(run="one"), batch_size=4)
    run_campaign(c, Threshold(), Rank(run="two"), batch_size=4)
    assert [len(c.table(run)["index"]) for name in suite for run in c.runs(name)] == [40, 40, 40]
    spent = run_costs(tmp_path, identity="test")
    assert [(e.run, bool(e.done)) for e in spent] == [("one", False), ("two", True)]
    assert [e.batches for e in spent] == [14, 26]


def test_a_meter_knows_memory_and_time() -> None:
    meter = ResourceMeter(torch.device("cpu"))
    since = meter.lap()
    assert 0 <= since <= meter.seconds and meter.peak_memory > 2**24 and meter.energy is None


def test_a_clock_that_is_put_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing looks at the time of day."""
    day = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(day)))
    c = campaign(tmp_path, 10)
    run_campaign(c, trained())
    results = merge(c)
    assert all(a["seconds"] >= 0 for a in results["attacks"]) and results["cost"]["wall_seconds"] >= 0


def test_code_that_changes_between_runs_is_worth_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = campaign(tmp_path, 6)
    for rank, digest in ((0, "one"), (1, "two")):
        monkeypatch.setattr("adversarial_lightning.evaluation.campaign.worker.code", lambda digest=digest: digest)
        run_campaign(c, trained(), Rank(rank, 2, run=digest))
    assert any("changed between the runs" in text for text in merge(c)["warnings"])


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite meets its page limit as it meets a full disk; with room again the same campaign goes on."""
    whole, cut = campaign(tmp_path / "whole"), campaign(tmp_path / "cut")
    run_campaign(whole, trained(), batch_size=8)
    opened = Ledger.__init__

    def small(self: Ledger, *args: Any, **named: Any) -> None:
        opened(self, *args, **named)
        self._connection.execute("PRAGMA max_page_count = 6")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "__init__", small)
        with pytest.raises(OSError, match=r"rank0\.sqlite cannot be used: database or disk is full.*safe; run again"):
            run_campaign(cut, trained(), batch_size=8)
    kept = len(cut.table(cut.runs("clean")[0])["index"])
    assert kept == 40
    run_campaign(cut, trained(), batch_size=8)
    assert numbers(merge(cut)) == numbers(merge(whole))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a place where nobody may write, root neither")
def test_an_output_that_cannot_be_written_is_named(
    tmp_path: Path, handler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.ckpt")
    (tmp_path / "s.yaml").write_text("a: {class_path: FGSM, init_args: {eps: 0.05}}")
    (tmp_path / "file").touch()
    for output in ("/proc/evaluation", str(tmp_path / "file"), str(tmp_path / "file/below")):
        words = {"checkpoint": tmp_path / "a.ckpt", "suite": tmp_path / "s.yaml", "output": output, "limit": 2}
        assert evaluate.main([f"--{name}={value}" for name, value in words.items()]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: nothing can be written into {output} (") and error.count("\n") == 1
        assert "--output" in error


def test_ledgers_and_folders_of_another_version_are_refused(
    tmp_path: Path, handler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    c = campaign(tmp_path / "c", 5)
    (tmp_path / "c/ledgers").mkdir(parents=True)
    old = sqlite3.connect(tmp_path / "c/ledgers/rank0.sqlite")
    with old:
        old.execute("CREATE TABLE campaign (identity TEXT)")
        old.execute("CREATE TABLE outcomes (attack TEXT, restart INTEGER, sample INTEGER)")
    old.close()
    for use in (lambda: run_campaign(c, trained()), lambda: merge(c), lambda: run_costs(c.folder, identity="test")):
        with pytest.raises(
            ValueError, match=r"rank0\.sqlite was written by another version .* choose another --output"
        ):
            use()
    save(tmp_path / "a.ckpt")
    (tmp_path / "s.yaml").write_text("a: {class_path: FGSM, init_args: {eps: 0.05}}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/campaign.json").write_text(json.dumps({"schema": 1, "identity": "x", "parts": {}}))
    words = {"checkpoint": "a.ckpt", "suite": "s.yaml", "output": "out"}
    assert evaluate.main([f"--{name}={tmp_path / value}" for name, value in words.items()]) == 2
    assert "holds an evaluation by another version of this program (schema 1" in capsys.readouterr().err


@dataclass(frozen=True)
class Slow(Combination):
    """The attack after a note that this process begins a batch, and a moment in which to be killed."""

    attack: Attack

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        with open(os.environ["SLOW_LOG"], "a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.01)
        return self.attack.perturb(model, x, y, noise)


NEVER = math.inf


def attacked(c: Campaign) -> int:
    return sum(len(c.table(run)["index"]) for name in c.suite for run in c.runs(name))


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks beside threads of libraries
def test_three_kills_lose_one_batch_each_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reduced form of tests/test_kill_campaign.py: no evaluate.py, but real processes and real SIGKILLs."""
    monkeypatch.setenv("SLOW_LOG", str(tmp_path / "log"))
    data, model = Digits(size=8).dataset("test"), trained()
    suite: dict[str, Attack] = {"a": Slow(FGSM(eps=0.05)), "b": Restarts(Slow(PGD(eps=0.05, steps=3)), n=2)}
    calm, killed = (Campaign(suite, data, 120, 0, tmp_path / name, "test") for name in ("calm", "killed"))
    run_campaign(calm, model, batch_size=6)
    total = attacked(calm)
    for attempt, (world, share) in enumerate(((2, 0.2), (3, 0.5), (1, 0.8), (2, NEVER))):
        (tmp_path / "log").write_text("")
        pids = []
        for rank in range(world):
            pid = os.fork()
            if not pid:
                with suppress(BaseException):
                    run_campaign(killed, model, Rank(rank, world, run=str(attempt)), batch_size=6)
                os._exit(0)
            pids.append(pid)
        deadline = time.monotonic() + 60
        left = set(pids)
        while left and time.monotonic() < deadline:
            looked = len(killed.table(killed.runs("clean")[0])["index"]) == 120
            if looked and attacked(killed) >= share * total:
                for pid in left if attempt == 1 else {min(left)}:  # all of the processes, or one
                    os.kill(pid, signal.SIGKILL)
                share = NEVER
            left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]}
            time.sleep(0.002)
        assert not left
        begun = (tmp_path / "log").read_text().split()
        recorded = {e.rank: e.batches for e in run_costs(killed.folder, identity="test") if e.run == str(attempt)}
        for rank, pid in enumerate(pids):
            clean = 0 if attempt else 10  # batches without an attack
            assert 0 <= begun.count(str(pid)) - (recorded.get(rank, clean) - clean) <= 1
    assert attacked(killed) == total and numbers(merge(killed)) == numbers(merge(calm))


# --- how work is shared out -------------------------------------------------------------------------------------------


class Priced(nn.Module):
    """Right about most images; every batch costs its rows on this process's own clock."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.seconds += 0.01 * len(x)
        level = x.flatten(1).mean(1)
        return torch.stack([0.76 - level, torch.zeros_like(level)], 1)  # right about 76 %, like a ResNet-50


@dataclass(frozen=True)
class Passes(Attack):
    """Asks the model four times and breaks a third of the images."""

    kind: ClassVar[Literal["budget", "minimum-norm", "corruption"]] = "budget"
    norm: str = "linf"
    eps: float = 0.25

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        for _ in range(4):
            model(x)
        return x + 0.25


@pytest.mark.long
def test_imagenet_on_four_nodes_is_shared_out_within_two_percent(tmp_path: Path) -> None:
    """50,000 images on 4 nodes with 2 GPUs each: SLURM's ranks, a priced model; samples and seconds a GPU."""
    levels = torch.rand(50_000, generator=torch.Generator().manual_seed(0)).view(-1, 1, 1, 1)
    data = TensorImages(levels * 0.99, torch.zeros(50_000, dtype=torch.long))
    c = Campaign({"a": Passes()}, data, 50_000, 0, tmp_path, "test", "worst_case")
    shares, seconds = [], []
    for rank in range(8):
        slurm = {"SLURM_PROCID": rank, "SLURM_NTASKS": 8, "SLURM_LOCALID": rank % 2, "SLURM_STEP_ID": 0}
        here = find_rank({name: str(value) for name, value in slurm.items()})
        assert (here.rank, here.world, here.local) == (rank, 8, rank % 2)
        model = Priced()
        run_campaign(c, model, here, batch_size=100)
        shares.append(len(c.samples[here.rank :: here.world]))
        seconds.append(model.seconds)
    assert max(shares) / min(shares) <= 1.02 and sum(shares) == 50_000
    assert max(seconds) <= 1.02 * float(np.mean(seconds)), seconds
    results = merge(c)
    assert results["attacks"][0]["attacked"] == round(results["clean_accuracy"] * 50_000)
