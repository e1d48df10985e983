"""Models that raise errors while they are evaluated: that is the finding, and there is a report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Brightness, campaign, save, trained
from torch import Tensor, nn

from adversarial_lightning.attacks import DDN, FGSM, PGD, Attack
from adversarial_lightning.cli import evaluate
from adversarial_lightning.detectors import DetectorGuardedModel
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation import run_campaign
from adversarial_lightning.evaluation.campaign.ledger import raised
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.outcomes.detection import calibration
from adversarial_lightning.evaluation.outcomes.model_error import raised_by

SUITE: dict[str, Attack] = {"fgsm": FGSM(eps=0.05), "pgd": PGD(eps=0.05, steps=3), "ddn": DDN(steps=3)}


class Faulty(nn.Module):
    """`trained`, but an error where `fault` of the images, the number of the call, and whether gradients are on."""

    def __init__(self, fault: Any) -> None:
        super().__init__()
        self.network, self.fault, self.calls = trained(), fault, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fault(x, self.calls, x.requires_grad):
            raise ArithmeticError("no more")
        logits: Tensor = self.network(x)
        return logits


def dark(x: Tensor, calls: int, gradients: bool) -> bool:
    """A property of an image: two of the forty digits are as dark as this, and others when attacked, and padding."""
    return bool((x.flatten(1).mean(1) < 0.2525).any())


def evaluated(fault: Any, folder: Path, batch_size: int = 8, **settings: Any) -> tuple[dict[str, Any], Any]:
    c = campaign(folder, 40, SUITE)
    run_campaign(c, Faulty(fault).eval(), batch_size=batch_size, **settings)
    return merge(c), c


# what raises an error -> attacks with samples that count as wrong, in the end
FAULTS: dict[str, tuple[Any, set[str]]] = {
    "in the tenth batch, once": (lambda x, calls, gradients: calls == 10, {"pgd"}),
    "from the tenth batch on": (lambda x, calls, gradients: calls >= 10, {"fgsm", "pgd", "ddn"}),
    "whenever gradients are asked for": (lambda x, calls, gradients: gradients, {"fgsm", "pgd", "ddn"}),
    "for some images": (dark, {"clean"}),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_model_that_raises_is_evaluated_to_the_end_and_never_robust_there(case: str, tmp_path: Path) -> None:
    fault, attacks = FAULTS[case]
    results, c = evaluated(fault, tmp_path)
    found = raised(tmp_path, identity="test")
    assert {name for name, *_ in found} >= attacks - {"pgd"} and {name for name, *_ in found} <= {"clean", *SUITE}
    assert {error for *_, error in found} == {"ArithmeticError: no more"}
    for name in ("clean", *SUITE):
        numbers = {number for attack, number, _ in found if attack == name}
        rows = c.table(c.runs(name)[0])
        of = [row in numbers for row in rows["index"].tolist()]
        assert (rows["adversarial"][of] == -1).all() and (rows["right_draws"][of] == 0).all()
        assert (rows["adversarial"][[not row for row in of]] >= 0).all()
        if name != "clean":
            (entry,) = [a for a in results["attacks"] if a["name"] == name]
            assert entry["raised"] == len(numbers) and entry["invalid"] == 0
    assert sum(entry["n"] for entry in results["raised"]) == len(found) > 0
    assert all(
        any(f"{entry['attack']}: the model raised an error on {entry['n']}" in note for note in results["warnings"])
        for entry in results["raised"]
    )


def test_the_samples_that_raise_are_the_same_for_every_batch_size(tmp_path: Path) -> None:
    expected = None
    for batch_size in (1, 7, 40):
        results, c = evaluated(dark, tmp_path / str(batch_size), batch_size)
        found = raised(c.folder, identity="test")
        assert sum(name == "clean" for name, *_ in found) == 2 and len(found) < 60
        numbers = {**results, "cost": None, "attacks": [{**a, "seconds": 0} for a in results["attacks"]]}
        accuracies = [a["robust_accuracy"] for a in numbers["attacks"]], found, numbers["clean_accuracy"]
        expected = expected or accuracies
        assert accuracies == expected


# what makes every image raise -> words that say so
BROKEN: dict[str, tuple[Any, str]] = {
    "always": (lambda x, calls, gradients: True, "before it had answered on any: ArithmeticError: no more"),
    "several images": (lambda x, calls, gradients: len(x) > 1, "does it fit the data"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_that_never_answers_stops_at_once(case: str, tmp_path: Path) -> None:
    fault, says = BROKEN[case]
    with pytest.raises(UserError) as error:
        evaluated(fault, tmp_path)
    assert says.lower() in str(error.value).lower() and "1 x 8 x 8" in str(error.value)
    assert "test_model_errors.py" in str(error.value) and isinstance(error.value.__cause__, ArithmeticError)
    assert not raised(tmp_path, identity="test")


def test_a_short_memory_and_a_user_error_stop_at_any_time(tmp_path: Path) -> None:
    def short(x: Tensor, calls: int, gradients: bool) -> bool:
        if calls > 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return False

    def misused(x: Tensor, calls: int, gradients: bool) -> bool:
        if calls > 7:
            raise UserError("set steps to 3")
        return False

    for fault, says in ((short, "smaller --batch_size than 8"), (misused, "set steps to 3")):
        with pytest.raises(UserError, match=says):
            evaluated(fault, tmp_path / says[:3])
        assert not raised(tmp_path / says[:3], identity="test")


def test_an_interruption_is_none_of_the_models_errors(tmp_path: Path) -> None:
    class Interrupted(Faulty):
        def forward(self, x: Tensor) -> Tensor:
            if self.calls == 7:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        run_campaign(campaign(tmp_path, 40, SUITE), Interrupted(lambda *_: False), batch_size=8)
    assert not raised(tmp_path, identity="test")


def test_a_resumed_run_whose_first_batch_raises_asks_what_was_answered_before(tmp_path: Path) -> None:
    """A kill just before the batch of a dark image; the same command goes on. A model that is dead now does not."""

    class Killed(Faulty):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise KeyboardInterrupt
            return super().forward(x)

    def fault(x: Tensor, calls: int, gradients: bool) -> bool:
        return gradients

    c = campaign(tmp_path, 40, {"fgsm": FGSM(eps=0.05)})
    with pytest.raises(KeyboardInterrupt):
        run_campaign(c, Killed(lambda *_: False), batch_size=8)
    with pytest.raises(UserError, match="under fgsm, before"):
        run_campaign(c, Faulty(lambda *_: True), batch_size=8)
    run_campaign(c, Faulty(fault), batch_size=8)
    assert merge(c)["attacks"][0]["robust_accuracy"] == 0.0


def test_an_error_of_a_backward_is_the_models_and_one_of_an_attack_is_not() -> None:
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise ArithmeticError("no gradient")

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Refuses.apply(x)

    model, x = Model(), torch.ones(2, 2, requires_grad=True)
    with pytest.raises(ArithmeticError) as error:
        model(x).sum().backward()
    assert raised_by(model, error.value)
    with pytest.raises(ZeroDivisionError) as other:
        model(x)
        1 / 0  # noqa: B018
    assert not raised_by(model, other.value)


def test_a_detector_defends_no_sample_on_which_the_model_raised(tmp_path: Path) -> None:
    """Nor where it says no number, which counts as flagged; the scores of these samples are no warning."""
    guarded = DetectorGuardedModel(Faulty(lambda x, calls, gradients: gradients), Brightness())
    c = replace(campaign(tmp_path, 20, {"fgsm": FGSM(eps=0.05)}), scored=True)
    calibration(tmp_path, lambda: np.linspace(0, 1, 50), {"detector": None, "aimed_fpr": 0.05})
    run_campaign(c, guarded.eval(), batch_size=8)
    results = merge(c)
    assert results["attacks"][0]["raised"] > 10
    wrong = 1 - results["clean_accuracy"]
    for level in results["worst_case"][0]["detection"]["levels"]:
        assert level["malade"]["robust"] <= wrong  # what is wrong without an attack is its own adversarial image
    assert not any("not finite" in note for note in results["warnings"])


MODULE = """
import torch
from adversarial_lightning.networks import MLP

