"""The audit attacks what classifier and detector hold together, and sees scores that gradients do not explain."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures.false_defenses import EPS, honest, images
from fixtures.false_families import FALSE_DETECTORS, HONEST_DETECTORS, Says, haze

from adversarial_lightning.attacks import PGD
from adversarial_lightning.detectors import Detector, DetectorGuardedModel
from adversarial_lightning.evaluation.audit.levels import LEVELS
from adversarial_lightning.evaluation.audit.questions import DETECTOR, MODEL
from adversarial_lightning.evaluation.audit.samples import AuditSamples, undisturbed
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel
from adversarial_lightning.evaluation.audit.untouched import Forgetful, Untouched

FEW = replace(LEVELS["quick"], steps=20, queries=60, imitation=60)


# detector -> checks that fail
CASES: dict[str, tuple[Callable[[], Detector], set[str]]] = {
    "honest": (HONEST_DETECTORS["distance"], set()),
    "honest haze": (lambda: Says(haze), set()),
    "counts off the grid": (lambda: FALSE_DETECTORS["counts values off the grid"][0]("linf"), {"C10", "D1", "D2"}),
    "not a number": (lambda: FALSE_DETECTORS["no number off the grid"][0]("linf"), {"C10", "D1", "D2"}),
    "long steps": (lambda: FALSE_DETECTORS["stepped distance"][0]("linf"), {"D1", "D2"}),
    "detached": (lambda: FALSE_DETECTORS["detached distance"][0]("linf"), {"C10", "D1", "D2"}),
}


def kept(values: dict[Any, Any]) -> Callable[..., Any]:
    """What `Inputs.once` does."""
    return lambda key, compute: values[key] if key in values else values.setdefault(key, compute())


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_detectors(case: str) -> None:
    """Samples are all right ones that the classifier alone does not hold at all."""
    make, expected = CASES[case]
    model = DetectorGuardedModel(honest("standard"), make())
    x, y = images("test")
    x, y = x[:64], y[:64]
    model.detector.theta = float(model.detector.score(images()[0]).quantile(0.95).nan_to_num(0.0))
    right = (model(x).argmax(1) == y) & ~(model.detector.score(x) > model.detector.theta)
    samples = AuditSamples(
        model, x[right], y[right], torch.arange(64)[right], 0, rows=64, untouched=Forgetful(Untouched(model))
    )
    claim = ThreatModel("linf", EPS, {"pgd": PGD(eps=EPS)}, 0.0, samples.index.numpy(), {"pgd": 0.0})
    audit_run: Any = SimpleNamespace(
        model=model, budget=FEW, required_adaptations={}, forgetful=None, group=lambda *_: samples, once=kept({})
    )
    questions = [q for q in (*MODEL, *DETECTOR) if q.key in ("C10 predicted", "D1", "D2")]
    with undisturbed(torch.device("cpu")):
        checks = [question.check(audit_run, claim) for question in questions]
    found = {check.id for check in checks if check.verdict == "failed"}
    assert found - ({"D2"} if case.startswith("honest") else set()) == expected, [check.sentence for check in checks]
