"""What outcomes say: judged in one place, kept in ledgers, merged strictly, tied to a campaign; safe checkpoints."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import (
    MLP,
    PLANTED,
    SUITE,
    Bomb,
    Shift,
    Threshold,
    Unbounded,
    campaign,
    finish,
    numbers,
    save,
    trained,
)
from torch import Tensor, nn

from adversarial_lightning import datamodules, networks
from adversarial_lightning.attacks import FGSM, PGD, Attack, GaussianNoise, Noise, Restarts, Within, WorstOf
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue, describe
from adversarial_lightning.cli.messages import exits, friendly, shorten
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.datamodules.images import TensorImages
from adversarial_lightning.defenses import MeanFilter, Purified, RandomQuantizer, required_adaptations
from adversarial_lightning.evaluation import Campaign, Outcome, evaluate_batch, robust, run_campaign
from adversarial_lightning.evaluation.campaign.identity import claim_folder, data_part, suite_part, with_files
from adversarial_lightning.evaluation.campaign.launch import Rank, find_rank
from adversarial_lightning.evaluation.campaign.ledger import Ledger
from adversarial_lightning.evaluation.campaign.locks import check_free
from adversarial_lightning.evaluation.campaign.merge import Incomplete, merge, reasons_for_no_headline
from adversarial_lightning.evaluation.outcomes.statistics import lengths, shortest
from adversarial_lightning.evaluation.outcomes.subset import Samples


def records(c: Campaign) -> list[dict[str, Any]]:
    """All rows of all ledgers without the seconds; lengths to 4 digits, because rounding depends on the batch shape."""
    rows = []
    for name in ("clean", *c.suite):
        for run in c.runs(name):
            for o in c.outcomes(run):
                row = {"name": name, "restart": run.restart, **asdict(replace(o, seconds=0.0))}
                rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    return rows


# --- outcomes ---------------------------------------------------------------------------------------------------------


class Nearest(Shift):
    kind: ClassVar[Literal["budget", "minimum-norm", "corruption"]] = "minimum-norm"


class Liar(Shift):
    """Tampers with the model's mode and with what it may see, and returns the image itself."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        model.train()
        with torch.no_grad():
            assert (model(x).argmax(1) != y).all()  # "fooled"
        return x


class FlipsInTraining(Threshold):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x) if self.training else super().forward(x)


class Escapes(Shift):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise | None = None) -> Tensor:
        return x + 3


class Shrinks(Escapes):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise | None = None) -> Tensor:
        return x[..., :1]


def one(attack: Attack | None, model: nn.Module, level: float = 0.45, label: int = 0) -> Outcome:
    """The outcome of a grey 1x2x2 image."""
    x = torch.full((1, 1, 2, 2), level)
    (outcome,), _ = evaluate_batch(model, attack, x, torch.tensor([label]), torch.tensor([7]), seed=0, name="a")
    return outcome


# attack, model, level, label -> adversarial prediction, stands
JUDGED: dict[str, tuple[Shift, nn.Module, float, int, int, bool]] = {
    "inside the ball and wrong": (Shift(0.1), Threshold(), 0.45, 0, 1, False),
    "inside the ball and right": (Shift(0.01), Threshold(), 0.45, 0, 0, True),
    "outside the ball and wrong": (Shift(0.1001), Threshold(), 0.45, 0, 1, True),
    "l2 is not linf": (Shift(0.1, norm="l2"), Threshold(), 0.45, 0, 1, True),
    "wrong from the start": (Shift(0.01), Threshold(), 0.45, 1, 0, False),
    "wrong from the start, healed by the attack": (Shift(0.1), Threshold(), 0.45, 1, 1, False),
    "logits not finite": (Shift(0.01), Threshold(0.3), 0.45, 0, -1, False),
    "logits not finite under attack": (Shift(0.04), Threshold(0.48), 0.45, 0, -1, False),
    "pixels not finite: the attack broke": (Shift(float("nan")), Threshold(), 0.45, 0, 0, True),
    "pixels not finite, wrong from the start": (Shift(float("nan")), Threshold(), 0.45, 1, 0, False),
    "minimum norm at most eps": (Nearest(0.0625, eps=0.0625), Threshold(), 0.45, 0, 1, False),
    "minimum norm a bit above eps": (Nearest(0.0625, eps=0.06249999), Threshold(), 0.45, 0, 1, True),
    "no success in spite of the attack's view": (Liar(), FlipsInTraining(), 0.45, 0, 0, True),
}


@pytest.mark.parametrize("case", JUDGED)
def test_judgement(case: str) -> None:
    attack, model, level, label, adversarial, stands = JUDGED[case]
    if isinstance(attack, Nearest):
        level = 0.4375  # 0.4375 + 0.0625 = 0.5 exactly; any more is class 1
        attack = Nearest(attack.by + 2**-10, attack.eps + 2**-10)
    outcome = one(attack, model, level, label)
    assert outcome.adversarial == adversarial and outcome.attack_failed is case.startswith("pixels")
    assert robust(outcome, attack.norm, attack.eps, attack.kind) is stands
    corruption = robust(outcome, None, None, "corruption")  # has no outside
    assert corruption is (outcome.clean == label == adversarial)


