"""How many false defenses the audit finds, and how many honest models it blames.

    python tests/test_false_defenses.py [--only WORD ...] [--level quick] [--mnist A.ckpt B.ckpt --data-root DIR]

64 test images of 8x8 digits; false defenses (tests/fixtures/false_families.py) are evaluated by a suite that believes
them, honest models by a thorough one. `truth` is proved (tests/fixtures/exact.py) or what attacks leave that know the
defense, `suite` what the suite leaves, `printed` the number of the page, without the samples that the audit broke; with
a detector, flagged images count as defended, at a false positive rate of 5 %. Missed is a defense whose audit did not
fail and whose number lies more than 3 points above the truth; alarmed an honest model whose audit failed, or whose
number is not within 3 points above what is proved. Checkpoints given with --mnist are evaluated at linf 0.3 by a
thorough suite.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exact import Undecided, holds, proved_accuracy
from fixtures.false_defenses import EPS, SUITE
from fixtures.false_families import FALSE_CASES, HONEST_CASES, Case, examined, forget
from fixtures.proved_families import PROVED_FALSE, PROVED_HONEST
from torch import nn

from adversarial_lightning.attacks import Attack, scale_eps
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.datamodules import MNIST, Digits
from adversarial_lightning.defenses import required_adaptations
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.audit import Check, failed, untouched_copy
from adversarial_lightning.evaluation.audit.headline import summary
from adversarial_lightning.evaluation.audit.levels import LEVELS
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.campaign.identity import claim_folder, suite_part
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.outcomes.detection import calibration, score_images, threshold

FPR = 0.05
EVERY_FALSE = [*PROVED_FALSE, *FALSE_CASES]
EVERY_HONEST = [*PROVED_HONEST, *HONEST_CASES]


def judge(
    model: nn.Module, suite: Mapping[str, Attack], data: Any, n: int, level: Any, draws: int = 1
) -> tuple[dict[str, Any], dict[str, Any], list[Check]]:
    """The numbers of an evaluation, what its audit says, and its checks; the model was never asked before."""
    with tempfile.TemporaryDirectory() as name:
        folder, untouched, detects = Path(name), untouched_copy(model), hasattr(model, "detector")
        identity = claim_folder(folder, {"suite": suite_part(suite)})
        campaign = Campaign(suite, data, n, 0, folder, identity, draws=draws, scored=detects)
        if detects:
            measure = partial(score_images, model.detector, Digits(size=8, val_size=200).dataset("val"), 64, 0)
            about = {"detector": "", "aimed_fpr": FPR, "own_theta": None}
            model.detector.theta = threshold(calibration(folder, measure, about), FPR)
        run_campaign(campaign, model, batch_size=n)
        results = merge(campaign)
        audit_run = AuditRun(campaign, model, results, required_adaptations(model), level, 64, untouched=untouched)
        checks = audit_run.answers()
        return results, summary(audit_run, checks), checks


def suite_says(results: dict[str, Any]) -> float:
    """The share that the suite left robust; of a detector, robust or flagged."""
    case = results["worst_case"][0]
    levels = case.get("detection", {}).get("levels", ())
    return float(next((level["malade"]["robust"] for level in levels if level["fpr"] == FPR), case["robust_accuracy"]))


def printed(results: dict[str, Any], said: dict[str, Any]) -> float:
    """The share that the page prints: without what the audit broke; with a detector that is only told beside it."""
    detects = "detection" in results["worst_case"][0]
    return suite_says(results) if detects else float(said["claims"][0]["at_most"])


@contextmanager
def elsewhere() -> Iterator[None]:
    """Context with an empty working directory, in which a defense may keep files."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            forget()
            os.chdir(before)


def told(case: Case, level: Any = "quick") -> tuple[bool, str]:
    """Whether the page of a case is right, and its row of the table."""
    started = time.process_time()
    with elsewhere():
        model = case.make()
        results, said, checks = judge(model, case.suite, case.data(), 64, level, case.draws)
        shown, spent = printed(results, said), time.process_time() - started
        true = None if case.truth is None else case.truth(getattr(getattr(model, "detector", None), "theta", 0.0))
    right = true is None or -1e-9 <= shown - true <= 0.03
    fine = not failed(checks) and right if case.honest else bool(failed(checks)) or right
    ids = ", ".join(dict.fromkeys(check.id for check in failed(checks)))
    columns = results["clean_accuracy"], true, suite_says(results), shown
    cells = ["" if v is None else f"{100 * v:.1f}" for v in columns]
    cells[1] += " proved" if case.proved else ""
    numbers = " | ".join(cells)
    verdict = said["state"] + (f" ({ids})" if ids else "")
    wrong = "" if fine else ("**alarmed**" if case.honest else "**missed**")
    return fine, f"| {case.name} | {case.norm} | {numbers} | {verdict} | {wrong} | {spent:.1f} |"


QUICK = {"samples": 32, "steps": 20, "queries": 60, "points": 20, "imitation": 60, "excludes": 0.14}
SOME_FALSE = {
    ("no gradient", "l0"),
    ("memory of the class", "l2"),
    ("one-hot, small", "linf"),
    ("one-hot", "l1"),
    ("counts values off the grid", "linf"),
    ("remembers images", "l2"),
}
SOME_HONEST = {
    ("plain, small", "linf"),
    ("two classes", "linf"),
    ("cache and counter", "linf"),
    ("distance", "linf"),
    ("PGD-AT, l0", "l0"),
}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:the model seems to return probabilities")
@pytest.mark.parametrize(
    "case",
    [case for case in (*EVERY_FALSE, *EVERY_HONEST) if (case.name, case.norm) in SOME_FALSE | SOME_HONEST],
    ids=lambda case: f"{case.name}, {case.norm}",
)
def test_a_page_is_flagged_or_right(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, "quick", replace(LEVELS["quick"], **QUICK))
    fine, row = told(case)
    assert fine, row


