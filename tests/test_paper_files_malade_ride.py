"""The papers MALADE and RIDE as files: all tables and figures, numbers as printed, and that what they name is there."""

from functools import cache

import pytest

from adversarial_lightning import attacks
from adversarial_lightning.attacks import Attack, threat
from adversarial_lightning.cli import evaluate
from adversarial_lightning.reproduce.papers.paper import load, trainings
from adversarial_lightning.reproduce.papers.plan import packaged
from adversarial_lightning.reproduce.papers.work import measure_named

# From the papers' texts.
TABLES = {
    "malade": [
        *("1", "2", "Fig. 1", "Fig. 2", "Fig. 3", "Fig. 4", "Fig. 5", "Fig. 6a", "Fig. 6b", "Fig. 6c", "Fig. 6d"),
        *("Fig. 7", *(f"Fig. C.{k}" for k in range(8, 19))),
    ],
    "ride": [
        *map(str, range(1, 7)),
        *("Fig. 1", "Fig. 2", "Fig. 3", "Fig. 4", "Fig. 5a", "Fig. 5b", "Fig. 5c", "Fig. 5d"),
        *(f"Fig. {k}" for k in range(6, 13)),
        *("Theorem 1", "Footnote 1", "U-Net"),
    ],
}
PRINTED = [
    ("malade", "2", "CNN", "L∞ 0.3: FGSM", "11.77"),
    ("malade", "2", "Madry", "L∞ 0.3: PGD", "93.71"),
    ("malade", "2", "CNN + MALADE", "L∞ 0.3: PGD", "94.22"),
    ("malade", "2", "CNN + MALADE", "L∞ 0.3: BPDAwEOT", "82.48"),
    ("malade", "2", "CNN + MALADE", "L∞ 0.3: R+PGD", "92.65"),
    ("malade", "2", "Madry + MALADE", "L∞ 0.4: BPDAwEOT", "80.65"),
    ("malade", "2", "Madry", "L∞ 0.4: PGD", "0.02"),
    ("malade", "2", "CNN", "L2 4: FGM", "30.79"),
    ("malade", "2", "Madry", "L2 4: CW", "85.53"),
    ("malade", "2", "Madry + MALADE", "EAD", "30.59"),
    ("malade", "2", "CNN", "SaltnPepper", "36.49"),
    ("malade", "2", "Madry", "Boundary Attack", "1.10"),
    ("malade", "2", "CNN + MALADE", "Transfer Attack", "76.87"),
    ("malade", "2, 1,000 steps", "Madry + MALADE", "L∞ 0.3: MIM", "94.53"),
    ("malade", "Fig. C.14", "MNIST test images", "ε L1", "98.02"),
    ("malade", "Fig. C.14", "MNIST test images", "ε L2", "9.70"),
    ("ride", "1", "No Defender", "No Attack", "77.5"),
    ("ride", "1", "No Defender", "FGSM", "7.5"),
    ("ride", "1", "TVM", "PGD", "30.1"),
    ("ride", "1", "Median 7", "FGSM", "30.6"),
    ("ride", "1", "Median 9", "PGD", "25.1"),
    ("ride", "1", "RIDE", "FGSM, 30 images", "51.7"),
    ("ride", "1", "RIDE", "PGD, 30 images", "47.6"),
    ("ride", "1", "RIDE", "No Attack, 30 images", "61.75"),
    ("ride", "2", "RIDE, MNIST", "MNIST, linf 0.1", "98"),
    ("ride", "2", "RIDE, CIFAR", "CIFAR, linf 0.05", "76"),
    ("ride", "2", "RIDE, ImageNet", "ImageNet, linf 0.05", "43"),
    ("ride", "2", "Madry et al. 2018, CIFAR, linf 0.031", "CIFAR, linf 0.05", "47"),
    ("ride", "4", "EfficientNet-Lite0", "FGSM, 5", "28.1"),
    ("ride", "4", "EfficientNet-Lite0", "PGD, 11", "22.8"),
    ("ride", "5", "EfficientNet-Lite0", "PGD, 0.5", "21.8"),
    ("ride", "6", "EfficientNet-Lite0", "FGSM, 0.75", "32.1"),
]
# The least of the rows of each block of MALADE's Table 2, which the paper prints below it.
WORST = {
    "L∞ 0.3: worst case": (
        "L∞ 0.3: FGSM",
        "L∞ 0.3: PGD",
        "L∞ 0.3: R+PGD",
        "L∞ 0.3: BPDA",
        "L∞ 0.3: BPDAwEOT",
        "L∞ 0.3: MIM",
    ),
    "L∞ 0.4: worst case": ("L∞ 0.4: PGD", "L∞ 0.4: BPDA", "L∞ 0.4: BPDAwEOT"),
    "black box: worst case": ("SaltnPepper", "Boundary Attack", "Transfer Attack"),
}


@cache
def entries(suite: str) -> dict[str, Attack]:
    parser = evaluate.options()
    words = ["--suite", str(packaged("suites", suite)), "--output", "x"]
    return attacks.expanded(parser.instantiate(parser.parse_args(words)).suite)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_and_figure_is_there(name: str) -> None:
    found = load(name).tables
    assert [key for key in TABLES[name] if key not in found] == []
    for table in found.values():  # each is made, drawn, or says why not
        assert table.rows or table.figure or table.reason


@pytest.mark.parametrize("paper,table,row,column,number", PRINTED)
def test_numbers_are_as_printed(paper: str, table: str, row: str, column: str, number: str) -> None:
    assert str(load(paper).tables[table].rows[row].printed[column]) == number


def test_malades_worst_cases_are_the_least_of_their_blocks() -> None:
    for row in load("malade").tables["2"].rows.values():
        for worst, block in WORST.items():
            if worst in row.printed:
                assert float(row.printed[worst]) == min(float(row.printed[c]) for c in block if c in row.printed)


@pytest.mark.parametrize("name", TABLES)
def test_what_columns_and_rows_name_is_there(name: str) -> None:
    for key, table in load(name).tables.items():
        for column in table.columns.values():
            if column.measure:
                assert callable(measure_named(column.measure)) and column.key
            elif column.entry.startswith("worst "):
                radii = {(norm, f"{eps:g}") for norm, eps in map(threat, entries(column.suite or "").values()) if eps}
                assert tuple(column.entry.split()[1:]) in radii, (key, column.entry)
            elif column.entry != "clean":
                assert column.entry in entries(column.suite or ""), (key, column.entry)
        for row in table.rows.values():
            if row.defenses:
                assert packaged("defenses", row.defenses)
            assert row.paper or row.cores or row.reason


def test_trainings_name_experiments_and_what_they_need() -> None:
    found = trainings()
    for name, training in found.items():
        if training.experiment:
            assert packaged("experiments", training.experiment)
        words = " ".join([*training.arguments, *training.model])
        for needed in training.needs:
            assert "{" + needed + "}" in words, name
        for other in found:  # and nothing else stands there in braces
            assert other in training.needs or "{" + other + "}" not in words, name
