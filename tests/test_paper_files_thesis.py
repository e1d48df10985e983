"""The papers' files of ATENT and of the thesis: all that they name exists, and what they print is the papers'."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from adversarial_lightning.attacks import PDGD, Attack, expanded
from adversarial_lightning.cli.class_names import prefer_ours
from adversarial_lightning.configs import FOLDER
from adversarial_lightning.evaluation.outcomes.subset import Samples
from adversarial_lightning.reproduce import minimum_norms, thesis_metrics
from adversarial_lightning.reproduce.papers.digests import written
from adversarial_lightning.reproduce.papers.paper import SCALES, load, trainings
from adversarial_lightning.reproduce.papers.plan import Fit, Places, Plan, packaged
from adversarial_lightning.reproduce.papers.work import measure_named

PAPERS = ("atent", "thesis")
FIGURES = [f"Fig. {n}" for n in ("1.1", *(f"2.{i}" for i in range(1, 9)), *(f"3.{i}" for i in (1, 2, 3, 4, 5, 6, 7)))]
NUMBERED = {
    "atent": ["1", "2", "3", "4", "5", "6", "Fig. 1", "Fig. 2", "Fig. 3", "Fine-tuning"],
    "thesis": [
        *("3.1a", "3.1b", "3.2", "4.1a", "4.1b", "4.2a", "4.2b", *(f"5.{i}" for i in range(1, 9))),
        *(*FIGURES, *(f"Fig. 4.{i}" for i in range(1, 6)), "Fig. 5.1"),
    ],
}
MEASURED = {
    "thesis_metrics.measure": {
        "error",
        "fgsm_error_unclipped",
        "fgsm_error_clipped",
        "rho_correct",
        "rho_all",
        "found",
    },
    "oracle_standin.measure": {"change", "no_change", "noise", "real_target", "clean", "succeeded"},
}
PRINTED = [  # written from the papers' text
    ("atent", "1", "SGD", "benign", "99.38"),
    ("atent", "1", "TRADES", "PGD-40", "76.08"),
    ("atent", "1", "ATENT", "C&W", "76.72"),
    ("atent", "2", "SGD", "PGD-20", "0.97"),
    ("atent", "2", "PGD-AT", "PGD-20", "96.01"),
    ("atent", "2", "ATENT", "C&W", "97.40"),
    ("atent", "2", "MART", "PGD-20", "96.48"),
    ("atent", "3", "PGD-AT(E)", "PGD-20", "56.80"),
    ("atent", "3", "TRADES", "DeepFool", "58.15"),
    ("atent", "4", "ATENT with noise", "PGD-10, 0.435", "64.53"),
    ("atent", "5", "ATENT, ResNet-20", "at 2/255", "55.41"),
    ("atent", "6", "ATENT, WRN-34-10, CIFAR-10", "ATENT-20, 12/255", "47.53"),
    ("atent", "Fine-tuning", "ATENT, fine-tuned", "PGD-20", "52.1"),
    ("thesis", "3.1a", "baseline", "FGSM error", "95.8"),
    ("thesis", "3.1a", "VAT", "rho", "0.269"),
    ("thesis", "3.1a", "margin l1", "error", "0.84"),
    ("thesis", "3.1b", "AT", "FGSM error", "4.95"),
    ("thesis", "3.2", "margin l2, C 0.005, augmented", "rho", "0.0777"),
    ("thesis", "4.1a", "critic", "own", "0.575"),
    ("thesis", "4.1b", "margin l2", "C&W", "0.225"),
    ("thesis", "4.2a", "VAT", "change", "35.08"),
    ("thesis", "4.2b", "critic", "no change", "6.51"),
    ("thesis", "5.1", "linf-AT", "SparseFool, l1", "200.56"),
    ("thesis", "5.3", "linf-AT", "FAB, l2 2.5", "2.6"),
    ("thesis", "5.3", "linf-AT", "PDPGD as printed, l1 5", "17.0"),
    ("thesis", "5.3", "linf-AT", "DAA, linf 0.35", "15.4"),
    ("thesis", "5.5", "l2-AT", "C&W, l2", "0.712"),
    ("thesis", "5.7", "linf-AT", "EAD, l1 8.75", "18.6"),
    ("thesis", "5.8", "l2-AT", "DDN, l2 1.25", "14.4"),
]


@functools.cache
def suite(name: str) -> dict[str, Attack]:
    prefer_ours()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--suite", type=dict[str, Attack], sub_configs=True)
    found: dict[str, Attack] = parser.instantiate(parser.parse_args(["--suite", str(packaged("suites", name))])).suite
    return expanded(found)


@pytest.mark.parametrize(("paper", "table", "row", "column", "number"), PRINTED)
def test_printed_numbers_are_the_papers(paper: str, table: str, row: str, column: str, number: str) -> None:
    assert load(paper).tables[table].rows[row].printed[column] == number


@pytest.mark.parametrize("name", PAPERS)
def test_every_table_and_figure_is_listed(name: str) -> None:
    """One that nothing is made of says why."""
    tables = load(name).tables
    assert sorted(tables) == sorted(NUMBERED[name])
    for key, table in tables.items():
        made = any(row.paper or row.cores for row in table.rows.values())
        assert made or table.figure or table.reason or all(row.reason for row in table.rows.values()), key
        for row in table.rows.values():
            assert row.paper or row.cores or row.reason, (key, row)


@pytest.mark.parametrize("name", PAPERS)
def test_everything_that_a_file_names_exists(name: str) -> None:
    """Experiments, suites and their entries, measures and their keys, wherever a row is made."""
    cells = 0
    for key, table in load(name).tables.items():
        for row in table.rows.values():
            if not (row.paper or row.cores):
                continue
            for column in (table.columns[c] for c in table.columns_of(row)):
                cells += 1
                if column.suite:
                    assert column.entry == "clean" or column.entry in suite(column.suite), (key, column.entry)
                elif column.measure == "minimum_norms.measure":
                    check_lengths(column.key, dict(column.arguments))
                else:
                    assert (
                        callable(measure_named(column.measure or "")) and column.key in MEASURED[column.measure or ""]
                    )
    assert cells > 100


def check_lengths(key: str, arguments: dict[str, Any]) -> None:
    attacks = suite(arguments["suite"])
    entries, radii = arguments["entries"], arguments["radii"]
    assert all(attacks[entry].kind == "minimum-norm" for entry in entries)
    name, _, radius = key.partition(" at ")
    if " - " in key:
        assert key.split(" - ") in arguments["shorter"]
    else:
        assert name in entries and (not radius or float(radius) in radii[name.split("_")[1]])


@pytest.mark.parametrize("name", PAPERS)
def test_trainings_exist_and_say_what_they_leave_out(name: str) -> None:
    named = {row.training(scale) for t in load(name).tables.values() for row in t.rows.values() for scale in SCALES}
    for training in named - {None}:
        found = trainings()[training or ""]
        assert packaged("experiments", found.experiment or "").is_file()
        assert found.minutes > 0 and bool(found.leaves_out) == (found.explains != "nothing"), training


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_for_cores_takes_at_most_150_minutes_a_fit(name: str) -> None:
    rows = [row for table in load(name).tables.values() for row in table.rows.values() if row.cores]
    assert rows and all(trainings()[row.cores or ""].minutes <= 150 for row in rows)


def test_lengths_of_a_table_of_outcomes() -> None:
    """Wrong without an attack: 0; not broken: infinite; a radius as long as the perturbation breaks."""
    columns = {"label": [0, 0, 0, 0], "clean": [0, 1, 0, 0], "adversarial": [1, 1, 0, 2], "l2": [0.5, 0, 0, 2]}
    found = minimum_norms.lengths({name: np.array(column) for name, column in columns.items()}, "l2")
    assert found.tolist() == [0.5, 0, np.inf, 2]
    numbers = minimum_norms.of_lengths("a", found, [0.4, 0.5, 3], Samples("random", 0, 4, 100))
    assert numbers["a"][0] == 1.25 and numbers["a found"][0] == pytest.approx(2 / 3)
    assert [numbers[f"a at {r}"][0] for r in ("0.4", "0.5", "3")] == [0.75, 0.5, 0.25]


def test_the_measure_of_chapter_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All test images are a sample of what another test set would be, and have intervals; a subset says of how many."""

    class Images:
        indices = torch.arange(30)

        def __len__(self) -> int:
            return 30

        def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, ...]:
            x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
            return x[rows], (x[rows].sum((1, 2, 3)) > 8).long(), torch.tensor(rows)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).requires_grad_(False)
    monkeypatch.setattr(thesis_metrics, "loaded", lambda *_: (network, Images()))
    given = SimpleNamespace(checkpoint=tmp_path / "x.ckpt", data=None, output=tmp_path)
    whole, some = (thesis_metrics.measure(**vars(given), n=n) for n in (None, 20))
    assert whole["samples"] == {"chosen": "all", "seed": None, "n": 30, "of": 30}
    assert some["samples"] == {"chosen": "random", "seed": 0, "n": 20, "of": 30}
    assert set(whole["numbers"]) >= MEASURED["thesis_metrics.measure"]
    for found in (whole, some):
        low, high = found["numbers"]["error"]["interval"]
        assert 0 <= low < found["numbers"]["error"]["value"] < high <= 1


