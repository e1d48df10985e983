"""Attacks made for a defense or for one layer, what they share, and other people's attacks behind our guard."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import test_attacks as table
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from victims import BatchNormNet, Linear, at_distance

from adversarial_lightning.attacks import APGD, PGD, Attack, Noise, Restarts
from adversarial_lightning.attacks.core.bpda import find_attribute, straight_through
from adversarial_lightning.attacks.core.gradient import margin
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.attacks.core.unroll import unroll
from adversarial_lightning.attacks.daa import DAA, blob
from adversarial_lightning.attacks.detector_apgd import DetectorAwareAPGD
from adversarial_lightning.attacks.detector_pgd import DetectorAwarePGD, orthogonal_part
from adversarial_lightning.attacks.feature_adversary import FeatureAdversary, Representation
from adversarial_lightning.attacks.logit_eot import LogitEOT, MeanLogits
from adversarial_lightning.attacks.reconstruction_pgd import ReconstructionPGD, reconstruction_gradient
from adversarial_lightning.attacks.reference import (
    ReferenceALMA,
    ReferenceAutoAttack,
    ReferenceBrendelBethge,
    ReferencePointwise,
    ReferenceSigmaZero,
    nearest,
)

BALL = [
    DAA(norm="linf", eps=0.1, steps=20, particles=3),
    DAA(norm="l2", eps=0.1, steps=20, particles=3),
    DAA(norm="l1", eps=0.1, steps=30, particles=2, loss="margin", kernel_weight=10.0),
    DAA(norm="linf", eps=0.1, steps=20, particles=1),
    LogitEOT(PGD(norm="l2", eps=0.1, steps=20), 2),
    ReconstructionPGD(norm="linf", eps=0.1, steps=20, step_size=0.0125, reconstruction_weight=0.1),
    ReconstructionPGD(norm="l2", eps=0.1, steps=20, step_size=0.0125, bpda=False, one_pass=False),
    DetectorAwarePGD(norm="linf", eps=0.1, steps=40),
    DetectorAwarePGD(norm="l2", eps=0.1, steps=40, combine="selective", random_start=True),
    DetectorAwarePGD(norm="l2", eps=0.1, steps=40, combine="sum", detector_weight=0.01),
    DetectorAwarePGD(norm="linf", eps=0.1, steps=40, combine="hinge", loss="ce"),
    DetectorAwareAPGD(norm="linf", eps=0.1, steps=40),
    DetectorAwareAPGD(norm="l2", eps=0.1, steps=40),
    DetectorAwareAPGD(norm="l1", eps=0.1, steps=40),
]
ALL = [*BALL, FeatureAdversary(eps=0.1, steps=10), FeatureAdversary(layer="layers.2", norm="l2", eps=0.1, steps=10)]


class Shrink(nn.Module):
    """A purifier that draws images towards grey: 0.9 x + 0.05."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.9 * x + 0.05


class Brightness(nn.Module):
    """A detector of what is far from grey on average."""

    def __init__(self, theta: float | None = 10.0, factor: float = 100.0) -> None:
        super().__init__()
        self.theta, self.factor = theta, factor

    def score(self, x: Tensor) -> Tensor:
        return (x.flatten(1).mean(1) - 0.5).square() * self.factor


class DefendedNet(BatchNormNet):
    def __init__(self) -> None:
        super().__init__()
        self.purifier, self.detector = Shrink(), Brightness()


class DefendedLinear(Linear):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.purifier, self.detector = Shrink(), Brightness()


