"""One table of all attacks, and what each must do; the strongest test is a victim with a known optimum."""

import inspect
import itertools
import math
import warnings
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import test_autoattack
import torch
from torch import nn
from victims import BatchNormNet, Linear, at_distance, fewest

from adversarial_lightning import attacks
from adversarial_lightning.attacks import (
    APGD,
    BPDA,
    CW,
    DAA,
    DDN,
    EAD,
    FAB,
    FGSM,
    FMN,
    JSMA,
    PDGD,
    PDPGD,
    PGD,
    Attack,
    AutoAttack,
    Boundary,
    CWLinf,
    DeepFool,
    DetectorAwareAPGD,
    DetectorAwarePGD,
    FeatureAdversary,
    GaussianNoise,
    GrayBox,
    HighConfidence,
    HopSkipJump,
    Joint,
    Langevin,
    LogitEOT,
    Noise,
    OnePixel,
    RayS,
    ReconstructionPGD,
    Restarts,
    SaltAndPepper,
    SaltAndPepperSearch,
    SparseFool,
    Square,
    Surrogate,
    Targeted,
    Transfer,
    Within,
    WorstOf,
    scale_eps,
    threat,
)
from adversarial_lightning.attacks.core.base import Attack as AttackBase
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, ce, dlr, margin
from adversarial_lightning.attacks.core.norms import NORMS, distances
from adversarial_lightning.attacks.core.prox import GroupL0Penalty, QuasinormPenalty
from adversarial_lightning.attacks.core.prox_iterative import TotalVariation
from adversarial_lightning.attacks.reference import (
    ReferenceALMA,
    ReferenceAutoAttack,
    ReferenceBrendelBethge,
    ReferencePointwise,
    ReferenceSigmaZero,
)
from adversarial_lightning.attacks.transfer import CheckpointSurrogate

BALL = [
    FGSM(norm="linf", eps=0.1),
    FGSM(norm="l2", eps=0.1),
    PGD(norm="linf", eps=0.1, steps=20),
    PGD(norm="l2", eps=0.1, steps=20),
    PGD(norm="l1", eps=0.1, steps=20),
    PGD(norm="linf", eps=0.1, steps=10, loss="margin"),
    PGD(norm="l2", eps=0.1, steps=10, loss="dlr", random_start=False),
    PGD(norm="linf", eps=0.1, steps=10, momentum=1.0, random_start=False),
    PGD(norm="l2", eps=0.1, steps=10, momentum=1.0, random_start=False),
    Langevin(norm="linf", eps=0.1, steps=20, step_size=0.02),
    Langevin(norm="linf", eps=0.1, steps=20, step_size=0.02, project="last"),
    Langevin(norm="l2", eps=0.1, steps=20, step_size=0.02, start="uniform", pull=0.01),
    Restarts(PGD(eps=0.1, steps=10), 2),
    WorstOf([FGSM(eps=0.1), PGD(eps=0.1, steps=10)]),
    APGD(norm="linf", eps=0.1, steps=30),
    APGD(norm="l2", eps=0.1, steps=30),
    APGD(norm="l1", eps=0.1, steps=100),
    APGD(norm="linf", eps=0.1, steps=20, loss="margin", random_start=False),
    Square(norm="linf", eps=0.1, queries=800),
    DAA(norm="linf", eps=0.1, steps=20, particles=3),
    DAA(norm="l2", eps=0.1, steps=20, particles=3),
    LogitEOT(PGD(norm="l2", eps=0.1, steps=20), 2),
]
# Minimum-norm attacks, and how much longer than the optimum of a linear victim their result may be.
MINIMUM: list[tuple[Attack, float]] = [
    (DDN(steps=100), 1.02),
    (FMN(norm="linf", steps=50), 1.02),
    (FMN(norm="l2", steps=50), 1.02),
    (FMN(norm="l1", steps=50), 1.02),
    (FMN(norm="l0", steps=60), 1.25),
    (DeepFool(norm="l2", overshoot=0.01), 1.02),
    (DeepFool(norm="linf", overshoot=0.01), 1.02),
    (CW(steps=80, search_steps=5, step_size=0.02, const=0.1), 1.02),
    (CWLinf(steps=40, const=0.02, max_const=2.0, decrease=0.98), 1.02),
    (EAD(rule="l1", steps=100, search_steps=8, step_size=0.005, beta=0.005), 1.05),
    (JSMA(direction="both", gamma=1.0), 1.25),
    (SparseFool(lambda_=1.0, overshoot=0.01), 1.05),
    (HighConfidence(confidence=0.5, overshoot=0.01), 1.02),
    (FAB(norm="linf", steps=15), 1.02),
    (FAB(norm="l2", steps=15), 1.02),
    (FAB(norm="l1", steps=15), 1.02),
    (PDGD(steps=150, finetune=50), 1.02),
    (PDPGD(norm="linf", steps=150, finetune=100), 1.02),
    (PDPGD(norm="l2", steps=150, finetune=100), 1.02),
    (PDPGD(norm="l1", steps=150, finetune=100), 1.02),
    (PDPGD(norm="l0", steps=200, restarts=3), 1.25),
    (RayS(queries=500), 1.02),
    (HopSkipJump(norm="l2", queries=1000, probes=50), 1.25),
    (HopSkipJump(norm="linf", queries=1000, probes=50), 1.25),
    (Boundary(queries=500), 1.25),
    (SaltAndPepperSearch(queries=300, steps=10), 2.0),
    (OnePixel(pixels=16, population=30, generations=20), 16.0),  # its budget is a number of pixels, not a length
    (Within(FMN(norm="l2", steps=50), 1.0), 1.02),
    (Restarts(FMN(norm="l2", steps=50), 2), 1.02),
]
CORRUPTIONS = [GaussianNoise(0.2), SaltAndPepper(0.3)]
ALL = BALL + CORRUPTIONS + [attack for attack, _ in MINIMUM]
SHAPES = [(1, 8, 8), (40,)]