def linear(*layers: tuple[list[list[float]], list[float]]) -> nn.Module:
    """Linear layers with ReLU between them, on images of one row."""
    parts: list[nn.Module] = [nn.Flatten()]
    for weight, bias in layers:
        layer = nn.Linear(len(weight[0]), len(weight))
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


# logits (x0 + 2 x1, 0.9): at (0.6, 0.4) the lead of class 0 is 0.5, in linf 0.5 / 3 away, in l1 0.5 / 2
PLANE = linear(([[1.0, 2.0], [0.0, 0.0]], [0.0, 0.9]))
# class 0 where |x0 - 0.5| + |x1 - 0.5| < 0.3: at the centre 0.15 away in linf, 0.3 in l1
DIAMOND = linear(
    ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [-0.5, 0.5, -0.5, 0.5]),
    ([[0.0] * 4, [1.0] * 4], [0.3, 0.0]),
)


@pytest.mark.parametrize(
    ("network", "point", "norm", "distance"),
    [
        (PLANE, (0.6, 0.4), "linf", 0.5 / 3),
        (PLANE, (0.6, 0.4), "l1", 0.25),
        (DIAMOND, (0.5, 0.5), "linf", 0.15),
        (DIAMOND, (0.5, 0.5), "l1", 0.3),
        (DIAMOND, (0.6, 0.5), "linf", 0.1),
        (DIAMOND, (0.6, 0.5), "l1", 0.2),
    ],
)
def test_the_exact_distance_is_found_from_both_sides(
    network: nn.Module, point: tuple[float, float], norm: str, distance: float
) -> None:
    x = torch.tensor(point).view(1, 1, 2)
    assert holds(network, x, 0, norm, 0.99 * distance) and not holds(network, x, 0, norm, 1.01 * distance)
    right = torch.zeros(1, dtype=torch.bool)
    assert proved_accuracy(network, x[None], torch.tensor([0]), norm, 0.99 * distance, right) == 1.0
    assert proved_accuracy(network, x[None], torch.tensor([0]), norm, 0.99 * distance, ~right) == 0.0


def test_what_rounding_would_decide_is_not_proved() -> None:
    """The solver finds a point with equal logits, which float32 gives to class 0."""
    same = linear(([[1.0, 0.0], [1.0, 0.0]], [0.0, 0.0]))
    with pytest.raises(Undecided):
        holds(same, torch.tensor([[[0.5, 0.5]]]), 0, "linf", 0.1)


def test_truths_are_of_the_samples_that_are_evaluated(tmp_path: Path) -> None:
    campaign = Campaign(SUITE, Digits(size=8).dataset("test"), 64, 0, tmp_path, "")
    x, y, _ = campaign.batch(campaign.samples)
    assert torch.equal(examined(64)[0], x) and torch.equal(examined(64)[1], y)


def test_the_table_is_large_enough() -> None:
    assert len(EVERY_FALSE) >= 60 and len(EVERY_HONEST) >= 20 and sum(case.proved for case in EVERY_FALSE) >= 6
    assert {case.norm for case in EVERY_FALSE} == {case.norm for case in EVERY_HONEST} == {"l0", "l1", "l2", "linf"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model seems to return probabilities")
def test_the_audit_finds_every_false_defense_and_blames_no_honest_model(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    assert f"missed: 0 of {len(EVERY_FALSE)} false defenses; alarmed: 0 of {len(EVERY_HONEST)} honest models" in said


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="words of which a row's name or norm begins with one")
    parser.add_argument("--level", choices=("brief", "quick", "full"), default="quick")
    parser.add_argument("--mnist", nargs="*", default=[], help="checkpoints")
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args(argv)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print("| model | norm | clean % | truth % | suite % | printed % | audit | | CPU s |\n" + 9 * "|---" + "|")
    counts = []
    for cases in (EVERY_FALSE, EVERY_HONEST):
        rows = [c for c in cases if not options.only or f"{c.name} {c.norm}".startswith(tuple(options.only))]
        wrong = 0
        for case in rows:
            fine, row = told(case, options.level)
            print(row, flush=True)
            wrong += not fine
        counts.append((wrong, len(rows)))
    for path in options.mnist:
        case = Case(Path(path).parts[-3], "linf", lambda path=path: load_network(path)[0], {})
        suite = {name: scale_eps(attack, 0.3 / EPS) for name, attack in SUITE.items()}
        results, said, checks = judge(
            case.make(), suite, MNIST(root=options.data_root).dataset("test"), 200, options.level
        )
        ids = ", ".join(dict.fromkeys(check.id for check in failed(checks)))
        clean, robust = 100 * results["clean_accuracy"], 100 * printed(results, said)
        print(f"| {case.name} | linf | {clean:.1f} | | | {robust:.1f} | {said['state']} ({ids}) | | |")
    (missed, false), (alarmed, honest) = counts
    print(f"\nmissed: {missed} of {false} false defenses; alarmed: {alarmed} of {honest} honest models")


if __name__ == "__main__":
    main()
