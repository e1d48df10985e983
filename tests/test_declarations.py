"""What classes declare: what a leaf must write, which values cannot be changed, what defenses say of themselves."""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from adversarial_lightning import attacks
from adversarial_lightning.attacks import PGD, Attack
from adversarial_lightning.checkpoints.spec import catalogue
from adversarial_lightning.defenses import JPEG, TVBregman, TVChambolle, Voting
from adversarial_lightning.evaluation.outcomes.outcome import Passes
from adversarial_lightning.evaluation.outcomes.types import RunCost
from adversarial_lightning.lightning_modules import TRADES, VAT, MarginMaximization
from adversarial_lightning.lightning_modules.critic_settings import AttackSettings, CriticSettings, Pretraining

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("attacks", "defenses", "detectors", "evaluation", "lightning_modules")


def classes() -> dict[str, type]:
    """The classes of the rooms by name."""
    found = {}
    for path in sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        name = ".".join(["adversarial_lightning", *path.relative_to(ROOT).with_suffix("").parts])
        module = importlib.import_module(name.removesuffix(".__init__"))
        found |= {c.__name__: c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == name}
    return found


CLASSES = classes()
ABSTRACT = {
    "Attack": {"perturb"},
    "Norm": {"distance", "project", "steepest", "random"},
    "Penalty": {"distance", "prox"},
    "Separable": {"shrink"},
    "Iterated": {"euclidean"},
    "PrimalDual": {"moves"},
    "Surrogate": {"network"},
    "Purifier": {"forward"},
    "TotalVariation": {"denoise"},
    "Detector": {"score"},
    "FittedDetector": {"fit_reference", "features"},
    "LossClassifier": {"losses"},
    "Schedule": {"factor"},
}


@pytest.mark.parametrize("name", ABSTRACT)
def test_what_a_leaf_must_write(name: str) -> None:
    own = {method for method, value in vars(CLASSES[name]).items() if getattr(value, "__isabstractmethod__", False)}
    assert own == ABSTRACT[name]


def test_the_table_holds_every_abstract_class() -> None:
    own = {
        name: [v for v in vars(c).values() if getattr(v, "__isabstractmethod__", False)] for name, c in CLASSES.items()
    }
    assert {name for name, methods in own.items() if methods} == set(ABSTRACT)


# Counters and runs in progress; attacks, settings, outcomes and reports are values: one that changes would leave its
# name, its digest and its place in a ledger behind.
CHANGING = {"AuditRun", "Evasion", "Inputs", "Passes", "Records", "RunCost", "SampleStatus", "Successes", "Worker"}


@pytest.mark.parametrize("name", sorted(name for name, cls in CLASSES.items() if dataclasses.is_dataclass(cls)))
def test_values_do_not_change(name: str) -> None:
    parameters = CLASSES[name].__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen == (name not in CHANGING)


# Whether gradients go through the purifier itself, and whether it draws: what an honest attack on it must do.
DECLARED = {
    **{name: (True, False) for name in ("MeanFilter", "Median", "Magnet")},
    **{name: (False, False) for name in ("JPEG", "BitDepth", "TVBregman", "TVChambolle")},
    "RandomQuantizer": (False, True),
    "RIDE": (False, True),
    **{name: (True, True) for name in ("Chain", "MALADE", "MALA")},
}


@pytest.mark.parametrize("name", DECLARED)
def test_defenses_say_what_an_attack_must_do(name: str) -> None:
    assert (CLASSES[name].differentiable, CLASSES[name].stochastic) == DECLARED[name]  # type: ignore[attr-defined]


def test_counters_start_at_nothing() -> None:
    assert RunCost("r", 0, 1) == RunCost("r", 0, 1, "", 0.0, False, 0, 0, None, False, "") and Passes() == Passes(0, 0)
    assert CLASSES["FittedDetector"].own_theta == 0.0  # type: ignore[attr-defined]  # odds of one half


NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
SMALLEST: dict[str, Callable[[], object]] = {
    "AttackSettings": lambda: AttackSettings(overshoot=0, steps=1),
    "CriticSettings": lambda: CriticSettings(gradient_penalty_weight=0, gradient_norm=0, steps=1),
    "Pretraining": lambda: Pretraining(epochs=0, decay=0),
    "VAT": lambda: VAT(NET, divergence_weight=0),
    "TRADES": lambda: TRADES(NET, beta=0),
    "MarginMaximization": lambda: MarginMaximization(NET, penalty=0),
    "TVBregman": lambda: TVBregman(steps=1),
    "TVChambolle": lambda: TVChambolle(steps=1),
    "Voting": lambda: Voting(NET, votes=1),
    "JPEG": lambda: (JPEG(1), JPEG(100)),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_settings_that_make_sense_are_taken(name: str) -> None:
    assert SMALLEST[name]()


# The smallest value of a setting; the next smaller one is refused. Attacks without a default get a part that is theirs.
LIMITS: dict[str, float] = {
    **{name: 1 for name in ("steps", "eot_samples", "restarts", "search_steps", "candidates", "starts", "probes")},
    **{
        name: 1
        for name in ("particles", "pixels", "generations", "deepfool_steps", "n", "n_targets", "lambda_", "votes")
    },
    **{name: 0 for name in ("eps", "overshoot", "kappa", "std", "beta", "detector_weight", "noise_scale", "start_std")},
    **{name: 0 for name in ("finetune", "runners_up", "spread", "momentum", "kernel_weight", "reconstruction_weight")},
    "population": 5,
    "density": 0,
}
OTHER_LIMITS = {("FAB", "search_steps"): 0, ("FAB", "beta"): None, ("BPDA", "steps"): 0}
PARTS: dict[str, dict[str, Any]] = {
    "Restarts": {"attack": PGD()},
    "Targeted": {"attack": PGD(targeted=True)},
    "LogitEOT": {"attack": PGD()},
    "Joint": {"attacks": [PGD()]},
    "BPDA": {"attack": PGD(), "backward": "chain"},
}
LIMITED = [
    (name, field.name, OTHER_LIMITS.get((name, field.name), LIMITS[field.name]))
    for name, cls in sorted((cls.__name__, cls) for cls in catalogue(attacks) if dataclasses.is_dataclass(cls))
    if issubclass(cls, Attack) and not name.startswith("Reference")
    for field in dataclasses.fields(cls)
    if field.name in LIMITS and (name in PARTS or field.default is not dataclasses.MISSING)
]


@pytest.mark.parametrize("name,field,limit", LIMITED, ids=[f"{name}-{field}" for name, field, _ in LIMITED])
def test_a_setting_of_an_attack_has_its_limit(name: str, field: str, limit: float | None) -> None:
    if limit is not None:
        assert getattr(CLASSES[name](**PARTS.get(name, {}), **{field: limit}), field) == limit
        with pytest.raises(ValueError, match=field):
            CLASSES[name](**PARTS.get(name, {}), **{field: limit - (1 if limit else 1e-9)})


OPEN = [  # settings that lie strictly between two values
    *(("Boundary", "sphere_step", 0, 1), ("Boundary", "source_step", 0, 1), ("CWLinf", "decrease", 0, 1)),
    *(("DDN", "gamma", 0, 1), ("FMN", "gamma", 0, 1), ("FMN", "gamma_final", 0, 1), ("FAB", "alpha_max", 0, 1)),
    *(("FAB", "beta", 0, 1), ("HighConfidence", "confidence", 0, 1), ("OnePixel", "differential", 0, 2)),
    *(("RayS", "tolerance", 0, 1), ("CW", "step_size", 0, math.inf), ("CW", "const", 0, math.inf)),
    *(("CWLinf", "step_size", 0, math.inf), ("DDN", "step_size", 0, math.inf), ("DDN", "init_norm", 0, math.inf)),
    *(("EAD", "step_size", 0, math.inf), ("FMN", "step_size", 0, math.inf), ("HopSkipJump", "gamma", 0, math.inf)),
    *(("DeepFool", "max_step", 0, math.inf), ("HighConfidence", "max_step", 0, math.inf)),
    ("Langevin", "step_size", 0, math.inf),
]


@pytest.mark.parametrize("name,field,low,high", OPEN, ids=[f"{name}-{field}" for name, field, *_ in OPEN])
def test_a_setting_of_an_attack_lies_between(name: str, field: str, low: float, high: float) -> None:
    for value in (low + 1e-6, min(high, 1e6) - 1e-6):
        assert getattr(CLASSES[name](**{field: value}), field) == value
    for value in (low, high):
        with pytest.raises(ValueError, match=field):
            CLASSES[name](**{field: value})
