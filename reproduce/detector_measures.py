"""Measures of ER-Classifier's Tables 5-8 and 11-14 (Li et al. 2021), and of the joint attack that the paper lacks."""

import argparse
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.statistics import wilson
from adversarial_lightning.evaluation.outcomes.subset import Samples
from adversarial_lightning.reproduce.detector_tables import COLUMNS, DETECTORS, SEED, Detectors, protocol, settings
from adversarial_lightning.reproduce.papers.measure import measured

ATTACKS = ("pgd", "fgsm", "cw", "cw_confident")  # a detector is trained on the first three
Numbers = dict[str, tuple[float | None, list[float] | None]]


def criteria(*, checkpoint: Path, data: str | None, n: int | None, output: Path, **changes: Any) -> dict[str, Any]:
    """Criteria of Table 4 of every detector that fits a checkpoint's network, under every attack.

    Of an ER-Classifier those of ER1 and ER2, of another network those of KD and LID, under keys such as ``ER1: pgd ->
    fgsm acc_com``: trained on the first attack, tested with the second, over all attacked images. A fifth of `n` test
    images (None: all) is set I, the others are set II. `data` is the folder of the data, `output` is not used;
    `changes` are settings of `detector_tables`, such as ``cw_steps``. A value is None where no image is left to make it
    of. Raises UserError for a setting that there is not.
    """
    fitting = _fitting(checkpoint)
    found, samples = protocol(checkpoint, fitting, _options(data, changes, test_limit=n, joint_trained_on=None))
    numbers: Numbers = {}
    for title, trained, tested, criterion in product(fitting, ATTACKS[:3], ATTACKS, COLUMNS):
        row = found[title]["rows"].get(f"{trained} -> {tested}", {})
        value = row.get(criterion)
        interval = None if value is None else wilson(value, row["of"][criterion])
        numbers[f"{title}: {trained} -> {tested} {criterion}"] = (value, interval)
    return measured(samples, numbers)


def joint(*, checkpoint: Path, data: str | None, n: int | None, output: Path, **changes: Any) -> dict[str, Any]:
    """Robust accuracy behind every detector that fits a checkpoint's network, of `n` images (None: 1,000) of set II.

    Under keys such as ``ER1: joint``: the attack knows the detector, which was fitted on PGD images of set I and flags
    5 % of the clean ones; ``ER1: pgd`` does not know it, ``ER1: joint_eps_0.5`` has a ball that holds every image.
    Arguments and errors as of `criteria`.
    """
    fitting, count = _fitting(checkpoint), n or 1000
    found, two = protocol(checkpoint, fitting, _options(data, changes, joint_images=count), attacks=("pgd",))
    numbers: Numbers = {}
    for title, attack in product(fitting, ("pgd", "joint", "joint_eps_0.5")):
        entry = found[title]["joint"][attack]
        numbers[f"{title}: {attack}"] = (entry["robust"], entry["interval"])
    return measured(Samples("random", SEED, min(count, two.n), two.n), numbers)


def _options(data: str | None, changes: Mapping[str, Any], **more: Any) -> argparse.Namespace:
    """The command line's defaults with `changes`."""
    options = settings().parse_args(["--output", "unused"])
    for name in changes:
        if name not in vars(options):
            raise UserError(f"the detectors have no setting {name!r} (known: {', '.join(sorted(vars(options)))})")
    vars(options).update(root=data, **{**changes, **more})
    return options


def _fitting(checkpoint: Path) -> Detectors:
    """Detectors by title that go with the network of a checkpoint."""
    return DETECTORS["er" if hasattr(load_network(checkpoint)[0], "encoder") else "undefended"]
