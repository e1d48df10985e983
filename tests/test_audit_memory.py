"""The audit sees models that remember, and models that look at clock, files, environment or the one who asks."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.false_defenses import EPS, honest, images
from fixtures.false_families import (
    Cached,
    Remembering,
    RememberingInFile,
    RememberingTogether,
    Wrapped,
    asked_by_an_attack,
    forget,
)
from helpers import save
from torch import Tensor, nn

from adversarial_lightning.attacks import PGD
from adversarial_lightning.cli import evaluate
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.audit.untouched import Forgetful, Untouched, untouched_copy
from adversarial_lightning.evaluation.campaign.identity import claim_folder, suite_part
from adversarial_lightning.evaluation.campaign.merge import merge

SEEN = ["before"]
COUNT = 0


class Keeps(nn.Module):
    """Remembers in every place of Python where a model may: itself, its buffer, its class, its module."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.own = nn.Parameter(torch.ones(())), {"asked": 0}
        self.register_buffer("buffer", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        global COUNT, LATER
        told = torch.tensor([self.own["asked"], float(self.buffer), Keeps.count, COUNT, len(SEEN) - 1])
        late = float(globals().get("LATER", 0))
        self.own["asked"] += 1
        self.buffer += 1
        Keeps.count += 1
        COUNT += 1
        LATER = late + 1
        SEEN.append("again")
        return torch.cat([told, torch.tensor([late])]) * self.weight + 0 * x.sum()


def test_copies_of_an_untouched_model_remember_nothing() -> None:
    model = Keeps()
    forgetful = Forgetful(Untouched(model))
    x = torch.zeros(1, 1)
    assert [int(model(x).sum()) for _ in range(3)] == [0, 6, 12]
    assert [int(forgetful(x).sum()) for _ in range(2)] == [0, 0]
    assert int(model(x).sum()) == 18  # and the model remembers what it did before
    forgetful(x).sum().backward()
    assert forgetful.untouched.model.weight.grad is not None and model.weight.grad is None


def cooled(answer: Callable[[nn.Module, Tensor], bool]) -> Callable[[], nn.Module]:
    """A model whose logits are smaller where `answer` says so."""
    return lambda: Wrapped(honest("standard"), lambda net, x: net(x) * (0.5 if answer(net, x) else 1.0))


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.lock = honest("standard"), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


# model -> checks that fail, among those of memory
MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "honest": (lambda: honest("standard"), set()),
    "a cache and a counter": (lambda: Cached(honest("standard")), set()),
    "remembers": (lambda: Remembering(honest("standard"), "linf"), {"M1", "M2", "M3"}),
    "remembers in its class": (lambda: RememberingTogether(honest("standard"), "linf"), {"M1", "M2", "M3"}),
    "remembers in a file": (lambda: RememberingInFile(honest("standard"), "linf"), {"M4"}),
    "sees who asks": (cooled(lambda net, x: asked_by_an_attack()), {"M1"}),
    "wall clock": (cooled(lambda net, x: time.time() > 1.5e9), {"M4"}),
    "local time": (cooled(lambda net, x: time.localtime().tm_hour < 11), {"M4"}),
    "environment": (cooled(lambda net, x: "DEFENDED" in os.environ), {"M4"}),
    "process": (cooled(lambda net, x: os.getpid() == 1), {"M4"}),
    "its own file": (cooled(lambda net, x: not Path("pyproject.toml").exists()), {"M4"}),
}


def checks_of_memory(model: nn.Module, folder: Path, fresh: bool = True) -> dict[str, str]:
    """Verdicts of the four checks by id."""
    suite = {"pgd": PGD(eps=EPS, steps=30, loss="margin")}
    untouched = untouched_copy(model) if fresh else None
    campaign = Campaign(
        suite, Digits(size=8).dataset("test"), 64, 0, folder, claim_folder(folder, {"suite": suite_part(suite)})
    )
    run_campaign(campaign, model, batch_size=64)
    audit_run = AuditRun(campaign, model, merge(campaign), {}, "quick", 64, untouched=untouched)
    checks = audit_run.checks()
    return {key.split()[0]: checks[key]().verdict for key in ("M1", "M2", "M3 linf 0.2", "M4")}


@pytest.mark.parametrize("case", MODELS)
def test_what_an_answer_depends_on(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, expected = MODELS[case]
    monkeypatch.setenv("DEFENDED", "1")
    if case == "remembers in a file":
        monkeypatch.chdir(tmp_path)
    forget()
    found = checks_of_memory(make(), tmp_path / "campaign")
    assert {key for key, verdict in found.items() if verdict == "failed"} == expected, found
    forget()


def test_a_model_that_cannot_be_copied_shows_nothing(tmp_path: Path) -> None:
    found = checks_of_memory(Uncopyable(), tmp_path)
    assert {found[key] for key in ("M1", "M2", "M4")} == {"not shown"}


def test_what_was_changed_to_ask_elsewhere_is_put_back(tmp_path: Path) -> None:
    before = time.time, time.localtime, dict(os.environ), os.getcwd(), os.getpid
    checks_of_memory(honest("standard"), tmp_path)
    assert (time.time, time.localtime, dict(os.environ), os.getcwd(), os.getpid) == before


def test_a_copy_is_taken_when_the_audit_begins_where_there_is_none(tmp_path: Path) -> None:
    found = checks_of_memory(honest("standard"), tmp_path, fresh=False)
    assert {found[key] for key in ("M1", "M2", "M4")} == {"passed"}
    assert len(images("test")[0]) > 64


@pytest.mark.long
def test_the_program_copies_the_model_before_its_first_forward(tmp_path: Path) -> None:
    """A copy that was made later would remember the clean images, and answer perturbed ones as them."""
    before = signal.getsignal(signal.SIGTERM)
    save(tmp_path / "a.ckpt")
    (tmp_path / "suite.yaml").write_text("pgd: {class_path: PGD, init_args: {eps: 0.2, steps: 30}}")
    remembering = "{class_path: fixtures.false_families.Remembering, init_args: {norm: linf}}"
    (tmp_path / "defenses.yaml").write_text(f"- {remembering}")
    words = {"checkpoint": "a.ckpt", "suite": "suite.yaml", "defenses": "defenses.yaml", "output": "out"}
    argv = [f"--{option}={tmp_path / value}" for option, value in words.items()]
    assert evaluate.main([*argv, "--limit=40", "--accelerator=cpu", "--audit=brief"]) == 0
    signal.signal(signal.SIGTERM, before)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (case,) = results["worst_case"]
    assert case["robust_accuracy"] > 0.7 and case["at_most"] < 0.3
    assert {"M1", "M2", "M3"} <= {c["id"] for c in results["audit"]["checks"] if c["verdict"] == "failed"}