class Spoiler(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.flatten(1)[:, 0, None, None, None] > 0.5, torch.nan * x, 0.9 * x)


class Holed(nn.Module):
    """Four classes; all logits are NaN where the first pixel is bright, and one is infinite where the second is.

    So is what its purifier makes of a first pixel. It does not accept images that are no numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 4)).double()
        for p in self.net.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64)
        self.purifier, self.classifier = Spoiler(), self.net
        self.detector = SimpleNamespace(score=lambda x: self(x)[:, 0], theta=10.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.isfinite().all()
        logits, first, second = self.net(x), *x.flatten(1)[:, :2].T
        spoiled = torch.where((second > 0.5)[:, None], logits * torch.tensor([1.0, torch.inf, 1.0, 1.0]), logits)
        return torch.where((first > 0.5)[:, None], logits / 0 - logits / 0, spoiled)


@dataclass(frozen=True)
class Own(Surrogate):
    """The model itself as what the attacker has."""

    def network(self) -> nn.Module:
        return Holed()


# Tested as attacks by themselves: they need a guide image, a purifier, a detector, a surrogate, or many classes.
SPECIAL: list[Attack] = [
    FeatureAdversary(eps=0.1, steps=3),
    ReconstructionPGD("l2", eps=0.1, steps=3),
    DetectorAwareAPGD(eps=0.1, steps=3),
    DetectorAwarePGD(eps=0.1, steps=3),
    Joint([PGD(eps=0.1, steps=3), DetectorAwarePGD(eps=0.1, steps=3, targeted=True)], restarts=2),
    Transfer(PGD(eps=0.1, steps=3), Own()),
    BPDA(PGD(eps=0.1, steps=3)),
    GrayBox(PGD("l2", eps=0.1, steps=3)),
    Targeted(PGD(eps=0.1, steps=3, targeted=True)),
    Targeted(FAB(steps=3, targeted=True)),
    AutoAttack(eps=0.1),
    AutoAttack("plus", "l2", eps=0.3),
]
REFERENCE = [
    *(ReferenceBrendelBethge(), ReferencePointwise(), ReferenceALMA(), ReferenceSigmaZero(), ReferenceAutoAttack()),
]


def ids(table: list[Attack]) -> list[str]:
    return [f"{type(a).__name__}-{threat(a)[0]}-{i}" for i, a in enumerate(table)]


def test_the_table_holds_every_attack_of_the_catalogue() -> None:
    catalogue = {c for c in vars(attacks).values() if isinstance(c, type) and issubclass(c, Attack) and c is not Attack}
    combinations = {c for c in catalogue if inspect.isabstract(c)}
    assert {type(a) for a in ALL + SPECIAL} == catalogue - combinations - {attacks.Sweep}  # its own: test_sweep.py


@pytest.mark.long
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("attack", BALL, ids=ids(BALL))
def test_finds_the_optimum_of_a_linear_victim(
    attack: Attack, shape: tuple[int, ...], batch: int, targeted: bool
) -> None:
    """An adversarial point exists in the ball by 3 %, or is missing by 3 %."""
    if targeted:
        attack = targeted_form(attack)
    model = Linear(shape)
    norm, eps = threat(attack)
    assert norm is not None and eps is not None
    for distance, found in ((eps / 1.03, True), (eps * 1.03, False)):
        x, y = at_distance(model, norm, distance, batch)
        assert (model(x).argmax(1) == y).all()
        z = attack(model, x, 1 - y if targeted else y, Noise.keyed(0, torch.arange(batch)))
        assert ((model(z).argmax(1) != y) == found).all()
        assert (NORMS[norm].distance(z - x) <= eps * (1 + 1e-6) + 6e-8).all()


def targeted_form(attack: Attack) -> Attack:
    """The same attack with `targeted` set, inside combinations too."""
    parts = {f.name: getattr(attack, f.name) for f in fields(attack)}  # type: ignore[arg-type]
    changes: dict[str, object] = {}
    for name, value in parts.items():
        if isinstance(value, Attack):
            changes[name] = targeted_form(value)
        elif isinstance(value, list) and value and isinstance(value[0], Attack):
            changes[name] = [targeted_form(a) for a in value]
        elif name == "targeted":
            changes[name] = True
    return replace(attack, **changes)  # type: ignore[type-var,arg-type]


@pytest.mark.long
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("attack,tolerance", MINIMUM, ids=ids([a for a, _ in MINIMUM]))
def test_minimum_norm_is_near_the_optimum(
    attack: Attack, tolerance: float, shape: tuple[int, ...], batch: int, targeted: bool
) -> None:
    if targeted:
        attack = targeted_form(attack)
        if attack in [a for a, _ in MINIMUM]:
            pytest.skip("this attack has no targeted form")
    model, norm = Linear(shape), str(threat(attack)[0])
    x, y = at_distance(model, "l2" if norm == "l0" else norm, 0.1, batch)
    z = attack(model, x, 1 - y if targeted else y, Noise.keyed(0, torch.arange(batch)))
    optimum = fewest(model, x) if norm == "l0" else torch.full((batch,), 0.1)
    assert (model(z).argmax(1) != y).all()
    length = distances(z - x)[norm]
    assert (length <= optimum * tolerance + (norm == "l0")).all(), length / optimum
    assert (length >= optimum * (1 - 1e-4)).all()
    # What is adversarial already is returned as it is, and so is what cannot be made so.
    assert torch.equal(attack(model, x, y if targeted else 1 - y, Noise.keyed(0, torch.arange(batch))), x)


@pytest.mark.long
@pytest.mark.parametrize("attack", ALL, ids=ids(ALL))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_looks_like_the_input(attack: Attack, dtype: torch.dtype) -> None:
    model = BatchNormNet().to(dtype)
    x, y = torch.rand(6, 1, 8, 8, dtype=dtype).round(decimals=1), torch.arange(6) % 3
    before = x.clone()
    z = attack(model, x, y)
    assert z.shape == x.shape and z.dtype == dtype and not z.requires_grad
    assert z.min() >= 0 and z.max() <= 1
    assert torch.equal(x, before)
    assert not torch.equal(z, x)
    norm, eps = threat(attack)
    if norm is not None and eps is not None:
        assert (NORMS[norm].distance(z - x) <= eps * (1 + 1e-6) + 6e-8).all()


@pytest.mark.long
@pytest.mark.parametrize("attack", BALL, ids=ids(BALL))
def test_radius_zero_is_the_identity(attack: Attack) -> None:
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    assert torch.equal(scale_eps(attack, 0.0)(BatchNormNet(), x, y), x)


@pytest.mark.long
@pytest.mark.parametrize("attack", ALL, ids=ids(ALL))
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_leaves_everything_as_it_was(attack: Attack, fails: bool, context: type) -> None:
    model = BatchNormNet()
    model.train()
    model.layers[1].eval()  # frozen on purpose
    model.layers[0].weight.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    buffers = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    frozen = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    noise = Noise.keyed(0, torch.arange(4))
    calls = []

    def sometimes_raise(*_: object) -> None:
        calls.append(1)
        if fails:
            raise RuntimeError("planted")

    handle = model.register_forward_hook(sometimes_raise)
    with context():
        x, y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 3
        if fails and not isinstance(attack, GaussianNoise | SaltAndPepper):
            with pytest.raises(RuntimeError, match="planted"):
                attack(model, x, y, noise)
        else:
            attack(model, x, y, noise)
    handle.remove()
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert frozen == [p.requires_grad for p in model.parameters()]
    assert all((p.grad == 3).all() for p in model.parameters())
    assert all(torch.equal(v, buffers[k]) for k, v in model.state_dict().items())


@pytest.mark.long
@pytest.mark.parametrize("attack", ALL, ids=ids(ALL))
def test_a_row_does_not_depend_on_its_batch(attack: Attack) -> None:
    model = BatchNormNet().double()
    x, y, index = torch.rand(7, 1, 8, 8, dtype=torch.float64), torch.arange(7) % 3, torch.arange(10, 17)
    whole = attack(model, x, y, Noise.keyed(5, index))
    for rows in (torch.tensor([2]), torch.tensor([6, 0, 3])):
        part = attack(model, x[rows], y[rows], Noise.keyed(5, index[rows]))
        assert torch.allclose(part, whole[rows], atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_strength_grows_with_steps_and_restarts(norm: str) -> None:
    """Loss of the last iterate, on a victim with curvature: more steps and more restarts never hurt (within 1 %)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 3, bias=False))
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64) % 3
    noise = Noise.keyed(0, torch.arange(64))
    eps = {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm]

    def loss(attack: Attack) -> float:
        return ce(net(attack(net, x, y, noise)), y).mean().item()

    values = [loss(PGD(norm=norm, eps=eps, steps=steps, random_start=False)) for steps in (1, 3, 10, 30)]  # type: ignore[arg-type]
    assert all(later >= earlier * 0.99 for earlier, later in itertools.pairwise(values)), values
    assert values[-1] > ce(net(x), y).mean().item() + 0.01
    few = PGD(norm=norm, eps=eps, steps=2, step_size=eps / 4)  # type: ignore[arg-type]
    margins = [margin(net(Restarts(few, n)(net, x, y, noise)), y) for n in (1, 3)]
    assert (margins[1] >= margins[0]).all() and (margins[1] > margins[0]).any()


