"""The file of the ER-Classifier paper: its printed numbers, its tables and figures, and that all it names exists."""

from functools import cache
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from adversarial_lightning.attacks import Attack, expanded
from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.configs import FOLDER
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks import ERNet, SmallCNN
from adversarial_lightning.reproduce import detector_measures, intrinsic_dimension
from adversarial_lightning.reproduce.papers.paper import Paper, load, trainings
from adversarial_lightning.reproduce.papers.plan import Places, Plan, packaged
from adversarial_lightning.reproduce.papers.work import measure_named


@cache
def paper() -> Paper:
    return load("er_classifier")


# table, row, column, as printed in the paper's text
PRINTED = [
    ("1", "Madry's Adv, MNIST", "MNIST", "69.0"),
    ("1", "ER-Classifier, MNIST", "MNIST", "79.0"),
    ("1", "Madry's Adv, CIFAR10", "CIFAR10", "35.6"),
    ("1", "ER-Classifier, STL10", "STL10", "25.3"),
    ("1", "Madry's Adv, Tiny", "Tiny", "9.70"),
    ("2", "ER-Classifier", "l2 3.92", "99.1"),
    ("2", "Defense-GAN", "l2 3.92, 30,000 steps", "55.0"),
    ("3", "ER-Classifier, MNIST", "MNIST", "75.8"),
    ("3", "ER-Classifier, Tiny", "Tiny", "21.7"),
    ("5", "KD, MNIST", "MNIST PGD ACC-NADV", "90.71"),
    ("5", "ER1, MNIST", "MNIST PGD ACC-COM", "63.81"),
    ("5", "LID, CIFAR10", "CIFAR10 C&W ACC-COM", "82.03"),
    ("6", "ER2, MNIST", "MNIST PGD ACC-COM", "41.87"),
    ("6", "LID, CIFAR10", "CIFAR10 C&W ACC-NADV", "46.06"),
    ("7", "ER1, MNIST", "MNIST FGSM ACC-NADV", "77.98"),
    ("7", "KD, MNIST", "MNIST C&W ACC-COM", "10.05"),
    ("8", "ER2, CIFAR10", "CIFAR10 PGD ACC-COM", "68.18"),
    ("10", "MNIST", "MNIST", "13"),
    ("10", "Tiny", "Tiny", "19"),
    ("11", "ER2, CIFAR10", "CIFAR10 C&W κ ACC-COM", "16.00"),
    ("12", "LID, CIFAR10", "CIFAR10 C&W κ ACC-COM", "36.00"),
    ("13", "ER1, MNIST", "MNIST C&W κ ACC-COM", "11.00"),
    ("14", "ER⁻, MNIST", "MNIST ER1 PGD ACC-COM", "1.11"),
    ("14", "ER⁻, MNIST", "MNIST ER2 C&W ACC-COM", "9.75"),
    ("14", "ER, CIFAR10", "CIFAR10 ER2 FGSM ACC-NADV", "97.69"),
]


@pytest.mark.parametrize(("table", "row", "column", "printed"), PRINTED)
def test_printed_number(table: str, row: str, column: str, printed: str) -> None:
    assert str(paper().tables[table].rows[row].printed[column]) == printed


def test_every_table_and_figure_is_listed() -> None:
    """Each has columns, or says why it cannot be made; so has each row that no training of CPU cores stands behind."""
    assert list(paper().tables) == [str(i) for i in range(1, 17)] + [f"Fig. {i}" for i in range(1, 13)]
    for key, table in paper().tables.items():
        assert table.reason or (table.columns and table.rows), key
        for name, row in table.rows.items():
            assert row.cores or row.reason, (key, name)


COUNTS = {"5": 8 * 6, "6": 8 * 4, "7": 8 * 4, "8": 8 * 4, "11": 8 * 2, "12": 8 * 2, "13": 8 * 2, "14": 4 * 12}


@pytest.mark.parametrize("key", COUNTS)
def test_every_number_of_a_detector_table_is_there(key: str) -> None:
    assert sum(len(row.printed) for row in paper().tables[key].rows.values()) == COUNTS[key]


def test_what_the_file_names_exists() -> None:
    """Experiments, suites with their entries, and measures with their keys' attacks."""
    used = {t for table in paper().tables.values() for row in table.rows.values() for t in (row.paper, row.cores) if t}
    for name in used:
        if experiment := trainings()[name].experiment:
            assert packaged("experiments", experiment).is_file()
    columns = {(c.suite, c.entry, c.measure) for table in paper().tables.values() for c in table.columns.values()}
    for suite, entry, measure in columns:
        if measure:
            assert callable(measure_named(measure))
        else:
            assert suite and entry in {"clean", *entries(suite)}, (suite, entry)


@cache
def entries(suite: str) -> list[str]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--suite", type=dict[str, Attack], sub_configs=True)
    file = FOLDER / "suites" / f"{suite}.yaml"
    return list(expanded(parser.instantiate(parser.parse_args(["--suite", str(file)])).suite))


