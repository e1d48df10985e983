"""Attacks in bfloat16 or compiled: gradients stay float32, the judge exact, a weaker attack gets no headline."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save
from torch import Tensor, nn

from adversarial_lightning.attacks import PGD, Noise
from adversarial_lightning.cli import evaluate
from adversarial_lightning.evaluation.campaign.precision import AttackContext, low_precision
from adversarial_lightning.evaluation.outcomes.outcome import evaluate_batch


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]


def test_bf16_changes_the_forward_inside_the_context_only() -> None:
    model, x = small(), torch.rand(3, 1, 8, 8)
    exact, slope = gradient(model, x)
    with low_precision(model, "bf16")():
        rough, rough_slope = gradient(model, x)
    assert rough.dtype == rough_slope.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 and 0 < (rough_slope - slope).abs().max() < 0.05
    assert torch.equal(gradient(model, x)[0], exact) and "forward" not in vars(model)
    with low_precision(model)():
        assert torch.equal(gradient(model, x)[0], exact)
    with pytest.raises(RuntimeError), low_precision(model, "bf16")():
        raise RuntimeError
    assert "forward" not in vars(model)


def test_compile_is_asked_once_and_used_for_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compiler(forward: Any) -> Any:
        calls.append("compiled")
        return lambda x: calls.append("ran") or forward(x)

    monkeypatch.setattr(torch, "compile", compiler)
    model, x, y = small(), torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)
    context = low_precision(model, compiled=True)
    for _ in range(2):
        evaluate_batch(model, PGD(eps=0.1, steps=4), x, y, torch.arange(3), seed=0, name="pgd", attack_context=context)
    assert calls == ["compiled"] + ["ran"] * 8  # the verification runs the plain model


def test_results_are_judged_by_the_exact_model() -> None:
    """A forward that lies inside the attack changes no verdict about images that it leaves alone."""
    model, x = small(), torch.rand(16, 1, 8, 8)
    y = model(x).argmax(1)
    model.eval()
    context = low_precision(model, "bf16")
    outcomes, _ = evaluate_batch(
        model, PGD(eps=0.2, steps=20), x, y, torch.arange(16), seed=0, name="pgd", attack_context=context
    )
    z = PGD(eps=0.2, steps=20)
    with context():
        adversarial = z(model, x, y, Noise.keyed(0, torch.arange(16)).fork("attacker").fork("pgd").fork(0))
    assert [o.adversarial for o in outcomes] == model(adversarial).argmax(1).tolist()


def results(folder: Path, *more: str) -> dict[str, Any]:
    folder.mkdir()
    save(folder / "a.ckpt")
    (folder / "suite.yaml").write_text("pgd: {class_path: PGD, init_args: {eps: 0.05, steps: 10}}\n")
    given = {"checkpoint": folder / "a.ckpt", "suite": folder / "suite.yaml", "output": folder / "out", "limit": 60}
    argv = [f"--{name}={value}" for name, value in {**given, "accelerator": "cpu", "audit": "none"}.items()]
    assert evaluate.main([*argv, *more]) == 0
    return json.loads((folder / "out/results.json").read_text())


@pytest.mark.long
def test_a_headline_needs_the_precision_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = results(tmp_path / "honest", "--precision=bf16")
    case = honest["precision"]["cases"][0]
    assert case["passed"] and case["n"] == 60 and "refused" not in honest["worst_case"][0]
    assert case["low_precision"] == honest["worst_case"][0]["robust_accuracy"]
    assert "bf16, judged in float32" in (tmp_path / "honest/out/report.md").read_text()

    @contextmanager
    def around(model: nn.Module) -> Iterator[None]:
        seen = model.forward
        model.forward = lambda x: seen(0 * x)
        yield
        del model.forward

    def blind(model: nn.Module, *_: object) -> AttackContext:
        return partial(around, model)

    monkeypatch.setattr(evaluate, "low_precision", blind)
    weak = results(tmp_path / "weak", "--precision=bf16")
    case = weak["precision"]["cases"][0]
    assert not case["passed"] and case["low_precision"] > case["float32"] + 0.01
    assert "too weak" in weak["worst_case"][0]["refused"]
    assert "% accuracy under" not in (tmp_path / "weak/out/report.md").read_text().split("##")[0]