@pytest.fixture
def defended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The victims of the table carry a purifier and a detector."""
    monkeypatch.setattr(table, "BatchNormNet", DefendedNet)
    monkeypatch.setattr(table, "Linear", DefendedLinear)


# --- the table's properties ------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shape", table.SHAPES, ids=str)
@pytest.mark.parametrize("attack", BALL, ids=table.ids(BALL))
def test_finds_the_optimum_of_a_linear_victim(
    attack: Attack, shape: tuple[int, ...], batch: int, targeted: bool, defended: None
) -> None:
    table.test_finds_the_optimum_of_a_linear_victim(attack, shape, batch, targeted)


@pytest.mark.parametrize("attack", ALL, ids=table.ids(ALL))
def test_the_properties_of_every_attack(attack: Attack, defended: None) -> None:
    table.test_radius_zero_is_the_identity(attack)
    table.test_a_row_does_not_depend_on_its_batch(attack)
    for dtype in (torch.float32, torch.float64):
        table.test_output_looks_like_the_input(attack, dtype)
    for fails in (False, True):
        table.test_leaves_everything_as_it_was(attack, fails, torch.inference_mode)


@pytest.mark.parametrize("attack", ALL, ids=table.ids(ALL))
def test_no_gradient_is_no_catastrophe(attack: Attack) -> None:
    """A constant classifier: finite images in the ball."""

    class Constant(DefendedNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0

    x, y = torch.rand(3, 1, 8, 8), torch.arange(3) % 3
    z = attack(Constant(), x, y)
    assert z.isfinite().all() and z.min() >= 0 and z.max() <= 1


# --- DAA -------------------------------------------------------------------------------------------------------------


def test_blob_by_hand() -> None:
    """Two particles at distance 2 on a line, h^2 = median(0, 4, 4, 0) / (2 log 2)."""
    z = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]], dtype=torch.float64)  # (M=2, B=1, D=2)
    g = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]], dtype=torch.float64)
    h2 = 2.0 / (2 * torch.log(torch.tensor(2.0, dtype=torch.float64)))  # quantile 0.5 of 0, 0, 4, 4 is 2
    k = torch.exp(-4 / (2 * h2))
    pull = k * torch.tensor([-2.0, 0.0], dtype=torch.float64) / h2.sqrt()
    first = g[0, 0] + 1.1 / 2 * (g[0, 0] + k * g[1, 0] - pull)  # the mean entry of g is 1 already
    assert torch.allclose(blob(z, g, 1.1)[0, 0], first)
    assert torch.allclose(blob(z * 5, g * 7, 1.1), blob(z, g, 1.1))
    assert torch.equal(blob(z, g, 0.0), g) and torch.equal(blob(z[:1], g[:1], 1.1), g[:1])
    together = blob(torch.ones(3, 2, 4), torch.ones(3, 2, 4), 1.0)
    assert together.isfinite().all()


def test_particles_are_not_weaker_than_one() -> None:
    net, x, y = BatchNormNet().eval(), torch.rand(32, 1, 8, 8), torch.arange(32) % 3
    noise = Noise.keyed(0, torch.arange(32))
    one, many = (DAA(eps=0.1, steps=3, particles=m)(net, x, y, noise) for m in (1, 8))
    assert margin(net(many), y).mean() > margin(net(one), y).mean()


def test_the_strongest_particle_is_returned() -> None:
    """Steps of length 0: what comes back is the best of the random starts, for labels and for targets."""
    net, x, y = BatchNormNet().eval(), torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    starts, noise = [], Noise.keyed(0, torch.arange(6))
    for _ in range(5):
        starts.append((x + NORMS["linf"].random(x, 0.2, noise)).clamp(0, 1))
    margins = torch.stack([margin(net(z), y) for z in starts])
    for targeted, best in ((False, margins.amax(0)), (True, margins.amin(0))):
        attack = DAA(eps=0.2, steps=1, step_size=0.0, particles=5, targeted=targeted)
        assert torch.allclose(margin(net(attack(net, x, y, Noise.keyed(0, torch.arange(6)))), y), best, atol=1e-5)


# --- R+PGD -----------------------------------------------------------------------------------------------------------


def test_reconstruction_gradient_by_hand() -> None:
    """rec(x) - x = 0.05 - 0.1 x, a sum over pixels; a purifier without gradient counts as constant."""
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    r = 0.05 - 0.1 * x
    assert torch.allclose(reconstruction_gradient(Shrink(), x, True, 1), -0.2 * r)
    assert torch.allclose(reconstruction_gradient(Shrink(), x, False, 2), -2 * r)


def test_a_large_weight_minimises_the_reconstruction_error() -> None:
    """The paper's sign: the error is made small, so the image goes to the fixed point of the purifier, 0.5."""
    model, x, y = DefendedNet(), torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    attack = ReconstructionPGD(eps=0.1, steps=50, step_size=0.005, reconstruction_weight=1e6)
    z = attack(model, x, y)
    assert torch.allclose(z, x + (0.5 - x).clamp(-0.1, 0.1), atol=6e-3)