class Tenth(MLP):
    calls = 0

    def forward(self, x):
        Tenth.calls += 1
        if Tenth.calls >= {since} and x.any():  # zeros are shown to see whether it fits the data
            raise ArithmeticError("no more")
        return super().forward(x)
"""


@pytest.mark.parametrize(("since", "status"), [(20, 4), (10**9, 0), (1, 2)])
def test_the_report_says_what_the_model_raised_and_the_status_is_4(
    since: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"raising_{since}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(since=since))
    monkeypatch.syspath_prepend(tmp_path)
    save(tmp_path / "a.ckpt")
    (tmp_path / "network.yaml").write_text(
        f"class_path: {name}.Tenth\ninit_args: {{num_classes: 10, features: 64, hidden: [32]}}\n"
    )
    (tmp_path / "suite.yaml").write_text("pgd: {class_path: PGD, init_args: {eps: 0.05, steps: 3}}\n")
    options = {"checkpoint": "a.ckpt", "suite": "suite.yaml", "network": "network.yaml", "output": "out"}
    argv = [f"--{option}={tmp_path / value}" for option, value in options.items()]
    argv += ["--limit=40", "--batch_size=8", "--accelerator=cpu", "--audit=none"]
    assert evaluate.main(argv) == status
    printed = capsys.readouterr()
    if status == 2:
        assert "the model raised an error on each of the first images" in printed.err
        assert not (tmp_path / "out/results.json").exists()
        return
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert bool(results["raised"]) is (status == 4)
    for text in (printed.out, (tmp_path / "out/report.md").read_text(), (tmp_path / "out/report.html").read_text()):
        assert ("ArithmeticError: no more" in text) is (status == 4)
        assert ("the model raised an error" in text) is (status == 4)