def test_worst_of_takes_the_strongest_for_each_row() -> None:
    net, x, y = BatchNormNet(), torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    net.eval()
    parts = [FGSM(eps=0.1), PGD(eps=0.1, steps=1, loss="margin")]
    noise = Noise.keyed(0, torch.arange(16))
    best = margin(net(WorstOf(list(parts))(net, x, y, noise)), y)
    each = [margin(net(a(net, x, y, noise.fork(i))), y) for i, a in enumerate(parts)]
    assert torch.allclose(best, torch.maximum(*each), atol=1e-6)


def test_eot_averages_gradients_of_a_stochastic_model() -> None:
    """On a model whose gradient is right only on average, one draw misleads PGD and many do not."""

    class Jitter(nn.Module):
        stochastic, noise = True, None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + 20 * self.noise.normal(x))  # the gradient has the right mean and mostly the wrong sign

    inner = Linear((30,))
    x, y = at_distance(inner, "l2", 0.05, 8)
    model = nn.Sequential(Jitter(), inner)
    noise = Noise.keyed(0, torch.arange(8))
    few = PGD(norm="l2", eps=0.1, steps=3, loss="margin", random_start=False)
    gain = [margin(inner(a(model, x, y, noise)), y).mean() for a in (few, replace(few, eot_samples=300))]
    assert gain[1] > gain[0] + 0.05


