"""What holds for every attack: one ball with the judge, any float type, models that spoil their input, odd batches."""

import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import test_attacks
import test_autoattack
import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import (
    APGD,
    BPDA,
    CW,
    DAA,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    Attack,
    AutoAttack,
    CWLinf,
    DeepFool,
    FeatureAdversary,
    GrayBox,
    HighConfidence,
    HopSkipJump,
    Langevin,
    LogitEOT,
    Noise,
    OnePixel,
    RayS,
    Restarts,
    Square,
    Targeted,
    Within,
    WorstOf,
    threat,
)
from adversarial_lightning.attacks.core.norms import NORMS, displacement, distance, into_ball, outside_ball
from adversarial_lightning.detectors import MaxProbability
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.outcome import detector_scores, predict
from adversarial_lightning.lightning_modules import TRADES, AdversarialTraining

EVERY = [a for a in test_attacks.WHOLE if not isinstance(a, AutoAttack)]


def keyed(n: int) -> Noise:
    return Noise.keyed(0, torch.arange(n))


class Coarse(nn.Module):
    """Class 1 where the mean pixel exceeds that of a corner; a gradient everywhere, any size and type of image."""

    def forward(self, x: Tensor) -> Tensor:
        s = (x.flatten(1) - 0.5).square().mean(1) + 0.01 * x.flatten(1)[:, ::3].mean(1)
        return torch.stack([s, -s, 0 * s - 0.01, 0 * s - 0.02], 1)


# --- one ball ---------------------------------------------------------------------------------------------------------


def budget_attacks(norm: Any, eps: float) -> list[Attack]:
    """Every budget attack of one ball, with few steps."""
    l1 = norm == "l1"
    found = [
        FGSM(norm, eps),
        PGD(norm, eps, steps=2),
        PGD(norm, eps, steps=2, loss="margin", momentum=1.0, random_start=False),
        APGD(norm, eps, steps=2),
        APGD(norm, eps, steps=6, multi_eps=True),
        Square(norm, eps, queries=3),
        DAA(norm, eps, steps=1, particles=2),
        FeatureAdversary("", norm=norm, eps=eps, steps=2),
        *([] if l1 else [Langevin(norm, eps, steps=2, step_size=eps, project="never")]),
        Restarts(PGD(norm, eps, steps=1), 2),
        WorstOf([FGSM(norm, eps), PGD(norm, eps, steps=1)]),
        Targeted(PGD(norm, eps, steps=1, targeted=True), 1),
        LogitEOT(PGD(norm, eps, steps=1), 2),
        Within(FMN(norm, steps=2), eps),
    ]
    return found


def images(kind: str, side: int, dtype: torch.dtype, n: int = 2) -> Tensor:
    if kind == "flat":
        return torch.full((n, 3, side, side), 0.9, dtype=dtype)
    g = torch.Generator().manual_seed(side)
    return torch.rand(n, 3, side, side, generator=g, dtype=torch.float64).to(dtype).clamp(0, 1)


def discarded(norm: str, eps: float, kind: str, side: int, dtype: torch.dtype) -> tuple[int, int]:
    """Points outside the judge's ball, and points made, by all budget attacks."""
    x, outside, made = images(kind, side, dtype), 0, 0
    y = torch.zeros(len(x), dtype=torch.long)
    for attack in budget_attacks(norm, eps):
        z = attack(Coarse(), x, y, keyed(len(x)))
        assert z.dtype == dtype and z.min() >= 0 and z.max() <= 1
        far = outside_ball(distance(norm, displacement(z, x)), eps, attack.kind)
        outside, made = outside + int(far.sum()), made + len(z)
    return outside, made


RADII = {"linf": (1e-4, 8 / 255, 0.3), "l2": (1e-3, 0.5, 20.0), "l1": (0.01, 12.0, 255.0)}
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BALLS = [(norm, eps) for norm, radii in RADII.items() for eps in radii]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", ["flat", "random"])
@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_the_judge_discards_nothing_of_ours(norm: str, eps: float, kind: str, dtype: torch.dtype) -> None:
    for side in (28, 96):
        assert discarded(norm, eps, kind, side, dtype)[0] == 0


@pytest.mark.parametrize(("norm", "eps"), BALLS)
def test_large_images_stay_in_the_ball(norm: str, eps: float) -> None:
    x, y = images("flat", 384, torch.float32, 1), torch.zeros(1, dtype=torch.long)
    for attack in (PGD(norm, eps, steps=1), Square(norm, eps, queries=2), APGD(norm, eps, steps=1)):  # type: ignore[arg-type]
        assert not outside_ball(distance(norm, displacement(attack(Coarse(), x, y, keyed(1)), x)), eps, "budget").any()