@pytest.mark.parametrize(("decay", "steps"), [("linear", [1, 0.505, 0.01]), ("square", [1, 0.505**2, 0.0001])])
def test_step_sizes_decay_as_printed_or_by_the_square_of_that(decay: Any, steps: list[float]) -> None:
    """On a linear network that is not fooled, every step of Adam is as long as the step size."""
    seen: list[torch.Tensor] = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    network[1].weight.data, network[1].bias.data = torch.tensor([[1.0], [-1.0]]), torch.tensor([9.0, 0.0])
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    PDGD(steps=3, step_size=0.1, decay=decay, ratio=1e-6)(network, torch.full((1, 1, 1, 1), 0.9), torch.tensor([0]))
    moved = torch.cat(seen).flatten().diff().abs()
    assert moved[moved > 0].tolist() == pytest.approx([0.1 * step for step in steps], rel=2e-2)


def test_data_of_a_training_stay_where_its_words_say(tmp_path: Path) -> None:
    """The folder of the data is given to a training on the experiment's own data, not over a file of other data."""
    places = Places(tmp_path, tmp_path, tmp_path / "here")
    for name, root in (("margin_cifar10_jpeg_nin_c0.01", "here/cifar10_jpeg.tar.gz"), ("standard_cifar10_nin", "here")):
        words = Fit(name, trainings()[name], 0, places).command()
        given = [words[i + 1] for i, word in enumerate(words) if word == "--data.init_args.root"]
        assert given == [str(tmp_path / root)]


def test_a_change_of_a_suite_that_a_measure_names_makes_it_anew(tmp_path: Path) -> None:
    plan = Plan(load("thesis"), Places(tmp_path, tmp_path), "cores", ["5.3"])
    evaluation = plan.evaluations[0]
    assert evaluation.content["suites"] == written(packaged("suites", "thesis_table5_3"))


def test_papers_travel_with_the_package() -> None:
    assert {f"{name}.yaml" for name in PAPERS} <= {path.name for path in (FOLDER / "papers").glob("*.yaml")}