def test_clean_rows_and_lengths() -> None:
    clean = one(None, Threshold())
    assert (clean.clean, clean.adversarial, clean.linf, clean.forwards) == (0, 0, 0, 0)
    o = one(Shift(0.25), Threshold())
    assert (o.index, o.label, o.l0) == (7, 0, 4)
    assert (o.l1, o.l2, o.linf) == pytest.approx((1.0, 0.5, 0.25))


@pytest.mark.parametrize("attack", [Escapes(), Shrinks()], ids=repr)
def test_attacks_that_break_the_rules_are_named(attack: Attack) -> None:
    with pytest.raises(ValueError, match="attack a "):
        one(attack, Threshold())


@pytest.mark.parametrize(("level", "label", "match"), [(1.5, 0, "must lie in"), (0.4, 2, "labels 2 .. 2")])
def test_bad_data_is_refused(level: float, label: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        one(None, Threshold(), level, label)


# attack -> forwards and backwards a sample
PASSES: dict[str, tuple[Attack, int, int]] = {
    "fgsm": (FGSM(eps=0.1), 1, 1),
    "pgd": (PGD(eps=0.1, steps=5), 5, 5),
    "eot": (PGD(eps=0.1, steps=5, eot_samples=3), 15, 15),
    "worst of": (WorstOf([FGSM(eps=0.1), PGD(eps=0.1, steps=3)]), 6, 4),
    "noise": (GaussianNoise(), 0, 0),
}


@pytest.mark.parametrize("case", PASSES)
def test_passes_are_counted_from_outside(case: str) -> None:
    attack, forwards, backwards = PASSES[case]
    outcome = one(attack, Threshold())
    assert (outcome.forwards, outcome.backwards) == (forwards, backwards)


def test_evaluation_leaves_everything_as_it_was() -> None:
    """Any mode and context gives the same outcomes, and finds model, hooks and generators untouched."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 10))
    model[1].weight.requires_grad_(False)
    x, y, index = Digits(size=8).dataset("test").__getitems__(list(range(12)))
    contexts: list[Callable[[], Any]] = [
        torch.enable_grad,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ]
    found = []
    for training in (True, False):
        for context in contexts:
            model.train(training)
            model[2].eval()
            before = {name: t.clone() for name, t in model.state_dict().items()}
            state = torch.get_rng_state()
            with context():
                outcomes, _ = evaluate_batch(model, SUITE["pgd"], x.clone(), y.clone(), index, seed=1, name="pgd")
            found.append([replace(o, seconds=0.0) for o in outcomes])
            assert [m.training for m in model] == [training, training, False, training, training]
            assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
            assert all(p.grad is None for p in model.parameters()) and not model._forward_hooks
            assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
            assert torch.equal(state, torch.get_rng_state())
    assert all(outcomes == found[0] for outcomes in found)


def test_draws_are_keyed_and_disjoint() -> None:
    """An attack draws from a stream of its own for each name and restart; a draw of the defender is the same under all.

    Padding is dropped.
    """
    keys: list[tuple[int, ...]] = []

    class Recorder(RandomQuantizer):
        def forward(self, x: Tensor) -> Tensor:
            assert self.noise is not None
            keys.append(tuple(self.noise.key.tolist()))
            return super().forward(x)

    model = Purified(trained(), Recorder())
    x, y, index = Digits(size=8).dataset("test").__getitems__([3, 5, -1])
    for name, restart in (("a", 0), ("a", 1), ("b", 0)):
        outcomes, _ = evaluate_batch(model, FGSM(eps=0.1), x, y, index, seed=0, name=name, restart=restart, draws=2)
        assert [o.index for o in outcomes] == index[:2].tolist()
    clean, attack, verified = keys[0::5] + keys[1::5], keys[2::5], keys[3::5] + keys[4::5]
    assert len(keys) == 15 and sorted(clean) == sorted(verified) and len(set(clean)) == 2
    assert len(set(attack)) == 3 and len({key for row in set(keys) for key in row[:2]}) == 10


# --- campaigns --------------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": trained,
    "stochastic": lambda: Purified(trained(), RandomQuantizer()),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", MODELS)
def test_outcomes_do_not_depend_on_the_execution(kind: str, tmp_path: Path) -> None:
    """Batch size, processes, loader workers, interruptions: the same rows, the same results."""
    model = MODELS[kind]()
    whole = campaign(tmp_path / "whole")
    run_campaign(whole, model, batch_size=64)
    expected = records(whole)
    assert len({(r["name"], r["restart"], r["index"]) for r in expected}) == len(expected) > 150

    sliced = campaign(tmp_path / "sliced")
    for rank in (2, 0, 1):
        held = {row["index"] for row in records(sliced)}
        run_campaign(sliced, model, Rank(rank, 3, run="a"), batch_size=7)
        assert {row["index"] for row in records(sliced)} - held == set(sliced.samples[rank::3])
    assert records(sliced) == expected

    class Enough(Exception):
        pass

    broken = campaign(tmp_path / "broken")
    for stop_after, world, batch_size in ((2, 1, 5), (3, 2, 7), (1, 3, 3), (10**9, 2, 64)):
        for rank in range(world):
            seen = 0

            class Stops(Rank):
                def alive(self, stop_after: int = stop_after) -> None:
                    nonlocal seen
                    seen += 1
                    if seen > stop_after:
                        raise Enough

            try:
                run_campaign(broken, model, Stops(rank, world, run=f"{stop_after}"), batch_size=batch_size)
            except Enough:
                assert stop_after < 10**9
    assert records(broken) == expected
    assert numbers(merge(broken)) == numbers(merge(sliced)) == numbers(merge(whole))
    run_campaign(whole, nn.Module())  # nothing is left to do: no model is ever called


@pytest.mark.long
def test_loader_workers_and_more_processes_than_samples(tmp_path: Path) -> None:
    few = campaign(tmp_path / "few", n=3, suite={"fgsm": FGSM(eps=0.05)})
    for rank in range(5):
        run_campaign(few, trained(), Rank(rank, 5, run="a"))
    loaded = campaign(tmp_path / "loaded", n=3, suite={"fgsm": FGSM(eps=0.05)})
    run_campaign(loaded, trained(), workers=1)
    assert records(few) == records(loaded) and len(records(few)) >= 3


@pytest.mark.long
def test_all_batches_have_one_shape(tmp_path: Path) -> None:
    """Rounding depends on the shape, so the last batch is filled up; with fewer samples than that, all fit into one."""
    shapes = set()
    net = nn.Sequential(trained())
    net.register_forward_hook(lambda _module, inputs, _logits: shapes.add(tuple(inputs[0].shape)))
    run_campaign(campaign(tmp_path / "a"), net, batch_size=16)
    assert shapes == {(16, 1, 8, 8)}
    shapes.clear()
    run_campaign(campaign(tmp_path / "b", n=5), net, batch_size=16)
    assert shapes == {(5, 1, 8, 8)}


def test_another_seed_draws_differently(tmp_path: Path) -> None:
    lengths = []
    for seed in (0, 1):
        c = campaign(tmp_path / str(seed), n=10, suite={"gaussian": GaussianNoise()}, seed=seed)
        run_campaign(c, trained())
        lengths.append([row["l2"] for row in records(c)])
    assert lengths[0] != lengths[1]


def test_progress_adds_up(tmp_path: Path) -> None:
    """Rows done reach samples x runs also after a resume, and the samples that are not broken are the robust ones."""
    c = campaign(tmp_path)
    for _ in range(2):
        done, broken = dict.fromkeys(("clean", *SUITE), 0), dict.fromkeys(("clean", *SUITE), 0)

        def add(name: str, rows: int, new: int, done: dict[str, int] = done, broken: dict[str, int] = broken) -> None:
            done[name] += rows
            broken[name] += new

        run_campaign(c, trained(), on_progress=add)
        assert done == {name: 40 * len(c.runs(name)) for name in done}
        accuracies = {a["name"]: a["robust_accuracy"] for a in merge(c)["attacks"]}
        assert {name: 1 - broken[name] / 40 for name in accuracies} == pytest.approx(accuracies)


@pytest.mark.parametrize(
    ("suite", "n", "match"),
    [
        ({}, 5, "names no attack"),
        ({"clean": FGSM()}, 5, "called 'clean'"),
        (SUITE, 0, "0 samples"),
        (SUITE, 400, "360"),
    ],
)
def test_impossible_campaigns(suite: dict[str, Attack], n: int, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        campaign(tmp_path, n, suite)


# --- ledgers and merging ----------------------------------------------------------------------------------------------


def edit(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


def copy_row(c: Campaign) -> None:
    """Write sample rows of rank 0 into a second ledger too."""
    outcome = next(o for o in c.outcomes(c.runs("fgsm")[0]))
    with Ledger(c.folder, 1, identity="test", run="a") as ledger:
        ledger.add("fgsm", 0, [outcome])


DAMAGE: dict[str, tuple[Callable[[Campaign], None], type[Exception], str]] = {
    "missing": (
        lambda c: edit(c.folder / "ledgers/rank0.sqlite", "DELETE FROM outcomes WHERE attack = 'small' AND sample % 2"),
        Incomplete,
        r"samples of small \(restart 0\) are not in the ledgers: \d+",
    ),
    "twice": (copy_row, ValueError, "is recorded twice, in .*rank0.sqlite and .*rank1.sqlite"),
    "misnamed": (
        lambda c: edit(c.folder / "ledgers/rank0.sqlite", "UPDATE outcomes SET attack = 'x' WHERE attack = 'pgd'"),
        Incomplete,
        "samples of pgd",
    ),
    "not asked for": (
        lambda c: edit(
            c.folder / "ledgers/rank0.sqlite",
            "INSERT INTO outcomes SELECT 'small', 0, 99999, label, clean, adversarial, right_draws, l0, l1, l2, linf, "
            "image_l2, score, forwards, backwards, seconds, attack_failed FROM outcomes WHERE attack = 'small' LIMIT 1",
        ),
        ValueError,
        "do not belong there: 99999",
    ),
    "no database": (
        lambda c: (c.folder / "ledgers/rank0.sqlite").write_bytes(b"nonsense" * 1000) and None,  # type: ignore[func-returns-value]
        ValueError,
        "rank0.sqlite is damaged .*move it away",
    ),
    "cut off": (
        lambda c: os.truncate(c.folder / "ledgers/rank0.sqlite", 5000),
        ValueError,
        "rank0.sqlite is damaged",
    ),
    "foreign": (
        lambda c: edit(c.folder / "ledgers/rank0.sqlite", "UPDATE campaign SET identity = 'other'"),
        ValueError,
        "not written by this campaign",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_merge_is_strict(case: str, tmp_path: Path) -> None:
    spoil, kind, match = DAMAGE[case]
    c = campaign(tmp_path)
    run_campaign(c, trained())
    merge(c)
    spoil(c)
    with pytest.raises(kind, match=match) as caught:
        merge(c)
    assert friendly(caught.value)


def test_a_ledger_of_another_campaign_is_not_touched(tmp_path: Path) -> None:
    Ledger(tmp_path, 0, identity="mine", run="a").close()
    with pytest.raises(ValueError, match="not written by this campaign"):
        Ledger(tmp_path, 0, identity="other", run="b")
    Ledger(tmp_path, 0, identity="mine", run="c").close()


@pytest.mark.long
def test_tables_never_stand_without_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any statement of its first transaction, a ledger is empty: siblings read it as nothing yet."""
    script = "from pathlib import Path; import sqlite3, sys, os\n"
    script += "from adversarial_lightning.evaluation.campaign import ledger\n"
    script += "class C(sqlite3.Connection):\n    def execute(self, sql, *a):\n"
    script += "        if 'INSERT INTO campaign' in sql: os._exit(9)\n        return super().execute(sql, *a)\n"
    script += "ledger._connect = lambda path: sqlite3.connect(path, factory=C)\n"
    script += f"ledger.Ledger(Path({str(tmp_path)!r}), 0, identity='test', run='a')"
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == 9
    assert list(campaign(tmp_path).outcomes(campaign(tmp_path).runs("clean")[0])) == []


def test_an_empty_ledger_of_a_killed_process_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "ledgers").mkdir()
    (tmp_path / "ledgers/rank3.sqlite").touch()
    c = campaign(tmp_path, n=5)
    run_campaign(c, trained())
    assert merge(c)["n"] == 5