# Training, and tables and figures whose cells at scale cores stand on it
RUNS = [
    ("no_training", {"10"}),
    ("madry_er_mnist_cores", {"1", "Fig. 3"}),
    ("er_w32_mnist_cores", {"1", "2", "3", "5", "6", "7", "8", "11", "12", "13", "14", "Fig. 3"}),
    ("madry_w32_mnist_cores", {"1", "3", "14", "Fig. 3"}),
    ("er_minus_w32_mnist_cores", {"Fig. 3", "Fig. 4"}),
    ("er_minus_joint_w32_mnist_cores", {"Fig. 4"}),
    ("ecla_w32_mnist_cores", {"14", "Fig. 4"}),
    ("vaecla_w32_mnist_cores", {"Fig. 4"}),
    ("er_minus_k13_w32_mnist_cores", {"Fig. 7"}),
    ("madry_0.2_w32_mnist_cores", {"Fig. 8"}),
    ("er_minus_cauchy_w32_mnist_cores", {"Fig. 9"}),
]


@pytest.mark.parametrize(("training", "tables"), RUNS)
def test_a_run_for_cores_is_reached(training: str, tables: set[str], tmp_path: Path) -> None:
    cells = Plan(paper(), Places(tmp_path, tmp_path), "cores").cells
    assert {cell.table for cell in cells if cell.evaluations[0].fit.name == training} == tables


def test_rows_of_one_network_share_one_evaluation_of_its_detectors(tmp_path: Path) -> None:
    plan = Plan(paper(), Places(tmp_path, tmp_path), "cores", ["5", "6", "7", "8", "11", "12", "13"])
    made = [e.title for e in plan.evaluations if e.column.measure == "detector_measures.criteria"]
    assert len(made) == 2 and len(plan.cells) > 50


def test_madry_and_er_classifier_of_width_32_are_trained_alike() -> None:
    one, other = trainings()["er_w32_mnist_cores"], trainings()["madry_w32_mnist_cores"]
    assert (one.leaves_out, one.explains) == (other.leaves_out, other.explains)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_interval_of_a_mean_over_samples() -> None:
    """Student's, by hand: 1, 2, 3 have mean 2, standard deviation 1, and t(0.975, 2) = 4.303."""
    assert intrinsic_dimension.over_samples([1.0, 2.0, 3.0]) == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3)
    assert intrinsic_dimension.over_samples([1.0]) is None


def test_intrinsic_dimension_of_a_data_set() -> None:
    found = intrinsic_dimension.measure(data=None, n=200, data_set="digits", seeds=(0, 1, 2))
    number = found["numbers"]["dimension"]
    low, high = number["interval"]
    assert 3 < low < number["value"] < high < 20 and found["samples"]["n"] == 200
    with pytest.raises(UserError, match="there is no packaged configuration 'digit'"):
        intrinsic_dimension.measure(data=None, n=200, data_set="digit")
    with pytest.raises(UserError, match="MNIST is missing"):
        intrinsic_dimension.measure(data="/nowhere", n=200, data_set="mnist")


def checkpoint(network: torch.nn.Module, path: Path) -> Path:
    content = {"network": describe(network), "data": describe(Digits(test_limit=150))}
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": weights, "catalogue": content}, path)
    return path


CUT = {"train_limit": 600, "steps": 2, "cw_steps": 5, "cw_consts": 2, "confident": 30}


@pytest.mark.parametrize(
    ("network", "titles"),
    [(lambda: ERNet(width=2, embedding=2), ("ER1", "ER2")), (lambda: SmallCNN(), ("KD", "LID"))],
    ids=["er", "undefended"],
)
def test_criteria_of_the_detectors_of_a_network(network: object, titles: tuple[str, str], tmp_path: Path) -> None:
    """Keys for all attacks; every rate of all attacked images, with an interval of its own."""
    torch.manual_seed(0)
    path = checkpoint(network(), tmp_path / "a.ckpt")  # type: ignore[operator]
    found = detector_measures.criteria(checkpoint=path, data=None, n=150, output=tmp_path, **CUT)
    numbers = found["numbers"]
    assert len(numbers) == 2 * 3 * 4 * 4 and {key.partition(":")[0] for key in numbers} == set(titles)
    for title in titles:
        of = {c: numbers[f"{title}: fgsm -> pgd acc_{c}"] for c in ("adv", "cla", "com", "nadv")}
        adv, cla, com = (of[c]["value"] for c in ("adv", "cla", "com"))
        assert com == pytest.approx(adv + (1 - adv) * (cla or 0))
        for entry in of.values():
            assert entry["value"] is None or entry["interval"][0] <= entry["value"] <= entry["interval"][1]
    assert found["samples"]["n"] == 120 and found["samples"]["of"] >= 150
    with pytest.raises(UserError, match="no setting 'cw_step'"):
        detector_measures.criteria(checkpoint=path, data=None, n=150, output=tmp_path, cw_step=3)


def test_robust_accuracy_behind_the_detectors_of_a_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = checkpoint(ERNet(width=2, embedding=2), tmp_path / "a.ckpt")
    few = {**CUT, "joint_steps": 2, "joint_restarts": 1, "joint_targets": 1, "weights": [1], "test_limit": 60}
    found = detector_measures.joint(checkpoint=path, data=None, n=4, output=tmp_path, **few)
    assert found["numbers"]["ER2: joint"]["value"] <= found["numbers"]["ER2: pgd"]["value"]
    assert set(found["numbers"]) == {f"{t}: {a}" for t in ("ER1", "ER2") for a in ("pgd", "joint", "joint_eps_0.5")}
    assert found["samples"] == {"chosen": "random", "seed": 0, "n": 4, "of": 48}