def test_the_slack_is_a_millionth_of_the_radius() -> None:
    for eps in (1e-4, 0.3, 60.0):
        assert not outside_ball(eps * (1 + 9e-7), eps, "budget") and outside_ball(eps * (1 + 2e-6), eps, "budget")
        assert not outside_ball(eps, eps, "minimum-norm") and outside_ball(eps * (1 + 1e-12), eps, "minimum-norm")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_only_what_is_outside_is_moved(norm: str, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, z = (torch.rand(2, 50, generator=g, dtype=torch.float64).to(dtype).clamp(0, 1) for _ in range(2))
    eps = float(distance(norm, displacement(z, x)).min()) * (1 if norm == "l0" else 0.999)
    z[0] = x[0].lerp(z[0], 0.3) if norm != "l0" else torch.where(torch.arange(50) < 9, z[0], x[0])
    eps = 20 if norm == "l0" else eps
    moved = into_ball(z, x, norm, eps, "budget")
    assert torch.equal(moved[0], z[0]) and not torch.equal(moved[1], z[1])
    length = distance(norm, displacement(moved, x))[1]
    assert 0.98 * eps * (dtype.itemsize > 2) <= length <= eps * (1 + 1e-12)
    between = (moved >= x.minimum(z)) & (moved <= x.maximum(z))
    assert between.all() and torch.equal(into_ball(z, x, norm, eps, "minimum-norm")[1], x[1])


# --- precisions -------------------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """A purifier, a detector and a classifier in one, in any float type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 4))
        for p in self.classifier.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=g)
        self.classifier.to(dtype)
        self.purifier = nn.Identity()
        self.detector = SimpleNamespace(score=lambda x: self(x)[:, 0], theta=10.0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.purifier(x))
        return logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attack", EVERY, ids=test_attacks.ids(EVERY))
def test_half_types_are_right_or_refused(attack: Attack, dtype: torch.dtype) -> None:
    """As many images are broken as in float32, within one of eight; what looks into the model is refused in words."""
    g = torch.Generator().manual_seed(0)
    x = (0.2 + 0.6 * torch.rand(8, 1, 6, 6, generator=g)).to(dtype)
    model, whole = Parts(dtype), Parts(torch.float32)
    y = whole(x.float()).argmax(1)
    if isinstance(attack, HighConfidence):  # converges on its confidence, which a half type rounds
        attack = replace(attack, steps=50)
    if attack.knowledge == "surrogate" and not isinstance(attack, GrayBox):
        pytest.skip("its surrogate is a fixture in float64")
    try:
        z = attack(model, x, y, keyed(8))
    except UserError as error:
        assert "give it model.float() and images in float32" in str(error)
        assert isinstance(attack, BPDA | GrayBox) or "etect" in repr(attack) or "Reconstruction" in repr(attack)
        return
    assert z.dtype == dtype and z.isfinite().all() and z.min() >= 0 and z.max() <= 1
    norm, eps = threat(attack)
    if norm is not None and eps is not None:
        assert not outside_ball(distance(norm, displacement(z, x)), eps, attack.kind).any()
    broken = (model(z).argmax(1) != y).sum()
    reference = (whole(attack(whole, x.float(), y, keyed(8))).argmax(1) != y).sum()
    assert broken >= reference - (1 if attack.kind == "minimum-norm" else 2)


def test_the_lowest_draw_of_the_l1_start_is_finite() -> None:
    lowest: Any = SimpleNamespace(uniform=lambda like: torch.zeros_like(like))
    for dtype in TYPES:
        assert NORMS["l1"].random(torch.rand(2, 9).to(dtype), 1.0, lowest).isfinite().all()


SCALED = [PGD("l2", 0.3, 5, loss="margin"), APGD("linf", 0.05, 8, loss="dlr"), FMN("l2", 10), FMN("l1", 10)]
SCALED += [FAB(n, 4) for n in ("linf", "l2", "l1")] + [
    DeepFool("l2"),
    DDN(steps=10, loss="margin"),
    DAA(steps=3, particles=2),
]  # type: ignore[list-item]
SCALED += [Targeted(APGD("l2", 0.3, 5, loss="dlr", targeted=True), 2)]


@pytest.mark.parametrize("attack", SCALED, ids=test_attacks.ids(SCALED))
def test_tiny_logits_are_attacked_as_any_others(attack: Attack) -> None:
    """Logits that are a power of two smaller change nothing at all, where only differences of logits count."""
    whole, x = Parts(torch.float32), torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    tiny = Parts(torch.float32)
    for p in tiny.classifier[3].parameters():
        p.data *= 2.0**-50
    y = whole(x).argmax(1)
    if isinstance(attack, DAA):
        attack = replace(attack, loss="margin")
    assert torch.equal(attack(whole, x, y, keyed(6)), attack(tiny, x, y, keyed(6)))


def test_one_pixel_stays_in_large_images() -> None:
    import numpy as np

    genes = np.array([[224 - 1e-6], [224 - 1e-6], [1.0]])
    z = OnePixel().paint(torch.zeros(1, 224, 224), genes)
    assert z[0, 0, 223, 223] == 1 and z.sum() == 1


# --- what the attack broke --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Attack):
    """NaN where the first number of its noise is below `share`, else x + 0.1."""

    share: float = 0.5
    norm: str = "linf"
    eps: float = 0.1

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        u = noise.uniform(x[:, :1].flatten(1)[:, :1])
        return torch.where(u.view(-1, 1, 1, 1) < self.share, torch.nan, x + 0.1)