def test_a_failed_batch_leaves_no_rows(tmp_path: Path) -> None:
    with Ledger(tmp_path, 0, identity="test", run="a") as ledger:
        outcome = one(None, Threshold())
        with pytest.raises(sqlite3.IntegrityError):
            ledger.add("clean", 0, [outcome, outcome])
    c = campaign(tmp_path)
    assert list(c.outcomes(c.runs("clean")[0])) == []


@pytest.mark.long
def test_one_run_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of one run share a folder, those of another are refused, whatever their rank; afterwards it is free."""
    monkeypatch.setattr("adversarial_lightning.evaluation.campaign.locks._GRACE", 0.2)
    with Ledger(tmp_path, 0, identity="test", run="a"):
        Ledger(tmp_path, 1, identity="test", run="a").close()
        for rank in (0, 1):
            with pytest.raises(
                ValueError, match=f"another evaluation .pid {os.getpid()} on .* choose another --output"
            ):
                Ledger(tmp_path, rank, identity="test", run="b")
        with pytest.raises(ValueError, match="another evaluation"):
            Ledger(tmp_path, 0, identity="test", run="a")  # one rank, twice
    check_free(tmp_path, "b")
    Ledger(tmp_path, 1, identity="test", run="b").close()
    with FileLock(tmp_path / "ledgers/rank1.lock"), pytest.raises(ValueError, match="another evaluation"):
        check_free(tmp_path, "c")


# --- results ----------------------------------------------------------------------------------------------------------


def invented(folder: Path, table: dict[str, dict[int, bool]], suite: dict[str, Attack], n: int = 6) -> Campaign:
    """A campaign whose ledger says for each attack which samples (positions) stand."""
    c = campaign(folder, n, suite)
    base = one(None, Threshold())
    with Ledger(folder, 0, identity="test", run="a") as ledger:
        for name, stands in table.items():
            cost = {} if name == "clean" else {"forwards": 40.0, "backwards": 20.0, "seconds": 1.5}
            for position, ok in stands.items():
                adversarial = 0 if ok else 1
                row = replace(base, index=c.samples[position], clean=adversarial if name == "clean" else 0, **cost)
                ledger.add(name, 0, [replace(row, adversarial=adversarial, right_draws=int(ok))])
    return c


@pytest.mark.long
def test_worst_case_is_the_mean_of_minima(tmp_path: Path) -> None:
    suite: dict[str, Attack] = {
        "a": FGSM(eps=0.1),
        "b": PGD(eps=0.1),
        "c": FGSM(norm="l2", eps=1),
        "d": GaussianNoise(),
    }
    clean = {0: True, 1: True, 2: True, 3: True, 4: True, 5: False}
    correct = range(5)
    table = {
        "clean": clean,
        "a": {i: i not in (0, 1) for i in correct},
        "b": {i: i not in (1, 2) for i in correct},
        "c": {i: True for i in correct},
        "d": {i: i != 4 for i in correct},
    }
    results, report = finish(invented(tmp_path, table, suite))
    documented = (Path(__file__).resolve().parent.parent / "docs" / "results_schema.md").read_text()
    for key in {*results, *results["attacks"][0], *results["worst_case"][0], *results["cost"]}:
        assert f"`{key}`" in documented
    assert (results["schema"], results["n"], results["clean_accuracy"]) == (3, 6, pytest.approx(5 / 6))
    assert [(a["name"], a["norm"], a["eps"], round(6 * a["robust_accuracy"])) for a in results["attacks"]] == [
        *(("a", "linf", 0.1, 3), ("b", "linf", 0.1, 3), ("c", "l2", 1.0, 5), ("d", None, None, 4))
    ]
    first = results["attacks"][0]
    assert (first["n"], first["forwards"], first["backwards"], first["seconds"]) == (6, 200, 100, 7.5)
    assert [(w["norm"], w["eps"], w["robust_accuracy"], w["attacks"]) for w in results["worst_case"]] == [
        *(("linf", 0.1, pytest.approx(2 / 6), ["a", "b"]), ("l2", 1.0, pytest.approx(5 / 6), ["c"])),
        ("union", None, pytest.approx(2 / 6), ["a", "b", "c"]),
    ]
    assert (first["attacked"], first["succeeded"], first["success_rate"]) == (5, 2, 0.4)
    said = "33 % accuracy under a and b at linf 0.1, pixels in [0, 1] (95 % interval over images [10, 70]; worst case "
    said += "of a, b; n = 6, a random subset of 6 of 360 test images, sample seed 0); clean 83 %"
    assert f"**{said}; not audited**" in report
    assert "lightning evaluate" in report and "| b " in report


EIGHT = Samples("random", 0, 8, 100)


def test_lengths_by_hand() -> None:
    """Five attacked of eight samples, three found: median over five is the third, the curve falls at each length."""
    found = lengths([0.4, 0.1, 0.2], 5, EIGHT)
    assert (found["found"], found["failed"], found["median_norm"]) == (3, 2, 0.4)
    assert found["mean_norm"] == pytest.approx(0.7 / 3, abs=1e-6)
    curve = dict(zip(found["curve"]["eps"], found["curve"]["robust_accuracy"], strict=True))
    assert (curve[0.0], curve[0.1], curve[0.19], curve[0.2], curve[0.39], curve[0.4]) == (
        *(5 / 8, 4 / 8, 4 / 8, 3 / 8, 3 / 8, 2 / 8),
    )
    low, high = found["mean_norm_interval"]
    assert 0.1 <= low < found["mean_norm"] < high <= 0.4
    assert lengths([0.1], 5, EIGHT)["median_norm"] is None
    assert lengths([], 0, EIGHT)["curve"] == {"eps": [0.0], "robust_accuracy": [0.0]}


def test_failures_are_counted_beside_rho() -> None:
    """Two of four images found, with ratios 0.1 and 0.3; a black one says nothing; one failed: it is no smaller."""
    rows = {
        "label": np.zeros(4, int),
        "adversarial": np.array([1, 1, 0, 1]),
        "l2": np.array([0.1, 0.3, 0.0, 0.2]),
        "image_l2": np.array([1.0, 1.0, 1.0, 0.0]),
    }
    found = shortest(rows, "l2", EIGHT)
    assert (found["found"], found["failed"], found["relative_norm"]) == (3, 1, 0.2)
    assert found["relative_norm_with_failures"] == pytest.approx((0.1 + 0.3 + 0.3) / 3, abs=1e-6)
    documented = (Path(__file__).resolve().parent.parent / "docs" / "results_schema.md").read_text()
    assert all(f"`{key}`" in documented for key in found)
    low, high = found["relative_norm_interval"]
    assert 0.1 <= low < 0.2 < high <= 0.3


@pytest.mark.long
def test_a_minimum_norm_attack_draws_a_curve_and_is_judged_at_a_radius(tmp_path: Path) -> None:
    """Nearest moves every image by 0.2 and claims no radius: all fall without one, none within 0.1, all within 0.3."""
    inner = Unbounded(by=0.2)
    suite: dict[str, Attack] = {"free": inner, "near": Within(inner, 0.1), "far": Within(inner, 0.3)}
    data = TensorImages(torch.full((6, 1, 4, 4), 0.4), torch.zeros(6, dtype=torch.long))
    c = Campaign(suite, data, 6, 0, tmp_path, "test")
    run_campaign(c, Threshold(), Rank(run="a"), batch_size=4)
    results, report = finish(c)
    assert [a["robust_accuracy"] for a in results["attacks"]] == [0.0, 1.0, 0.0]
    assert [(a["norm"], a["eps"]) for a in results["attacks"]] == [("linf", None), ("linf", 0.1), ("linf", 0.3)]
    assert results["attacks"][0]["mean_norm"] == pytest.approx(0.2, abs=1e-5)
    assert [(case["eps"], case["robust_accuracy"]) for case in results["worst_case"]] == [(0.1, 1.0), (0.3, 0.0)]
    assert "| free " in report and (tmp_path / "report.html").exists()


EOT: dict[str, tuple[dict[str, Attack], bool]] = {
    "none": ({"a": PGD(eps=0.1)}, True),
    "plain": ({"a": PGD(eps=0.1), "b": PGD(eps=0.1, eot_samples=10)}, False),
    "nested": ({"a": Restarts(WorstOf([FGSM(eps=0.1), PGD(eps=0.1, eot_samples=2)]))}, False),
    "of another threat": ({"a": PGD(eps=0.1), "b": PGD(eps=0.2, eot_samples=10)}, True),
}


@pytest.mark.parametrize("case", EOT)
def test_no_headline_without_the_honest_attack(case: str, tmp_path: Path) -> None:
    suite, refused = EOT[case]
    obliged = required_adaptations(Purified(trained(), RandomQuantizer()))
    assert ((("linf", 0.1),) in reasons_for_no_headline(suite, obliged)) is refused
    assert not reasons_for_no_headline(suite, required_adaptations(Purified(trained(), MeanFilter())))
    suite = {name: a.attack if isinstance(a, Restarts) else a for name, a in suite.items()}
    table = {name: {0: True} for name in ("clean", *suite)}
    results, report = finish(invented(tmp_path, table, suite, n=1), **obliged)
    assert (" at linf 0.1, pixels in [0, 1] (" in report) is not refused
    assert ("no headline for linf 0.1" in " ".join(results["warnings"])) is refused
    assert results["attacks"][0]["robust_accuracy"] == 1  # the number itself is listed


def test_warnings_name_what_was_odd(tmp_path: Path) -> None:
    suite: dict[str, Attack] = {"far": Shift(0.3, eps=0.1), "broken": Shift(float("nan"), eps=0.1)}
    c = campaign(tmp_path, 4, suite)
    run_campaign(c, trained())
    far, broken = merge(c)["warnings"]
    assert "far: 4 adversarial images left the ball" in far or "far:" in far
    assert broken.startswith("broken: this attack is broken") and "for 4 samples were not finite" in broken
    entry = merge(c)["attacks"][1]
    assert (entry["errors"], entry["invalid"]) == (4, 0) and entry["robust_accuracy"] == merge(c)["clean_accuracy"]


# --- identity ---------------------------------------------------------------------------------------------------------


def parts(**changes: Any) -> dict[str, Any]:
    data = Digits(size=8)
    base = {
        "checkpoint": {"sha256": "a"},
        "suite": suite_part(SUITE),
        "data": data_part(describe(data), data.dataset("test"), range(10)),
        **{"defenses": [], "seed": 0, "limit": 10},
    }
    return {**base, **changes}


def other_labels() -> Any:
    images = Digits(size=8).dataset("test")
    images.labels = images.labels.flip(0)
    return images


CHANGES: dict[str, dict[str, Any]] = {
    "checkpoint": {"checkpoint": {"sha256": "b"}},
    "suite": {"suite": suite_part({**SUITE, "fgsm": FGSM(eps=0.06)})},
    "data": {"data": data_part(describe(Digits(size=8)), other_labels(), range(10))},
    "defenses": {"defenses": [{"class_path": "defenses.Purified"}]},
    "seed": {"seed": 1},
    "limit": {"limit": 11},
}


@pytest.mark.parametrize("part", CHANGES)
def test_another_campaign_is_refused_by_name(part: str, tmp_path: Path) -> None:
    identity = claim_folder(tmp_path, parts())
    assert claim_folder(tmp_path, parts()) == identity  # a resume
    loading = describe(Digits(size=8, batch_size=3, eval_batch_size=5, workers=2))
    same = data_part(loading, Digits(size=8).dataset("test"), range(10))
    assert claim_folder(tmp_path, parts(data=same)) == identity
    with pytest.raises(ValueError, match=f"with other {part}: .*--output"):
        claim_folder(tmp_path, parts(**CHANGES[part]))
    assert claim_folder(tmp_path / "else", parts(**CHANGES[part])) != identity


def test_files_count_by_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "sdae.ckpt"
    file.write_bytes(b"one")
    spec = [{"class_path": "defenses.X", "init_args": {"checkpoint": str(file), "levels": 3}}]
    before = with_files(spec)
    assert before[0]["init_args"]["levels"] == 3 and before != spec
    file.write_bytes(b"two")
    assert with_files(spec) != before


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PLANTED)
def test_checkpoints_build_nothing_foreign(case: str, planted: Path) -> None:
    file = save(planted / "a.ckpt", catalogue={"network": PLANTED[case], "data": None})
    with pytest.raises(ValueError, match="ckpt does not say how to build its network") as caught:
        load_network(file)
    assert "\n" not in (friendly(caught.value) or "\n")


class Wrapper(nn.Module):
    """Takes what catalogue classes may take one day."""

    def __init__(self, inner: nn.Module, act: Callable[[Tensor], Tensor] | None = None, name: str = "") -> None:
        super().__init__()
        self.inner, self.act, self.name = inner, act, name


@pytest.mark.parametrize(
    "init_args",
    [
        {"inner": "planted_module.Net"},
        {"inner": {"class_path": "planted_module.Net"}},
        {"inner": "planted.yaml"},
        {"inner": MLP, "act": "os.system"},
        {"inner": MLP, "act": {"class_path": "os.system"}},
        {"inner": MLP, "name": 3},
        {"inner": {"class_path": "datamodules.Digits"}},
    ],
)
def test_modules_and_callables_are_never_strings(init_args: dict[str, Any], planted: Path) -> None:
    classes = [*catalogue(networks), Wrapper]
    path = f"{Wrapper.__module__}.Wrapper"
    built = build({"class_path": path, "init_args": {"inner": MLP, "name": "planted_module.Net"}}, classes)
    assert isinstance(built.inner, networks.MLP) and built.name == "planted_module.Net"  # a name is only a name
    with pytest.raises(ValueError):
        build({"class_path": path, "init_args": init_args}, classes)


def write(path: Path, content: Any) -> None:
    torch.save(content, path)


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: None, "there is no checkpoint"),
    "folder": (lambda p: p.mkdir(), "there is no checkpoint"),
    "truncated": (lambda p: os.truncate(save(p), 3000), "truncated"),
    "empty": (lambda p: p.touch(), "truncated"),
    "text": (lambda p: p.write_text("hello"), "truncated"),
    "pickle bomb": (lambda p: write(p, {"state_dict": {}, "hyper_parameters": Bomb()}), "can run code"),
    "bomb as weight": (lambda p: write(p, {"state_dict": {"network.a": Bomb()}}), "can run code"),
    "no checkpoint": (lambda p: write(p, [1, 2]), "no state_dict"),
    "other weights": (lambda p: save(p, state_dict={"network.a": torch.zeros(2)}), "do not fit MLP"),
    "no weights": (lambda p: save(p, state_dict={}), "do not fit MLP"),
    "no tensors": (lambda p: save(p, state_dict={f"network.{k}": 3 for k in trained().state_dict()}), "do not fit MLP"),
    "no catalogue": (lambda p: save(p, catalogue=None), "--network"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_checkpoints_are_named(case: str, planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    make, match = UNREADABLE[case]
    make(planted / "a.ckpt")
    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        load_network(planted / "a.ckpt")
    text = friendly(caught.value)
    assert text and "a.ckpt" in text and "\n" not in text


DESCRIBED: dict[str, Any] = {
    "mlp": lambda: networks.MLP(3, 5, [7, 8]),
    "small": lambda: networks.SmallCNN(mean=[0.1], std=[0.3]),
    "madry": lambda: networks.MadryCNN(),
    "digits": lambda: Digits(size=9, test_limit=30),
}


@pytest.mark.parametrize("case", DESCRIBED)
def test_describe_is_the_inverse_of_build(case: str) -> None:
    obj = DESCRIBED[case]()
    spec = describe(obj)
    assert json.loads(json.dumps(spec)) == spec
    twin = build(spec, catalogue(networks) + catalogue(datamodules))
    assert type(twin) is type(obj) and describe(twin) == spec
    long = {**spec, "class_path": f"{type(obj).__module__}.{type(obj).__name__}"}
    assert describe(build(long, catalogue(networks) + catalogue(datamodules))) == spec


def test_describe_refuses_what_it_cannot_say() -> None:
    for obj in (nn.Sequential(), Wrapper(nn.ReLU(), torch.tanh), networks.Normalize([0.0], [1.0])):
        with pytest.raises(ValueError, match="cannot be described"):
            describe(obj)


def test_network_of_a_reviewed_config_takes_tensors_only(planted: Path) -> None:
    file = save(planted / "a.ckpt", catalogue={"network": "planted_module.Net", "data": "planted.yaml"})
    network, data = load_network(file, networks.MLP(10, 64, [32]))
    assert data is None and not network.training
    x = torch.rand(3, 64)
    assert torch.equal(network(x), trained()(x))


# --- errors and processes ---------------------------------------------------------------------------------------------


def test_only_errors_for_users_are_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    def of(make: Callable[[], Any]) -> str | None:
        try:
            make()
        except Exception as error:
            return friendly(error)
        raise AssertionError("no error")

    assert of(lambda: PGD(steps=0)) == "steps must be at least 1, not 0"
    assert of(lambda: Digits(size=3))
    assert of(lambda: torch.zeros(2) + torch.zeros(3)) is None  # fails in a library: a bug
    assert of(lambda: json.loads("{")) is None
    assert of(lambda: networks.Normalize([], [])) is None  # ours, but nobody raised it on purpose
    assert of(lambda: evaluate_batch(None, None, *[torch.zeros(1, 1)] * 3, seed=0, name="")) is None  # type: ignore[arg-type]
    assert exits(lambda: PGD(steps=0) and None) == 2  # type: ignore[func-returns-value]
    assert capsys.readouterr().err == "error: steps must be at least 1, not 0\n"
    with pytest.raises(ZeroDivisionError):
        exits(lambda: 1 // 0)


UNION = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'adversarial_lightning.attacks.Restarts':
        Parser key "attack":
          Problem with given class_path 'adversarial_lightning.attacks.PGD':
            Option 'epss' is not accepted
    - Expected a <class 'str'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'PGD'}"""