def test_one_pass_uses_the_denoiser() -> None:
    model, x, y = DefendedNet(), torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    model.purifier.denoiser = nn.Identity()  # reconstructs everything: no gradient, whatever the weight
    attack = ReconstructionPGD(eps=0.1, steps=5, reconstruction_weight=1e6, random_start=False)
    assert torch.equal(attack(model, x, y), replace(attack, reconstruction_weight=0.0)(model, x, y))
    assert not torch.equal(attack(model, x, y), replace(attack, one_pass=False)(model, x, y))


def test_bpda_turns_the_gradient_where_the_purifier_lies() -> None:
    """Behind a purifier that mirrors the gradient only the identity finds the way."""

    class Mirror(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x.detach() - x

    class Mirrored(DefendedLinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.purifier(x))

    model = Mirrored((30,))
    model.purifier = Mirror()
    x, y = at_distance(model, "l2", 0.08, 6)
    attack = ReconstructionPGD(norm="l2", eps=0.1, steps=20, reconstruction_weight=0.0)
    assert (model(attack(model, x, y)).argmax(1) != y).all()
    assert (model(replace(attack, bpda=False)(model, x, y)).argmax(1) == y).all()


# --- detector-aware PGD ----------------------------------------------------------------------------------------------


class DetectorGuardedModel(Linear):
    """A linear victim whose detector watches the step along u, a mix of the victim's normal and another direction."""

    def __init__(self, x: Tensor, share: float) -> None:
        super().__init__((40,))
        w = self.weight.detach()
        other = torch.roll(w, 1)
        other = other - (other @ w) / (w @ w) * w
        u = share * w / w.norm() + (1 - share**2) ** 0.5 * other / other.norm()
        self.detector = SimpleNamespace(score=lambda z: ((z - x) @ u).abs(), theta=0.02)


EVASIVE: dict[str, dict[str, Any]] = {
    "sum": {"detector_weight": 4.0},
    "hinge": {"detector_weight": 10.0},
    "selective": {},
    "orthogonal": {},
}


@pytest.mark.parametrize("combine", [*EVASIVE, "apgd"])
@pytest.mark.parametrize("targeted", [False, True])
def test_evades_a_detector_that_flags_plain_pgd(combine: str, targeted: bool) -> None:
    x, y = at_distance(Linear((40,)), "l2", 0.05, 8)
    model = DetectorGuardedModel(x, 0.6)
    goal, noise = (1 - y if targeted else y), Noise.keyed(0, torch.arange(8))
    plain = PGD(norm="l2", eps=0.1, steps=60, random_start=False, targeted=targeted)(model, x, goal, noise)
    assert (model(plain).argmax(1) != y).all() and (model.detector.score(plain) > 0.02).all()
    attack: Attack = DetectorAwareAPGD(norm="l2", eps=0.1, targeted=targeted, theta=0.02)
    if combine == "apgd":
        model.detector.theta = 1e9  # the attack's own counts
    else:
        attack = DetectorAwarePGD(norm="l2", eps=0.1, steps=200, combine=combine, targeted=targeted, **EVASIVE[combine])  # type: ignore[arg-type]
    z = attack(model, x, goal, noise)
    assert (model(z).argmax(1) != y).all() and (model.detector.score(z) < 0.02).all()
    assert (NORMS["l2"].distance(z - x) <= 0.1 * (1 + 1e-6)).all()


class Slit(nn.Module):
    """A detector that passes what lies within 3e-3 of a plane through each of the images `x`, and slopes towards it."""

    def __init__(self, plane: Tensor, x: Tensor) -> None:
        super().__init__()
        self.plane, self.at, self.theta = plane, x @ plane, 1e-5

    def score(self, z: Tensor) -> Tensor:
        return (z @ self.plane - self.at).square()


def test_shrinking_steps_end_in_a_slit_that_fixed_ones_leap_over() -> None:
    """What made the attack on densities of codes too weak: no gradient is masked, and yet nearly nothing gets through.

    The classifier's normal leans on the slit's plane, so that whoever goes on along it leaves the slit.
    """
    model = Linear((40,))
    x, y = at_distance(model, "l2", 0.05, 8)
    model.detector = Slit(torch.roll(model.weight.detach(), 1), x)
    shared: dict[str, Any] = {"norm": "l2", "eps": 0.1, "steps": 40, "detector_weight": 10.0, "random_start": True}
    fixed = [DetectorAwarePGD(**shared, combine=c) for c in ("hinge", "selective", "orthogonal")]  # type: ignore[arg-type]
    unseen = []
    for attack in [DetectorAwareAPGD(**shared), *fixed]:
        z = attack(model, x, y, Noise.keyed(0, torch.arange(8)))
        unseen.append(int(((model(z).argmax(1) != y) & (model.detector.score(z) < model.detector.theta)).sum()))
    assert unseen[0] == 8 and max(unseen[1:]) <= 4, unseen


class Pair(nn.Module):
    """Images of two pixels: the first, above 1/2, fools the classifier; the second is the score, 1 is none."""

    detector = SimpleNamespace(
        score=lambda z: torch.where(z[:, 0, 0, 1] < 1, z[:, 0, 0, 1], torch.nan),
        theta=0.5,
    )

    def forward(self, x: Tensor) -> Tensor:
        lead = x[:, 0, 0, 0] - 0.5
        return torch.stack([torch.zeros_like(lead), lead], 1)


def test_what_auto_pgd_is_told_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows: neither of both, only unflagged, only fooled, both, both but nearer than kappa, no score."""
    looks: list[Any] = []
    monkeypatch.setattr(APGD, "ascend", lambda _, look, x, z, eps, steps: (looks.append(look), (x, x))[1])
    z = torch.tensor([[0.2, 0.9], [0.2, 0.2], [0.9, 0.9], [0.9, 0.2], [0.52, 0.2], [0.9, 1.0]]).view(6, 1, 1, 2)
    DetectorAwareAPGD(eps=0.1, detector_weight=2.0)(Pair(), z, torch.zeros(6, dtype=torch.long))
    gradient, value, rank = looks[0](z)
    assert gradient.flatten(1).tolist() == [[1, -2], [1, 0], [0, -2], [0, 0], [1, 0], [0, 0]]
    assert value.tolist() == pytest.approx([-0.35 - 0.8, -0.35, -0.8, 0, -0.03, -2000], abs=1e-6)
    assert rank.tolist() == [0, 0, 1, 2, 2, 1]


def test_without_the_detector_it_is_pgd() -> None:
    """Threshold above all scores: the hinge never acts, and every step is PGD's."""
    model, x, y = DefendedNet(), torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    hidden = DetectorAwarePGD(eps=0.1, steps=10, combine="hinge", theta=1e9, loss="margin")
    plain = PGD(eps=0.1, steps=10, random_start=False, loss="margin")
    a, b = (margin(model.eval()(attack(model, x, y)), y) for attack in (hidden, plain))
    assert (a >= b - 1e-6).all()  # the best point visited, against the last
    silent = DetectorAwareAPGD(eps=0.1, steps=10, theta=1e9, detector_weight=100.0, kappa=10.0)
    index, auto = torch.arange(4), APGD(eps=0.1, steps=10, loss="margin")
    a, b = (margin(model.eval()(attack(model, x, y, Noise.keyed(0, index))), y) for attack in (silent, auto))
    assert torch.allclose(a, b, atol=1e-4)


def test_orthogonal_parts() -> None:
    a, b = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    b[1] = 0
    p = orthogonal_part(a, b)
    assert torch.allclose((p * b).flatten(1).sum(1), torch.zeros(5), atol=1e-5) and torch.equal(p[1], a[1])
    assert torch.allclose((a - p).flatten(1).norm(dim=1) ** 2 + p.flatten(1).norm(dim=1) ** 2, (a**2).flatten(1).sum(1))
    assert torch.allclose(orthogonal_part(a, b * 1e-30), p, atol=1e-4)


def test_directions_by_hand() -> None:
    """Rows: not fooled yet; fooled and flagged; fooled and not flagged."""
    up, slope = torch.tensor([[1.0, 1.0]] * 3), torch.tensor([[0.0, 2.0]] * 3)
    ahead, flagged = torch.tensor([False, True, True]), torch.tensor([True, True, False])
    expected = {
        "sum": [[1, 1 - 6], [1, 1 - 6], [1, 1 - 6]],
        "hinge": [[1, 1 - 6], [1, 1 - 6], [1, 1]],
        "selective": [[1, 1], [0, -2], [0, -2]],
        "orthogonal": [[1, 0], [1, -1], [1, -1]],
    }
    for combine, rows in expected.items():
        attack = DetectorAwarePGD(combine=combine, detector_weight=3.0)  # type: ignore[arg-type]
        assert torch.allclose(attack.direction(up, slope, ahead, flagged), torch.tensor(rows).float()), combine


def test_a_score_at_the_threshold_is_flagged() -> None:
    model, x = DefendedNet().eval(), torch.rand(1, 1, 8, 8)
    model.detector.theta = float(model.detector.score(x))
    attack = DetectorAwarePGD(eps=1e-3, steps=1, combine="hinge", detector_weight=1e9)
    z = attack(model, x, model(x).argmax(1))
    assert model.detector.score(z) < model.detector.theta


def test_a_score_that_is_not_a_number_is_flagged_and_harmless() -> None:
    model = DefendedLinear((30,))
    model.detector = Brightness(factor=torch.nan)
    x, y = at_distance(model, "l2", 0.08, 4)
    attacks = [DetectorAwarePGD(norm="l2", eps=0.1, steps=20, combine=c) for c in ("sum", "orthogonal")]  # type: ignore[arg-type]
    for attack in [*attacks, DetectorAwareAPGD(norm="l2", eps=0.1, steps=20)]:
        z = attack(model, x, y)
        assert z.isfinite().all() and (model(z).argmax(1) != y).all()


# --- feature adversary -----------------------------------------------------------------------------------------------


def test_moves_away_from_its_own_representation_as_far_as_the_ball_allows() -> None:
    """phi(x) = w.x: the distance eps ||w||_1 (linf) or eps ||w||_2 (l2) is the largest there is."""
    net = nn.Sequential(nn.Linear(30, 1), nn.Flatten(), nn.Linear(1, 3))
    x, y = 0.3 + 0.4 * torch.rand(5, 30), torch.arange(5) % 3
    w = net[0].weight.detach()[0]
    for norm, dual in (("linf", w.abs().sum()), ("l2", w.norm())):
        z = FeatureAdversary("0", norm=norm, eps=0.1, steps=30)(net, x, y)  # type: ignore[arg-type]
        assert torch.allclose((net[0](z) - net[0](x)).abs()[:, 0], 0.1 * dual.expand(5), rtol=0.02)


def guides(folder: Path, images: Tensor, labels: Tensor) -> str:
    path = str(folder / "guides.safetensors")
    save_file({"images": images, "labels": labels}, path)
    return path


@pytest.mark.parametrize("targeted", [False, True])
def test_reaches_the_representation_of_a_guide(tmp_path: Path, targeted: bool) -> None:
    """Guides 0.05 away, one for each class: the representation is met, and it is that of the right guide."""
    net = nn.Sequential(nn.Linear(30, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    x, y = torch.full((3, 30), 0.5), torch.tensor([0, 1, 2])
    images = x + 0.05 * torch.randn(3, 30).sign()
    attack = FeatureAdversary("0", guides(tmp_path, images, y), eps=0.06, steps=200, targeted=targeted)
    goal = y.roll(1)
    z = attack(net, x, goal if targeted else y)
    codes, theirs = net[0](z), net[0](images)
    square = torch.cdist(codes, theirs) ** 2
    own = torch.cdist(net[0](x), theirs) ** 2
    expected = goal if targeted else own.masked_fill(torch.eye(3, dtype=torch.bool), torch.inf).argmin(1)
    assert (square.gather(1, expected[:, None]) < 2e-4).all()
    alone = attack(net, x[1:2], (goal if targeted else y)[1:2], Noise.keyed(0, torch.tensor([1])))
    whole = attack(net, x, goal if targeted else y, Noise.keyed(0, torch.arange(3)))
    assert torch.allclose(alone[0], whole[1], atol=1e-5)


def test_layers_are_found_by_name_also_behind_wrappers() -> None:
    net = BatchNormNet().eval()
    x = torch.rand(2, 1, 8, 8)
    for model in (net, MeanLogits(net, 1)):
        with Representation(model, "layers.2").recording() as phi:
            assert torch.allclose(phi(x), net.layers[:3](x).flatten(1))
    with Representation(net, "").recording() as phi:
        assert torch.equal(phi(x), net(x))
    assert not net._forward_hooks and not net.layers[2]._forward_hooks
    with pytest.raises(ValueError, match=r"layer 'layers.9' is no module of the model; it has layers"):
        FeatureAdversary("layers.9")(net, x, torch.tensor([0, 1]))


def test_guides_of_a_missing_class_are_named(tmp_path: Path) -> None:
    attack = FeatureAdversary("", guides(tmp_path, torch.rand(2, 1, 8, 8), torch.tensor([0, 0])), steps=1)
    with pytest.raises(ValueError, match="outside class 0"):
        attack(BatchNormNet(), torch.rand(2, 1, 8, 8), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="of class 2"):
        replace(attack, targeted=True)(BatchNormNet(), torch.rand(1, 1, 8, 8), torch.tensor([2]))


def test_features_that_are_no_numbers_have_any_guide(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * torch.where(x.flatten(1)[:, :1] > 0.9, torch.nan, 1.0)

    x = torch.rand(2, 1, 4, 4) * 0.5
    x[0, 0, 0, 0] = 1.0
    attack = FeatureAdversary("", guides(tmp_path, torch.rand(2, 1, 4, 4) * 0.5, torch.tensor([1, 2])), steps=3)
    assert attack(Broken(), x, torch.tensor([0, 0])).isfinite().all()


# --- what they share -------------------------------------------------------------------------------------------------


class Jitter(nn.Module):
    stochastic, noise = True, None

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.noise.normal(x)


def test_straight_through_is_exact_forwards_and_the_identity_backwards() -> None:
    shrink, x = Shrink(), torch.rand(2, 5, requires_grad=True)
    inside: list[bool] = []
    with straight_through(shrink):
        handle = shrink.register_forward_pre_hook(lambda _, args: inside.append(args[0].requires_grad))
        out = shrink(x)
    handle.remove()
    with straight_through(shrink):
        out = shrink(x)
        gradient = torch.autograd.grad((out * torch.arange(5.0)).sum(), x)[0]
    assert torch.equal(out, 0.9 * x + 0.05) and torch.equal(gradient[0], torch.arange(5.0))
    assert inside == [False]  # no graph is built in there
    assert torch.allclose(torch.autograd.grad(shrink(x).sum(), x)[0], torch.tensor(0.9))


def test_unrolled_chain_equals_the_plain_loop_and_replays_its_noise() -> None:
    layer = nn.Linear(6, 6).double()

    def step(z: Tensor, noise: Noise) -> Tensor:
        return torch.tanh(layer(z * noise.normal(z)))  # the gradient depends on the draw

    def run(unrolled: bool) -> tuple[Tensor, Tensor, int]:
        torch.manual_seed(0)
        x = torch.rand(3, 6, dtype=torch.float64).requires_grad_()
        noise = Noise.keyed(4, torch.arange(3))
        noise.normal(x)  # not at its beginning
        z = unroll(step, x, noise, 5) if unrolled else x
        for _ in range(0 if unrolled else 5):
            z = step(z, noise)
        return z, torch.autograd.grad(z.sin().sum(), x)[0], noise.counter

    for a, b in zip(run(True), run(False), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_unrolled_chain_keeps_one_step() -> None:
    """Tensors kept for the backward pass: none but the images between the steps."""
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    weights = torch.rand(50, 500)

    def step(z: Tensor, noise: Noise) -> Tensor:
        return torch.tanh(torch.tanh(z @ weights) @ weights.T)

    x = torch.rand(2, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        unroll(step, x, Noise.keyed(0, torch.arange(2)), 4)
    assert sum(kept) <= 4 * x.numel()


def test_logit_eot_averages_logits_and_not_gradients() -> None:
    inner, x = BatchNormNet().eval(), torch.rand(3, 1, 8, 8)
    model = nn.Sequential(Jitter(), inner)
    model[0].noise = Noise.keyed(0, torch.arange(3))
    mean = MeanLogits(model, 3)(x)
    model[0].noise = Noise.keyed(0, torch.arange(3))
    assert torch.allclose(mean, torch.stack([model(x) for _ in range(3)]).mean(0))
    pgd = PGD(norm="l2", eps=0.5, steps=3)

    def run(attack: Attack) -> Tensor:
        return attack(model, x, torch.arange(3), Noise.keyed(0, torch.arange(3)))

    assert not torch.allclose(run(LogitEOT(pgd, 4)), run(replace(pgd, eot_samples=4)))
    assert torch.equal(run(LogitEOT(pgd, 1)), run(pgd))


def test_parts_are_found_inside_and_missed_aloud() -> None:
    net = DefendedNet()
    assert find_attribute(nn.Sequential(nn.Identity(), net), "purifier") is net.purifier
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="'purifier'"):
        ReconstructionPGD()(BatchNormNet(), x, y)
    with pytest.raises(ValueError, match="'detector'"):
        DetectorAwarePGD()(BatchNormNet(), x, y)
    net.detector.theta = None
    with pytest.raises(ValueError, match="theta"):
        DetectorAwareAPGD()(net, x, y)
    net.detector.theta, net.detector.score = 1.0, lambda z: z.detach().flatten(1).sum(1)
    with pytest.raises(ValueError, match="differentiable"):
        DetectorAwarePGD()(net, x, y)


# --- other people's attacks ------------------------------------------------------------------------------------------

REFERENCE: list[tuple[Attack, str, float]] = [
    (ReferenceALMA(norm="l2", steps=300), "adv_lib.attacks", 1.5),
    (ReferenceALMA(norm="l1", steps=300), "adv_lib.attacks", 8.0),  # its first step is far too long here
]


@pytest.mark.parametrize("attack,library,slack", REFERENCE, ids=lambda v: type(v).__name__)
def test_reference_attacks_find_the_optimum(attack: Attack, library: str, slack: float) -> None:
    pytest.importorskip(library, exc_type=ImportError)
    model = Linear((40,))
    x, y = at_distance(model, attack.norm, 0.05, 3)  # type: ignore[attr-defined]
    state = torch.get_rng_state()
    z = attack(model, x, y, Noise.keyed(0, torch.arange(3)))
    assert torch.equal(state, torch.get_rng_state()) and (model(z).argmax(1) != y).all()
    assert (NORMS[attack.norm].distance(z - x) <= 0.05 * slack).all()  # type: ignore[attr-defined]
    assert torch.equal(attack(model, x, 1 - y), x)  # already as wanted


@pytest.mark.parametrize(
    "attack,library", [(ReferenceSigmaZero(steps=200), "adv_lib.attacks"), (ReferencePointwise(), "foolbox")]
)
def test_reference_l0_attacks_fool_with_few_pixels(attack: Attack, library: str) -> None:
    pytest.importorskip(library, exc_type=ImportError)
    model = Linear((40,))
    x, y = at_distance(model, "l2", 0.05, 4)
    whole = attack(model, x, y, Noise.keyed(0, torch.arange(4)))
    assert (model(whole).argmax(1) != y).all() and ((whole != x).sum(1) <= 3).all()
    part_ = attack(model, x[[2]], y[[2]], Noise.keyed(0, torch.tensor([2])))
    assert torch.equal(part_[0], whole[2])


def test_foreign_results_are_not_taken_on_trust() -> None:
    """Row 0 needs no attack, 1 gets nan, 2 a point that does not fool, 3 one that fools, out of the box."""
    model = Linear((40,))
    x, y = at_distance(model, "l2", 0.05, 4)
    y[0] = 1 - y[0]
    found = x.clone()
    found[1], found[2] = torch.nan, x[2] + 1e-4
    found[3] = x[3] + 50 * (y[3] * -2 + 1) * model.weight.detach()
    asked: list[int] = []

    def run(rows: Tensor, labels: Tensor) -> Tensor:
        asked.append(len(rows))
        return found[1:] if len(rows) == 3 else found[[1 + len(asked) - 1]]

    for one_by_one in (False, True):
        asked.clear()
        z = nearest(model, x, y, Noise.keyed(0, torch.arange(4)), "l2", False, run, one_by_one)
        assert asked == ([1, 1, 1] if one_by_one else [3])
        assert torch.equal(z[:3], x[:3]) and model(z)[3].argmax() != y[3] and z.min() >= 0 and z.max() <= 1
    assert not torch.equal(z[3], x[3])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_brendel_bethge_is_wired(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and settings; a run would compile for minutes (numba), so the last step is not taken."""
    foolbox = pytest.importorskip("foolbox", exc_type=ImportError)
    pytest.importorskip("numba", exc_type=ImportError)
    name = {"linf": "Linfinity", "l2": "L2", "l1": "L1", "l0": "L0"}[norm] + "BrendelBethgeAttack"
    monkeypatch.setattr(getattr(foolbox.attacks, name), "instantiate_optimizer", lambda self: None)
    fail = RuntimeError("reached the attack")
    monkeypatch.setattr(getattr(foolbox.attacks, name), "run", lambda *a, **k: (_ for _ in ()).throw(fail))
    x, y = at_distance(Linear((40,)), "l2", 0.05, 1)
    with pytest.raises(RuntimeError, match="reached"):
        ReferenceBrendelBethge(norm=norm, steps=3)(Linear((40,)), x, y)  # type: ignore[arg-type]


class FakeAutoAttack(ModuleType):
    """Stands in for the library: random noise four times too large, drawn from the global generators."""

    class AutoAttack:
        def __init__(self, model: nn.Module, **settings: object) -> None:
            FakeAutoAttack.settings = settings

        def run_standard_evaluation(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
            torch.manual_seed(int(torch.randint(100, ())))
            return x + torch.rand_like(x)


def test_autoattack_is_run_as_its_authors_do_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "autoattack", FakeAutoAttack("autoattack"))
    net, x, y = BatchNormNet(), torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    state, noise = torch.get_rng_state(), Noise.keyed(0, torch.arange(4))
    z = ReferenceAutoAttack(norm="l2", eps=0.25)(net, x, y, noise)
    assert (NORMS["l2"].distance(z - x) <= 0.25 * (1 + 1e-6)).all() and not torch.equal(z, x)
    assert torch.equal(ReferenceAutoAttack(norm="l2", eps=0.25)(net, x, y, noise), z)
    assert torch.equal(state, torch.get_rng_state())
    assert FakeAutoAttack.settings["norm"] == "L2" and FakeAutoAttack.settings["version"] == "standard"
    with pytest.raises(ValueError, match="deterministic"):
        ReferenceAutoAttack()(nn.Sequential(Jitter(), net), x, y)


@pytest.mark.parametrize(
    "attack,module",
    [
        (ReferenceBrendelBethge(), "numba"),
        (ReferencePointwise(), "foolbox"),
        (ReferenceALMA(), "adv_lib.attacks.augmented_lagrangian"),
        (ReferenceSigmaZero(), "adv_lib.attacks.sigma_zero"),
        (ReferenceAutoAttack(), "autoattack"),
    ],
)
def test_a_missing_library_is_named(attack: Attack, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what import sees for a module that cannot be imported
    with pytest.raises(ValueError, match=r"\[reference\]"):
        attack(BatchNormNet(), torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))


def test_restarts_help_an_attack_without_labels() -> None:
    model = Linear((30,))
    x, y = at_distance(model, "linf", 0.08, 8)
    noise = Noise.keyed(0, torch.arange(8))
    one = FeatureAdversary(eps=0.1, steps=10)
    rates = [(model(a(model, x, y, noise)).argmax(1) != y).float().mean() for a in (one, Restarts(one, 12))]
    assert rates[0] < 1 and rates[1] == 1
