"""Minimum-norm attacks: the nearest adversarial point of victims for which it is known, and each paper's pieces."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import BatchNormNet, Linear, at_distance

from adversarial_lightning.attacks.combinators import best_of
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.norms import NORMS, keep_largest, l0_distance
from adversarial_lightning.attacks.cw import CW, ConstSearch, CWLinf, boxed, free, pull_back
from adversarial_lightning.attacks.ddn import DDN
from adversarial_lightning.attacks.deepfool import DeepFool, relative_robustness
from adversarial_lightning.attacks.ead import EAD, shrink
from adversarial_lightning.attacks.fmn import FMN
from adversarial_lightning.attacks.high_confidence import HighConfidence, closest_target, confidence_step
from adversarial_lightning.attacks.jsma import JSMA, salient_pair
from adversarial_lightning.attacks.sparsefool import SparseFool, sparse_step
from adversarial_lightning.networks.eval_mode import frozen_eval

# (attack, largest ratio to the closed-form optimum)
NEAREST: list[tuple[Any, float]] = [
    (DDN(steps=100), 1.02),
    (DDN(steps=100, loss="margin"), 1.02),
    (FMN(norm="linf", steps=50), 1.02),
    (FMN(norm="l2", steps=50), 1.02),
    (FMN(norm="l1", steps=50), 1.02),
    (DeepFool(overshoot=0.01), 1.02),
    (DeepFool(norm="linf", overshoot=0.01), 1.02),
    (DeepFool(overshoot=0.01, max_step=0.04), 1.02),
    (CW(steps=80, search_steps=5, step_size=0.02, const=0.1), 1.02),
    (CWLinf(steps=40, const=0.02, max_const=2.0, decrease=0.98), 1.02),
    (EAD(rule="l1", steps=100, search_steps=8, step_size=0.005, beta=0.005), 1.05),  # the elastic net is not quite l1
    (SparseFool(lambda_=1.0, overshoot=0.01), 1.05),
    (HighConfidence(confidence=0.5, overshoot=0.01), 1.02),
]
L0: list[Any] = [FMN(norm="l0", steps=60), JSMA(direction="both", gamma=1.0), SparseFool(norm="l0", lambda_=1.0)]
ALL: list[Any] = [a for a, _ in NEAREST] + L0 + [EAD(steps=40, search_steps=6, const=0.1), DDN(steps=30, levels=256)]
SHAPES = [(1, 8, 8), (40,)]


def name(value: object) -> str | None:
    return f"{type(value).__name__}-{value.norm}" if isinstance(value, Attack) else None  # type: ignore[attr-defined]


def keys(n: int) -> Noise:
    return Noise.keyed(0, torch.arange(n))


@pytest.mark.long
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("attack,ratio", NEAREST, ids=name)
def test_finds_the_nearest_point_of_a_linear_victim(
    attack: Any, ratio: float, shape: tuple[int, ...], targeted: bool
) -> None:
    model, norm = Linear(shape), NORMS[attack.norm]
    attack = replace(attack, targeted=targeted)
    x, y = at_distance(model, attack.norm, 0.1, 8)
    assert (model(x).argmax(1) == y).all()
    goal = 1 - y if targeted else y
    whole = attack(model, x, goal, keys(8))
    assert (model(whole).argmax(1) == 1 - y).all()
    length = norm.distance(whole - x)
    assert (length <= 0.1 * ratio).all() and (length >= 0.1 * (1 - 1e-4)).all(), length
    for n in (1, 3):
        part = attack(model, x[:n], goal[:n], keys(n))
        assert torch.allclose(norm.distance(part - x[:n]), length[:n], rtol=1e-3)


def fewest(gain: Tensor, need: float) -> int:
    """How many of the values must move when value i can contribute at most `gain` (D,)."""
    return int((gain.sort(descending=True).values.cumsum(0) < need).sum()) + 1


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("attack", L0, ids=name)
def test_changes_few_values_of_a_linear_victim(attack: Any, shape: tuple[int, ...], targeted: bool) -> None:
    """Within 1.25 of the greedy optimum in the box; JSMA's is that of one sign, in pairs."""
    model = Linear(shape)
    x, y = at_distance(model, "l2", 0.8, 8)
    z = replace(attack, targeted=targeted)(model, x, 1 - y if targeted else y, keys(8))
    assert (model(z).argmax(1) == 1 - y).all()
    w = model.weight.detach()
    for i in range(8):
        flat, s = x[i].flatten(), model(x[i : i + 1])[0, 1].item() * 2
        up, down = (-s * w).sign().clamp_min(0) * (1 - flat), (s * w).sign().clamp_min(0) * flat
        if isinstance(attack, JSMA):
            best = min((fewest(w.abs() * side, abs(s)) + 1) // 2 * 2 for side in (up, down))
        else:
            best = fewest(w.abs() * (up + down), abs(s))
        assert best >= 3 or isinstance(attack, JSMA)
        assert best <= int(l0_distance(z - x)[i]) <= 1.25 * best


@pytest.mark.parametrize("attack", ALL, ids=name)
@pytest.mark.parametrize("targeted", [False, True])
def test_rows_that_need_no_attack_come_back_unchanged(attack: Any, targeted: bool) -> None:
    model = Linear((1, 8, 8))
    x, y = at_distance(model, "l2", 0.3, 6)
    done = torch.tensor([True, False, True, False, False, True])
    wrong = torch.where(done, 1 - y, y)
    z = replace(attack, targeted=targeted)(model, x, 1 - wrong if targeted else wrong, keys(6))
    assert torch.equal(z[done], x[done])
    assert (model(z[~done]).argmax(1) != y[~done]).all()


class Broken(nn.Module):
    """Logits of three classes that an attack can do nothing with."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1).sum(1, keepdim=True)
        base = torch.tensor([5.0, 0.0, -1.0], dtype=x.dtype) + 0 * s
        return {"constant": base, "saturated": 1e3 * base + 1e-4 * s, "nan": base / (s - s)}[self.how]


@pytest.mark.parametrize("attack", ALL, ids=name)
@pytest.mark.parametrize("how", ["constant", "saturated", "nan"])
def test_nothing_found_is_the_image_and_never_nan(attack: Any, how: str) -> None:
    if isinstance(attack, CWLinf | SparseFool):
        attack = replace(attack, steps=3)
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attack(Broken(how), x, torch.zeros(3, dtype=torch.long), keys(3)), x)


@pytest.mark.parametrize("attack", ALL, ids=name)
@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_pixels_on_the_edge_of_the_box_can_move(attack: Any, edge: float) -> None:
    """All pixels are exactly 0, or 1, and only leaving that edge can help."""
    n = 36
    model = Linear((1, 6, 6))
    with torch.no_grad():
        model.weight.copy_(torch.linspace(0.5, 1.5, n))
        model.bias.fill_(-0.15 * n if edge == 0 else -0.85 * n)
    if isinstance(attack, JSMA):
        attack = replace(attack, direction="both")
    if isinstance(attack, CW | CWLinf):
        attack = replace(attack, steps=60, step_size=0.05)
    x, y = torch.full((2, 1, 6, 6), edge), torch.full((2,), int(edge))
    assert (model(x).argmax(1) == y).all()
    z = attack(model, x, y, keys(2))
    assert (model(z).argmax(1) != y).all() and z.min() >= 0 and z.max() <= 1


@pytest.mark.parametrize("attack", ALL, ids=name)
def test_more_steps_never_end_farther_away(attack: Any) -> None:
    """On a network with curvature: mean length over what both found, within 2 %; nothing found is lost again."""
    if not hasattr(attack, "steps") or isinstance(attack, CWLinf):
        return
    g = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 3))
    x = torch.rand(24, 1, 8, 8, generator=g)
    y = net(x).argmax(1)

    def run(steps: int) -> tuple[Tensor, Tensor]:
        z = replace(attack, steps=steps)(net, x, y, keys(24))
        length = l0_distance(z - x).float() if attack.norm == "l0" else NORMS[attack.norm].distance(z - x)
        return net(z).argmax(1) != y, length

    (few, short), (many, long) = run(15), run(90)
    assert many[few].all()
    assert long[few].mean() <= 1.02 * short[few].mean() if few.any() else many.any()


def test_ddn_leaves_a_plateau_at_random() -> None:
    class Plateau(nn.Module):
        """Flat up to l2 0.3 around the grey image."""

        def forward(self, x: Tensor) -> Tensor:
            s = ((x - 0.5).flatten(1).square().sum(1) - 0.09).relu()
            return torch.stack([torch.full_like(s, 0.01), s], 1)

    x, y = torch.full((3, 1, 5, 5), 0.5), torch.zeros(3, dtype=torch.long)
    z = DDN(steps=40)(Plateau(), x, y, keys(3))
    assert (Plateau()(z).argmax(1) == 1).all() and not torch.equal(z[0], z[1])


# --- CW --------------------------------------------------------------------------------------------------------------


def test_tanh_variables_lead_back_to_the_image_and_its_gradient() -> None:
    x = torch.tensor([[0.0, 1.0, 0.5, 0.013]], dtype=torch.float64)
    w = free(x)
    assert w.isfinite().all() and torch.allclose(boxed(w), x, atol=1e-12)
    w = torch.linspace(-2, 2, 9, dtype=torch.float64)[None].requires_grad_()
    true = torch.autograd.grad(boxed(w).square().sum(), w)[0]
    assert torch.allclose(pull_back(2 * boxed(w).detach(), w.detach()), true)
    out = torch.tensor([[9.0, -9.0]])
    assert pull_back(torch.tensor([[-1.0, 1.0]]), out).tolist() == [[0.0, 0.0]]


def test_const_search_brackets_row_by_row() -> None:
    search = ConstSearch(torch.zeros(3, 2, dtype=torch.float64), 1.0)
    wanted = torch.tensor([0.3, 7.0, 4000.0], dtype=torch.float64)
    for _ in range(30):
        search.narrow(search.const >= wanted)
    assert torch.allclose(search.high, wanted, rtol=1e-6) and (search.low < wanted).all()


@pytest.mark.parametrize("attack", [CW(steps=60, search_steps=4, const=0.1), EAD(steps=60, search_steps=4, const=0.1)])
def test_rows_abort_by_themselves(attack: Any) -> None:
    """An image far from the boundary, which goes on for long, does not change what its neighbour gets."""
    model = Linear((40,), dtype=torch.float64)
    near, y = at_distance(model, "l2", 0.02, 1)
    far, _ = at_distance(model, "l2", 1.2, 1)
    both = attack(model, torch.cat([near, far]), torch.cat([y, y]), keys(2))
    assert torch.allclose(both[:1], attack(model, near, y, keys(1)), atol=1e-12)


@pytest.mark.parametrize(
    "attack",
    [
        CW(steps=100, search_steps=6, step_size=0.02, const=0.1),
        CWLinf(steps=60, step_size=0.02, const=0.1, max_const=2.0),
        EAD(steps=100, search_steps=6, const=0.1),
    ],
    ids=name,
)
def test_kappa_is_a_margin_to_win_by(attack: Any) -> None:
    model = Linear((40,))
    x, y = at_distance(model, "l2", 0.1, 4)
    logits = model(replace(attack, kappa=2.0)(model, x, y, keys(4)))
    assert (logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None]) >= 2 - 1e-4).all()


# --- EAD, FMN, JSMA, SparseFool --------------------------------------------------------------------------------------


def test_shrinkage_is_the_prox_of_l1_in_the_box() -> None:
    x = torch.tensor([0.5, 0.5, 0.5, 0.95, 0.05])
    z = torch.tensor([0.8, 0.55, 0.1, 1.4, -0.3])
    assert torch.allclose(shrink(z, x, 0.1), torch.tensor([0.7, 0.5, 0.2, 1.0, 0.0]))


def test_decision_rules_keep_what_they_name() -> None:
    model, (x, y) = Linear((40,)), at_distance(Linear((40,)), "l2", 0.5, 6)
    base = EAD(beta=0.05, steps=100, search_steps=7, const=0.1)
    en, l1 = (replace(base, rule=r)(model, x, y, keys(6)) for r in ("en", "l1"))  # type: ignore[arg-type]
    assert (base.elastic(en - x) <= base.elastic(l1 - x)).all()
    assert (NORMS["l1"].distance(l1 - x) <= NORMS["l1"].distance(en - x)).all()
    assert not torch.equal(en, l1)


def test_keep_largest() -> None:
    d = torch.tensor([[3.0, -4.0, 1.0], [2.0, 2.0, 2.0], [1.0, 0.0, -5.0]])
    assert keep_largest(d, torch.tensor([2.0, 1.0, 0.0])).tolist() == [[3, -4, 0], [2, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(8))
def test_salient_pair_is_the_best_of_all_pairs(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(20, 12, generator=g), torch.randn(20, 12, generator=g)
    a, b = (a.round(), b.round()) if seed % 2 else (a, b - 2 * a)
    allowed = torch.rand(20, 12, generator=g) > 0.3
    alpha, beta = a[:, :, None] + a[:, None], b[:, :, None] + b[:, None]
    fits = (alpha > 0) & (beta < 0) & allowed[:, :, None] & allowed[:, None] & ~torch.eye(12, dtype=torch.bool)
    best = torch.where(fits, -alpha * beta, 0).flatten(1).amax(1)
    pair, found = salient_pair(a, b, allowed)
    assert torch.equal(found, best > 0)
    assert torch.allclose((-a.gather(1, pair).sum(1) * b.gather(1, pair).sum(1))[found], best[found])
    assert allowed.gather(1, pair)[found].all() and (pair[:, 0] != pair[:, 1])[found].all()


def test_sparse_step_is_the_papers_loop() -> None:
    g = torch.Generator().manual_seed(0)
    z, w = torch.rand(9, 7, generator=g, dtype=torch.float64), torch.randn(9, 7, generator=g, dtype=torch.float64)
    anchor = z + 0.3 * w
    moved = sparse_step(z, w, anchor)
    for i in range(9):
        p = z[i].clone()
        for d in w[i].abs().argsort(descending=True):
            p[d] = (p[d] + (w[i] @ (anchor[i] - p)).clamp_min(0) / w[i, d]).clamp(0, 1)
        assert torch.allclose(moved[i], p)


# --- DeepFool and the attacks of the thesis --------------------------------------------------------------------------


class Planes(nn.Module):
    """Logits W x + b of four classes."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(4, 10, generator=g, dtype=torch.float64))
        # The runner-up logit (class 1) belongs to a flat boundary far away, the nearest boundary to a steep one.
        with torch.no_grad():
            self.weight[1] = self.weight[0] + 0.01 * self.weight[1]
        self.bias = nn.Parameter(torch.tensor([1.0, 0.9, 0.0, 0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T + self.bias


def test_deepfool_takes_the_nearest_boundary_in_steps_of_the_clip() -> None:
    model, x, y = Planes(), torch.full((2, 10), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    w = model.weight[1:] - model.weight[0]
    distance = ((model.bias[0] - model.bias[1:]) / w.norm(dim=1)).detach()
    nearest = int(distance.argmin()) + 1
    assert nearest != int(model(x)[0, 1:].argmax()) + 1
    assert torch.equal(closest_target(model, x, y), torch.full((2,), nearest))
    shortest = float(distance.min())
    with frozen_eval(model):
        r, done = DeepFool().displacement(model, x, y)
        assert done.all() and torch.allclose(r.norm(dim=1), torch.tensor(1.02 * shortest).double(), rtol=1e-2)
        for steps in (1, 2):
            clipped = DeepFool(steps=steps, max_step=shortest / 2.5, overshoot=0)
            r, done = clipped.displacement(model, x, y)
            assert not done.any()
            assert torch.allclose(r.norm(dim=1), torch.tensor(steps * shortest / 2.5).double())


def test_displacement_may_leave_the_box_and_the_attack_may_not() -> None:
    model = Linear((10,))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([10.0] + [1.0] * 9))
    x = torch.full((1, 10), 0.5)
    with torch.no_grad():
        model.bias.fill_(-(x[0] @ model.weight).item() - 6)  # most of it along the first pixel
    y = model(x).argmax(1)
    free_form = DeepFool(box=False)
    with frozen_eval(model):
        r, done = free_form.displacement(model, x, y)
    assert done.all() and (x + r).max() > 1.02
    assert torch.equal(free_form(model, x, y), x)  # clipped, it fools nobody
    z = DeepFool()(model, x, y)
    assert (model(z).argmax(1) != y).all() and z.max() <= 1


def test_relative_robustness_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    r = torch.tensor([[0.0, 1.0], [1.0, 0.0], [5.0, 0.0]])
    assert relative_robustness(r, x).item() == pytest.approx((0.2 + 0.5) / 2)
    assert relative_robustness(r, x, torch.tensor([True, False, True])).item() == pytest.approx(0.2)
    assert relative_robustness(r, x, torch.zeros(3, dtype=torch.bool)).isnan()


def test_confidence_step_reaches_the_linearised_goal_and_is_differentiable() -> None:
    log_p = torch.tensor([-3.0, -1.0], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[3.0, 4.0], [0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    confidence = torch.tensor([0.9, 0.5], dtype=torch.float64)
    step = confidence_step(log_p, w, confidence)
    d = (confidence.log() - log_p).abs()
    assert torch.allclose(step.norm(dim=1), d / w.norm(dim=1) + 1e-4, rtol=1e-6)
    assert torch.allclose(torch.nn.functional.cosine_similarity(step, w), torch.ones(2).double())
    assert torch.autograd.gradcheck(lambda a, b: confidence_step(a, b, confidence), (log_p, w))
    assert confidence_step(log_p, w, confidence, 0.1).norm(dim=1).tolist() == pytest.approx([0.1, 0.1], rel=1e-6)
    assert not confidence_step(log_p, torch.zeros(2, 2).double(), confidence).any()


@pytest.mark.parametrize("targeted", [False, True])
def test_high_confidence_needs_both_class_and_probability(targeted: bool) -> None:
    model, x = Planes(), torch.full((3, 10), 0.5, dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.long)
    goal = torch.full((3,), 3) if targeted else closest_target(model, x, y)
    lengths = []
    for confidence in (0.3, 0.6, 0.9):
        z = HighConfidence(confidence=confidence, targeted=targeted)(model, x, goal if targeted else y)
        p = model(z).softmax(1)
        assert torch.equal(p.argmax(1), goal) and (p.gather(1, goal[:, None]) >= confidence).all()
        lengths.append(float((z - x).norm(dim=1).mean()))
    assert lengths == sorted(lengths) and lengths[-1] > 1.1 * lengths[0]
    own = HighConfidence()(model, x, y)
    assert (model(own).softmax(1).amax(1) >= model(x).softmax(1).amax(1)).all()
    out_of_reach = HighConfidence(confidence=0.999, steps=2)
    assert torch.equal(out_of_reach(model, x, y), x)


def test_closest_keeps_the_nearest_that_fools() -> None:
    model, (x, y) = Linear((10,)), at_distance(Linear((10,)), "l2", 0.1, 2)
    closest = BestAdversarial(model, x, y, NORMS["l2"].distance, False)
    w = model.weight.detach() / model.weight.norm()
    side = (y.float() * 2 - 1)[:, None]
    for length in (0.05, 0.3, 0.2, 0.25):
        z = x - length * side * w
        closest.update(z, model(z))
    assert torch.allclose(closest.length, torch.tensor([0.2, 0.2])) and closest.found.all()


@dataclass(frozen=True)
class Shifted(Attack):
    """Adds the same to every pixel."""

    shift: float

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return x + self.shift


class Coin(nn.Module):
    """Says class 0 in `share` of its draws where the first pixel is below 0.5, always class 1 elsewhere."""

    stochastic = True
    noise: Noise | None = None

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        assert self.noise is not None
        first = x.flatten(1)[:, :1]
        zero = (self.noise.uniform(first) < self.share) & (first < 0.5)
        return torch.cat([zero, ~zero], 1).to(x) + 0 * first


def test_a_stochastic_model_that_is_wrong_once_is_attacked_all_the_same() -> None:
    """Rows that the majority of ten draws calls right are not done; those that most draws call wrong are."""
    x, y = torch.zeros(400, 1, 2, 2), torch.zeros(400, dtype=torch.int64)
    for share, done in ((0.8, 0.006), (0.2, 0.967)):  # of P(more than 5 of 10 wrong)
        model = Coin(share)
        with noise_for(model, keys(400)):
            found = BestAdversarial(model, x, y, NORMS["l2"].distance, targeted=False).done.float().mean()
            once = BestAdversarial(model, x, y, NORMS["l2"].distance, targeted=False, votes=1).done.float().mean()
        assert abs(found - done) < 0.03 and abs(once - (1 - share)) < 0.06


def test_the_strongest_of_a_stochastic_model_is_strong_on_average() -> None:
    """The second attack moves over the edge, where every draw is wrong; the first only has luck in some draws."""
    model, x, y = Coin(0.5), torch.zeros(200, 1, 2, 2), torch.zeros(200, dtype=torch.int64)
    with noise_for(model, keys(200)):
        z = best_of([Shifted(0.3), Shifted(0.6)], model, x, y, [keys(200)] * 2)
    assert (z == 0.6).all()
    with noise_for(model, keys(200)):
        z = best_of([Shifted(0.6), Shifted(0.3)], model, x, y, [keys(200)] * 2)
    assert (z == 0.6).all()


@pytest.mark.long
def test_two_classes_and_stochastic_models_work() -> None:
    class Jitter(nn.Module):
        stochastic = True
        noise: Noise | None = None

        def forward(self, x: Tensor) -> Tensor:
            assert self.noise is not None
            return x + 0.01 * self.noise.normal(x)

    net = nn.Sequential(Jitter(), BatchNormNet(2))
    x = torch.rand(4, 1, 8, 8)
    with frozen_eval(net), torch.no_grad():
        y = net[1](x).argmax(1)
    for attack in ALL:
        quick: dict[str, Any] = (
            {"steps": 2 if isinstance(attack, CWLinf | SparseFool) else 8} if hasattr(attack, "steps") else {}
        )
        quick |= {"confidence": 0.6} if isinstance(attack, HighConfidence) else {}  # above 1/K
        z = replace(attack, eot_samples=2, **quick)(net, x, y, keys(4))
        assert z.isfinite().all() and z.min() >= 0 and z.max() <= 1