def test_the_deepest_complaint_comes_first() -> None:
    assert shorten(UNION) == "Option 'epss' is not accepted; did you mean eps? (in model.attack, of attacks.PGD)"


PLACES: dict[str, tuple[dict[str, str], tuple[int, int, int]]] = {
    "alone": ({}, (0, 1, 0)),
    "torchrun": ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
    "slurm": ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, (3, 8, 1)),
    "batch script outside srun": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}, (0, 1, 0)),
    "torchrun inside slurm": ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "9"}, (1, 2, 1)),
}


@pytest.mark.parametrize("case", PLACES)
def test_place(case: str) -> None:
    environ, (rank, world, local) = PLACES[case]
    here = find_rank(environ)
    assert (here.rank, here.world, here.local) == (rank, world, local)
    here.exit_if_orphaned()


def test_a_process_without_its_parent_stops() -> None:
    with pytest.raises(SystemExit):
        Rank(0, 2, parent=os.getpid()).exit_if_orphaned()


@dataclass(frozen=True)
class Unkeyed(Attack):
    """A random point of the ball, from torch's global generator."""

    eps: float = 0.1
    norm: str = "linf"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return (x + self.eps * (2 * torch.rand(x.shape) - 1)).clamp(0, 1)


class Dropped(nn.Module):
    """A network behind dropout that does not stop in evaluation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.dropout(x, 0.1, train=True))
        return logits


@pytest.mark.parametrize("model, named", [(trained(), ["unkeyed"]), (Dropped(trained()), ["the model"])])
def test_draws_from_the_global_generator_are_named(model: nn.Module, named: list[str], tmp_path: Path) -> None:
    c = campaign(
        tmp_path, 10, {"fgsm": FGSM(eps=0.1), "unkeyed": Unkeyed(), "keyed": Restarts(PGD(eps=0.1, steps=2), 2)}
    )
    run_campaign(c, model, batch_size=4)
    said = [note for note in merge(c)["warnings"] if "global generator" in note]
    assert [note.split(" draws")[0] for note in said] == named


def test_accuracies_of_each_class_add_up(tmp_path: Path) -> None:
    c = campaign(tmp_path, 40)
    run_campaign(c, trained())
    results, (_, text) = merge(c), finish(c)
    labels = c.batch(c.samples)[1]
    assert {e["label"]: e["n"] for e in results["classes"]} == dict(enumerate(labels.bincount().tolist()))
    for i, case in enumerate(results["worst_case"]):
        share = sum(e["n"] * e["robust_accuracy"][i] for e in results["classes"]) / 40
        assert share == pytest.approx(case["robust_accuracy"], abs=1e-5)
    assert sum(e["n"] * e["clean_accuracy"] for e in results["classes"]) / 40 == pytest.approx(
        results["clean_accuracy"]
    )
    assert "## By class" in text