# --- models that are not what they should be -------------------------------------------------------------------------


def brief(attack: Attack) -> Attack:
    """The same with fewer steps and queries, for what must hold at any length."""
    most = {"steps": 5, "queries": 60, "search_steps": 2, "population": 10, "generations": 2, "deepfool_steps": 3}
    changes = {name: min(getattr(attack, name), value) for name, value in most.items() if hasattr(attack, name)}
    return replace(attack, **changes)  # type: ignore[type-var]


WHOLE = [brief(attack) for attack in ALL] + SPECIAL


@pytest.mark.parametrize("attack", WHOLE, ids=ids(WHOLE))
def test_logits_that_are_no_numbers_neither_crash_nor_spread(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 1 and 3 break the model: what comes back is finite, in the box and ball, and other rows do not notice."""
    test_autoattack.short_autoattack(monkeypatch)
    model = Holed()
    x = 0.2 + 0.6 * torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[..., 0, :2] = 0.1
    y = model(x).argmax(1)
    x[1, 0, 0, 0] = x[3, 0, 0, 1] = 0.9
    assert (~model(x).isfinite().all(1)).tolist() == [False, True, False, True, False]
    z = attack(model, x, y, Noise.keyed(0, torch.arange(5)))
    assert z.isfinite().all() and z.min() >= 0 and z.max() <= 1
    rows = torch.tensor([0, 2, 4])
    assert torch.allclose(attack(model, x[rows], y[rows], Noise.keyed(0, rows)), z[rows], atol=1e-9)
    norm, eps = threat(attack)
    if eps is not None:
        assert (NORMS[str(norm)].distance(z - x) <= eps * (1 + 1e-6) + 6e-8).all()
    if attack.kind == "minimum-norm":  # what is no number fools nobody
        assert ((z == x).flatten(1).all(1) | model(z).isfinite().all(1)).all()


@pytest.mark.parametrize("attack", [PGD(eps=0.3), APGD(eps=0.3), WorstOf([FGSM(eps=0.3), FGSM(eps=0.01)])])
def test_where_the_model_breaks_is_returned_rather_than_where_it_stands(attack: Attack) -> None:
    """Evaluation counts such a point against the model: an attack must not hide it."""

    class Cliff(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            s = x.flatten(1).sum(1)
            return torch.stack([100 - s, torch.where(s > 5, torch.nan, s), s - 9], 1)

    x, y = torch.full((2, 9), 0.5), torch.zeros(2, dtype=torch.long)
    assert Cliff()(attack(Cliff(), x, y)).isnan().any(1).all()


@pytest.mark.parametrize("attack", WHOLE, ids=ids(WHOLE))
def test_probabilities_are_warned_of(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    test_autoattack.short_autoattack(monkeypatch)
    victim = Holed().net
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, noise = victim(x).argmax(1), Noise.keyed(0, torch.arange(3))

    class Ends(nn.Sequential):
        purifier, detector = nn.Identity(), SimpleNamespace(score=lambda x: x.flatten(1).sum(1), theta=1.0)
        classifier = property(lambda self: nn.Sequential(*self))

    monkeypatch.setattr(Own, "network", lambda _: Ends(victim, nn.Softmax(1)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        attack(Ends(victim, nn.Softmax(1)), x, y, noise)
        expected = attack.kind != "corruption"
        assert bool(seen) == expected and all("log_softmax" in str(w.message) for w in seen)
        if not isinstance(attack, Targeted | AutoAttack | Joint):  # these call others
            assert len(seen) == expected
    monkeypatch.setattr(Own, "network", lambda _: Ends(victim, nn.LogSoftmax(1)))
    attack(Ends(victim, nn.LogSoftmax(1)), x, y, noise)  # a warning would be an error


def test_logits_that_happen_to_sum_to_one_are_logits() -> None:
    class Affine(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            s = x.flatten(1).sum(1)
            return torch.stack([s, 1 - s], 1)

    PGD(steps=1)(Affine(), torch.ones(3, 4), torch.tensor([0, 1, 0]))


@pytest.mark.parametrize(
    "output,y,says",
    [
        (lambda x: x.flatten(1)[:, :3], [0, 3], "0 .. 3 do not fit a model with 3 outputs"),
        (lambda x: x.flatten(1)[:, :3], [-1, 2], "-1 .. 2 do not fit"),
        (lambda x: x.flatten(1)[:, 0], [0, 1], r"returned \(2,\)"),
        (lambda x: x.flatten(1)[:, :1], [0, 0], r"returned \(2, 1\)"),
        (lambda x: (x, x), [0, 1], "returned a tuple"),
    ],
)
def test_what_does_not_fit_the_model_is_named(output: Any, y: list[int], says: str) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return output(x)

    model = Model()
    with pytest.raises(ValueError, match=says):
        PGD(steps=1)(model, torch.rand(2, 1, 4, 4), torch.tensor(y))
    assert not model._forward_hooks


# --- norms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point(norm: str) -> None:
    """Only the nearest point of the ball meets <d - Pd, v - Pd> <= 0 for all v in the ball."""
    n, eps = NORMS[norm], 0.7
    d = torch.randn(20, 6, dtype=torch.float64)
    p = n.project(d, eps)
    assert (n.distance(p) <= eps + 1e-12).all()
    inside = n.distance(d) <= eps
    assert torch.allclose(p[inside], d[inside])
    for seed in range(50):
        v = n.random(d, eps, Noise.keyed(seed, torch.arange(20)))
        assert (n.distance(v) <= eps + 1e-9).all()
        v = v * (eps / n.distance(v))[:, None]  # on the sphere
        assert (((d - p) * (v - p)).sum(1) <= 1e-9).all()
    assert not n.project(d, 0.0).any()


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_step_has_length_one_and_the_dual_norm_as_gain(norm: str) -> None:
    g, x = torch.randn(9, 40, dtype=torch.float64), torch.full((9, 40), 0.5, dtype=torch.float64)
    u = NORMS[norm].steepest(g, x)
    dual = {"linf": g.abs().sum(1), "l2": g.norm(dim=1), "l1": g.abs().amax(1)}[norm]
    assert torch.allclose(NORMS[norm].distance(u), torch.ones(9, dtype=torch.float64))
    assert torch.allclose((u * g).sum(1), dual)
    zero = NORMS[norm].steepest(torch.zeros_like(g), x)
    assert zero.isfinite().all() and not zero.any()
    tiny = NORMS[norm].steepest(g.float() * 1e-30, x.float())
    assert torch.allclose(tiny, u.float(), atol=1e-3)


def test_sparse_l1_steps_do_not_push_against_the_box() -> None:
    x = torch.tensor([[1.0, 0.5, 0.0]])
    assert NORMS["l1"].steepest(torch.tensor([[3.0, 1.0, -2.0]]), x).tolist() == [[0.0, 1.0, 0.0]]


def test_distances() -> None:
    d = torch.tensor([[0.0, 3.0, -4.0], [0.0, 0.0, 0.0]])
    assert {k: v.tolist() for k, v in distances(d).items()} == {
        "l0": [2, 0],
        "l1": [7, 0],
        "l2": [5, 0],
        "linf": [4, 0],
    }


# --- objectives ------------------------------------------------------------------------------------------------------


def test_objectives_by_hand() -> None:
    logits, y = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 4.0, 1.0]]), torch.tensor([0, 1])
    assert margin(logits, y).tolist() == [-2.0, 2.0]
    assert torch.allclose(dlr(logits, y), torch.tensor([-2 / 3, 2 / 3]))
    probabilities = logits.softmax(1)
    assert torch.allclose(ce(logits, y), -probabilities[[0, 1], y].log())
    soft = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    assert torch.allclose(OBJECTIVES["kl"](logits, soft), (soft * (soft.log() - probabilities.log())).sum(1), atol=1e-6)
    assert torch.allclose(OBJECTIVES["kl"](logits, probabilities), torch.zeros(2), atol=1e-6)
    with pytest.raises(ValueError, match="3 classes"):
        dlr(logits[:, :2], y)
    with pytest.raises(ValueError, match="target probabilities"):
        OBJECTIVES["kl"](logits, y)


# --- corruptions and the sampler -------------------------------------------------------------------------------------


def test_corruptions_have_the_stated_size() -> None:
    x, y = torch.full((200, 3, 20, 20), 0.5), torch.zeros(200, dtype=torch.long)
    z = GaussianNoise(0.1)(nn.Identity(), x, y)
    assert abs((z - x).std() - 0.1) < 1e-3
    z = SaltAndPepper(0.25)(nn.Identity(), x, y)
    changed = z != x
    assert abs(changed.float().mean() - 0.25) < 5e-3 and abs((z == 1).float().mean() - 0.125) < 5e-3
    assert (changed[:, 0] == changed[:, 1]).all() and z[changed].unique().tolist() == [0.0, 1.0]


def test_noiseless_sampler_is_pgd_element_for_element() -> None:
    net, x, y = BatchNormNet(), torch.rand(5, 1, 8, 8), torch.arange(5) % 3
    for norm, eps in (("linf", 0.1), ("l2", 0.5)):
        a = Langevin(norm=norm, eps=eps, steps=7, step_size=0.04, noise_scale=0, start="zero")  # type: ignore[arg-type]
        b = PGD(norm=norm, eps=eps, steps=7, step_size=0.04, random_start=False)  # type: ignore[arg-type]
        assert torch.equal(a(net, x, y), b(net, x, y))


@pytest.mark.parametrize("coupled", [False, True])
def test_sampler_pull_shrinks_by_its_share(coupled: bool) -> None:
    """Zero gradient, no noise: each step leaves (1 - pull) of the displacement (of section 8, test 7)."""
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    s = Langevin(norm="l2", step_size=0.25, pull=0.2, coupled=coupled, noise_scale=0, project="never")
    z = s.step(x + 0.1, torch.zeros_like(x), x, Noise.keyed(0, torch.arange(2)), last=False)
    assert torch.allclose(z - x, torch.full_like(x, 0.1 * (1 - (0.05 if coupled else 0.2))))


def test_sampler_noise_has_the_stated_size_and_its_own_stream() -> None:
    x = torch.full((50, 1, 28, 28), 0.5)
    s = Langevin(step_size=0.02, noise_scale=0.6, project="never")
    z = s.step(x, torch.zeros_like(x), x, Noise.keyed(0, torch.arange(50)), last=False)
    assert abs((z - x).std() - 0.12) < 1e-3  # sqrt(2 * 0.02) * 0.6
    again = s.step(x, torch.zeros_like(x), x, Noise.keyed(0, torch.arange(50)), last=False)
    assert torch.equal(z, again)


def test_sampler_projects_the_whole_displacement_on_both_sides() -> None:
    """Not the last increment (the paper's Eq. 14), and not z < -r to +r (its P as printed)."""
    model, x, y = Linear((20,)), torch.full((3, 20), 0.5), torch.tensor([0, 1, 0])
    for project in ("last", "every"):
        z = Langevin(eps=0.1, steps=30, step_size=0.05, project=project)(model, x, y)  # type: ignore[arg-type]
        assert ((z - x).abs() <= 0.1 + 1e-6).all()
        assert (z - x).min() < -0.09 and (z - x).max() > 0.09
    walk, noise = Langevin(eps=0.1, steps=30, step_size=0.05, project="never"), Noise.keyed(0, torch.arange(len(x)))
    free = walk.perturb(model, x, y, noise)  # called as an attack it would be brought back into the ball
    assert (free - x).abs().max() > 0.3


def test_sampler_l2_displacement_obeys_its_bound() -> None:
    model, x, y = Linear((60,)), torch.full((4, 60), 0.5), torch.tensor([0, 1, 0, 1])
    step, pull, steps, r0 = 0.05, 0.1, 25, 0.3
    walk = Langevin(norm="l2", eps=r0, steps=steps, step_size=step, pull=pull, noise_scale=0, project="never")
    z = walk.perturb(model, x, y, Noise.keyed(0, torch.arange(4)))  # called as an attack it would end in the ball
    bound = step / pull * (1 - (1 - pull) ** steps) + (1 - pull) ** steps * r0
    assert ((z - x).norm(dim=1) <= bound + 1e-5).all() and ((z - x).norm(dim=1) > 0.8 * bound).all()


@pytest.mark.parametrize("start,largest", [("edge", 0.1), ("uniform", 0.1), ("zero", 0.0)])
def test_sampler_starts(start: str, largest: float) -> None:
    x = torch.full((4, 1, 8, 8), 0.5)
    noise = Noise.keyed(0, torch.arange(4))
    d = Langevin(eps=0.1, start=start).begin(x, noise) - x  # type: ignore[arg-type]
    assert d.abs().max() <= 0.1 + 1e-6
    if start == "edge":
        assert torch.allclose(d.abs(), torch.full_like(d, 0.1)) and d.min() < 0 < d.max()
        sphere = Langevin(norm="l2", eps=0.5).begin(x, noise) - x
        assert torch.allclose(sphere.flatten(1).norm(dim=1), torch.full((4,), 0.5))
    if start == "zero":
        assert not d.any()
    spread = Langevin(start="gaussian", start_std=0.05).begin(x, noise) - x
    assert abs(spread.std() - 0.05) < 0.01


# --- bad input -------------------------------------------------------------------------------------------------------


ONE_OF_EACH = {type(a): a for a in [*ALL, *SPECIAL, *REFERENCE]}
MAY_BE = {("FAB", "search_steps", 0), ("PDGD", "finetune", 0), ("PDGD", "runners_up", 0)}
MAY_BE |= {("PDPGD", "finetune", 0), ("PDPGD", "runners_up", 0)}
MAY_BE |= {
    (name, "theta", value) for name in ("DetectorAwareAPGD", "DetectorAwarePGD", "Joint") for value in (-1.0, math.inf)
}


@pytest.mark.parametrize("cls", ONE_OF_EACH, ids=lambda c: c.__name__)
def test_no_setting_takes_what_it_cannot_mean(cls: type) -> None:
    """No unknown name (a norm that the attack does not have), no count below 1, no length below 0, infinite or NaN."""
    attack, hints = ONE_OF_EACH[cls], get_type_hints(cls)
    for field in fields(cls):
        hint = str(hints[field.name])
        values: list[Any] = []
        if "Literal" in hint:
            values = ["l7"]
        elif "int" in hint:
            values = [0, -1]
        elif "float" in hint or "Radius" in hint:
            values = [math.nan, -1.0, math.inf]
        for value in values:
            if (cls.__name__, field.name, value) in MAY_BE:
                replace(attack, **{field.name: value})
                continue
            with pytest.raises(ValueError, match=rf"\b{field.name.rstrip('_')}") as error:
                replace(attack, **{field.name: value})
            assert len(str(error.value)) < 160


@pytest.mark.parametrize(
    "make,says",
    [
        (lambda: PGD(norm="l0"), "norm of PGD must be linf, l2 or l1, not 'l0'"),
        (lambda: DDN(norm="linf"), "norm of DDN must be l2, not 'linf'"),
        (lambda: QuasinormPenalty("3/4"), "q of QuasinormPenalty must be 2/3 or 1/2"),
        (lambda: GroupL0Penalty("sum"), "rule"),
        (lambda: TotalVariation(iterations=0), "iterations"),
        (lambda: Within(FMN(norm="l0"), 2.5), "whole number of values"),
        (lambda: scale_eps(Within(FMN(norm="l0"), 5), 0.5), "whole number of values"),
        (lambda: Within(PGD(), 0.1), "has its own eps"),
        (lambda: Langevin(pull=1.5), "pull"),
        (lambda: Langevin(pull=3.0, coupled=True, step_size=0.5), r"step_size \* pull"),
        (lambda: SaltAndPepper(1.5), "density"),
        (lambda: APGD(rho=1.5), "rho"),
        (lambda: Square(p_init=2.0), "p_init"),
        (lambda: JSMA(theta=1.5), "theta"),
        (lambda: JSMA(gamma=1.1), "gamma"),
        (lambda: CWLinf(max_const=1e-9), "max_const"),
        (lambda: SparseFool(lambda_=0.5), "lambda_"),
        (lambda: OnePixel(population=4), "population"),
        *((lambda c=c: c(queries=1), "queries") for c in (RayS, Boundary, HopSkipJump, SaltAndPepperSearch)),
        (lambda: RayS(queries=9, votes=5), "queries"),
        (lambda: AutoAttack("plus", "l1"), "plus"),
        (lambda: WorstOf([]), "at least one attack"),
        (lambda: WorstOf([PGD(), DDN()]), "one kind only"),
        (lambda: WorstOf([PGD(), PGD(targeted=True)]), "one of the two only"),
        (lambda: Targeted(PGD()), "targeted"),
        (lambda: LogitEOT(DDN()), "budget attack"),
        (lambda: Transfer(RayS(), Own()), "budget attack"),
        (lambda: Transfer(PGD(), CheckpointSurrogate("nowhere.ckpt")), r"no file 'nowhere\.ckpt'"),
        (lambda: PDPGD(runners_up=2, targeted=True), "runners_up"),
        (lambda: FeatureAdversary(targeted=True), "targeted needs guides"),
        (lambda: FeatureAdversary(random_start=False), "random_start"),
        (lambda: FeatureAdversary(guides="/no/such/file"), "guides"),
        (lambda: AutoAttack()(Holed(), torch.rand(2, 1, 6, 6).double(), torch.full((2, 4), 1 / 4)), "labels"),
    ],
)
def test_bad_settings_are_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    "x,says",
    [
        (torch.full((2, 1, 8, 8), 1.5), r"\[0, 1\]"),
        (torch.full((2, 1, 8, 8), -0.1), r"\[0, 1\]"),
        (torch.full((2, 1, 8, 8), float("nan")), r"\[0, 1\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "floats"),
        (torch.zeros(3, 1, 8, 8), "labels"),
    ],
)
def test_bad_images_are_refused(x: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PGD()(BatchNormNet(), x, torch.tensor([0, 1]))


def test_parts_say_what_a_combination_is() -> None:
    aimed, square = PGD(targeted=True), Square(queries=5)
    assert [a.targeted for a in (Restarts(aimed), WorstOf([aimed]), LogitEOT(aimed), Transfer(aimed, Own()))] == [
        True
    ] * 4
    assert not Targeted(aimed).targeted and not Restarts(Targeted(aimed)).targeted  # given labels, as all others are
    assert [a.knowledge for a in (PGD(), square, RayS(), Transfer(PGD(), Own()), GaussianNoise())] == [
        *("white-box", "scores", "decisions", "surrogate", "none"),
    ]
    assert Restarts(square).knowledge == "scores" and WorstOf([square, PGD()]).knowledge == "white-box"
    assert Within(RayS(), 0.1).knowledge == "decisions" and Restarts(Transfer(PGD(), Own())).knowledge == "surrogate"
    kinds = [a.kind for a in (Targeted(FAB(targeted=True)), Targeted(aimed), Within(DDN(), 1), LogitEOT(PGD()))]
    assert kinds == ["minimum-norm", "budget", "minimum-norm", "budget"]


@pytest.mark.parametrize("attack", WHOLE, ids=ids(WHOLE))
def test_attacks_use_no_more_knowledge_than_they_declare(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are refused to black-box attacks, scores to those by decisions, and the model to the others."""
    test_autoattack.short_autoattack(monkeypatch)
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = Holed().net(x).argmax(1)
    asked = []

    class Fence(Holed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(x.requires_grad)
            logits: torch.Tensor = self.net(x)
            return logits.argsort(1).argsort(1).double() if attack.knowledge == "decisions" else logits

    z = attack(Fence(), x, y, Noise.keyed(0, torch.arange(3)))
    assert any(asked) == (attack.knowledge == "white-box")
    assert bool(asked) == (attack.knowledge not in ("none", "surrogate"))
    if attack.knowledge == "decisions":
        assert torch.equal(z, attack(Holed().net, x, y, Noise.keyed(0, torch.arange(3))))


def test_attacks_are_frozen_values() -> None:
    assert not isinstance(AttackBase, type(None)) and PGD() == PGD() and hash(PGD()) == hash(PGD())
    for attack in ALL:
        with pytest.raises(AttributeError):
            setattr(attack, fields(attack)[0].name, 1)  # type: ignore[arg-type]


def test_scale_eps_reaches_inside_combinations() -> None:
    scaled = scale_eps(Restarts(WorstOf([PGD(eps=0.2), FGSM(eps=0.4)]), 2), 0.5)
    assert scaled == Restarts(WorstOf([PGD(eps=0.1), FGSM(eps=0.2)]), 2)
    assert threat(Restarts(PGD(norm="l2", eps=0.5))) == ("l2", 0.5) and threat(GaussianNoise()) == (None, None)
    assert threat(WorstOf([PGD(eps=0.2), PGD(eps=0.3)])) == (None, None)