def test_an_attack_that_breaks_runs_again_and_is_named() -> None:
    x, y = torch.full((64, 1, 2, 2), 0.4), torch.zeros(64, dtype=torch.long)
    with pytest.warns(UserWarning, match=r"Broken\(share=0.3.* images of 64 that are no numbers, twice"):
        z = Broken(0.3)(Coarse(), x, y, keyed(64))
    assert 0 < z.isnan().flatten(1).any(1).sum() < 15  # 9 % of the rows, not 30 %
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = WorstOf([Broken(1.0), PGD(eps=0.1, steps=2)])(Coarse(), x, y, keyed(64))
        assert best.isfinite().all() and not torch.equal(best, x)
        assert WorstOf([Broken(1.0), Broken(1.0)])(Coarse(), x, y, keyed(64)).isnan().all()


# --- models that write into their input -------------------------------------------------------------------------------


class Spoils(Parts):
    """The same logits as `Parts`, computed in place."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        first = self.classifier[1]
        first.bias.data = first.bias.data - 0.5 * first.weight.data.sum(1)
        self.spoils = True

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x.add_(0.5) if self.spoils else x + 0.5)
        return logits


QUICK = [PGD(eps=0.1, steps=3), Square(eps=0.1, queries=20), HopSkipJump(queries=60), RayS(queries=60), CW(steps=5)]
QUICK += [CWLinf(steps=5), OnePixel(population=10, generations=2), FAB(steps=3), DeepFool(), Restarts(FGSM(eps=0.1), 2)]  # type: ignore[list-item]


@pytest.mark.parametrize("attack", QUICK, ids=test_attacks.ids(QUICK))
def test_a_model_may_write_into_its_images(attack: Attack) -> None:
    model, x = Spoils(torch.float64), torch.rand(5, 1, 6, 6, dtype=torch.float64)
    before, y = x.clone(), model(x.clone()).argmax(1)
    found = []
    for model.spoils in (True, False):
        found.append(attack(model, x, y, keyed(5)))
        assert torch.equal(x, before) and not model._forward_pre_hooks
        assert predict(model, x, y, [keyed(5)])[0].tolist() == y.tolist() and torch.equal(x, before)
        found.append(detector_scores(MaxProbability(model), x, keyed(5)))
        assert torch.equal(x, before)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


def test_scripted_parts_are_asked_as_they_are() -> None:
    """TorchScript takes no hooks: a part called `classifier` that is scripted is given no copies, and no error."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.classifier(x)
            return logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        model = Outer()
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)
    assert PGD(eps=0.1, steps=2)(model, x, y).shape == x.shape and not model._forward_pre_hooks


def test_training_may_use_its_images_again() -> None:
    x, y, losses = torch.rand(4, 1, 6, 6), torch.arange(4), []
    for spoils in (True, False):
        network = Spoils(torch.float32)
        network.spoils = spoils
        module = AdversarialTraining(network, FGSM(eps=0.1), clean_weight=0.5)
        losses.append({name: v.item() for name, v in module.losses(x, y, keyed(4)).items()})
        module = TRADES(network, PGD(loss="kl", eps=0.1, steps=1, start_std=0.01))
        losses[-1] |= {f"trades {name}": loss.item() for name, loss in module.losses(x, y, keyed(4)).items()}
    assert losses[0] == losses[1]


# --- odd batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", EVERY, ids=test_attacks.ids(EVERY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_images_give_no_images(attack: Attack, dtype: torch.dtype) -> None:
    x = torch.rand(0, 1, 6, 6).to(dtype)
    z = attack(Parts(dtype), x, torch.zeros(0, dtype=torch.long))
    assert z.shape == x.shape and z.dtype == dtype


HARD = torch.tensor([0, 1])
SENTENCES: dict[str, tuple[Any, Any, Any, str]] = {
    "int32": (PGD(), Coarse(), HARD.int(), "labels must be int64"),
    "column": (DDN(), Coarse(), HARD[:, None], "labels must be int64"),
    "float": (Square(), Coarse(), HARD.float(), "labels must be int64"),
    "function": (PGD(), Coarse().forward, HARD, "an attack needs a torch.nn.Module, not a method"),
    **{
        f"soft labels for {type(a).__name__}": (a, Coarse(), torch.full((2, 4), 0.25), "needs labels")
        for a in (DDN(), CW(), Square(), FAB(), HopSkipJump(), PGD(loss="margin"), Targeted(PGD(targeted=True)))
    },
}


@pytest.mark.parametrize("case", SENTENCES)
def test_odd_labels_and_models_are_refused_in_words(case: str) -> None:
    attack, model, y, sentence = SENTENCES[case]
    with pytest.raises(UserError, match=sentence):
        attack(model, torch.rand(2, 1, 6, 6), y)


def test_autoattack_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    test_autoattack.short_autoattack(monkeypatch)
    x = torch.rand(3, 1, 6, 6).half()
    z = AutoAttack(eps=0.1)(Parts(torch.float16), x, Parts(torch.float32)(x.float()).argmax(1))
    assert not outside_ball(distance("linf", displacement(z, x)), 0.1, "budget").any() and z.dtype == torch.float16
