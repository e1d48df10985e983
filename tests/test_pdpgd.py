"""PDGD and PDPGD against closed forms, and the proximal operators against brute force."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import Linear, at_distance

from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, distances
from adversarial_lightning.attacks.core.prox import (
    GroupL0Penalty,
    L0Penalty,
    L1Penalty,
    L2Penalty,
    LinfPenalty,
    Penalty,
    QuasinormPenalty,
)
from adversarial_lightning.attacks.core.prox_iterative import SumPenalty, TotalVariation
from adversarial_lightning.attacks.ddn import DDN
from adversarial_lightning.attacks.deepfool import DeepFool
from adversarial_lightning.attacks.pdpgd import PDGD, PDPGD
from adversarial_lightning.attacks.pgd import PGD
from adversarial_lightning.attacks.step_size_search import choose_step_size

# --- proximal operators ----------------------------------------------------------------------------------------------

CONVEX: list[tuple[Penalty, Callable[[Tensor], Tensor]]] = [
    (LinfPenalty(), lambda u: u.flatten(1).abs().amax(1)),
    (L2Penalty(), lambda u: u.flatten(1).norm(dim=1)),
    (L1Penalty(), lambda u: u.flatten(1).abs().sum(1)),
]
SPARSE: list[tuple[Penalty, Callable[[Tensor], Tensor]]] = [
    (L0Penalty(), lambda u: (u != 0).sum(1).to(u)),
    (QuasinormPenalty("2/3"), lambda u: (u.abs() ** (2 / 3)).sum(1)),
    (QuasinormPenalty("1/2"), lambda u: (u.abs() ** 0.5).sum(1)),
    (GroupL0Penalty(), lambda u: (u != 0).any(1).to(u)),
]
NAMES = ["linf", "l2", "l1", "l0", "q23", "q12", "group"]


def cost(phi: Callable[[Tensor], Tensor], u: Tensor, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
    return weight * phi(u) + 0.5 * (metric * (u - v) ** 2).sum(1)


@pytest.mark.parametrize("penalty,phi", CONVEX + SPARSE, ids=NAMES)
@pytest.mark.parametrize("flat", [True, False], ids=["euclidean", "metric"])
def test_prox_is_the_argmin_on_a_grid(penalty: Penalty, phi: Callable[[Tensor], Tensor], flat: bool) -> None:
    """Two entries, all points of a grid that holds the axes."""
    g = torch.Generator().manual_seed(1)
    v = torch.randn(40, 2, generator=g, dtype=torch.float64).clamp(-2.9, 2.9)
    metric = torch.ones_like(v) if flat else 0.2 + 3 * torch.rand(40, 2, generator=g, dtype=torch.float64)
    weight = 1.5 * torch.rand(40, generator=g, dtype=torch.float64)
    u = penalty.prox(v, weight, metric)
    axis = torch.arange(-150, 151, dtype=torch.float64) / 50  # holds 0 exactly
    grid = torch.cartesian_prod(axis, axis)
    for row in range(40):
        many = [t[row : row + 1] for t in (v, weight, metric)]
        least = cost(phi, grid, *many).min()
        assert cost(phi, u[row : row + 1], *many) <= least + 1e-9
        assert least - cost(phi, u[row : row + 1], *many) < 0.02  # the grid is fine enough to tell


@pytest.mark.parametrize("penalty,phi", CONVEX, ids=NAMES[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prox_splits_a_point_in_two(penalty: Penalty, phi: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Moreau: v - prox(v) is the projection on the dual ball; firmly non-expansive; exact at both ends of mu."""
    g = torch.Generator().manual_seed(0)
    v, w = torch.randn(2, 30, 1, 5, 5, generator=g, dtype=dtype)
    mu, one = 0.01 + 3 * torch.rand(30, generator=g, dtype=dtype), torch.ones_like(v)
    u = penalty.prox(v, mu, one)
    dual = {"LinfPenalty": "l1", "L2Penalty": "l2", "L1Penalty": "linf"}[type(penalty).__name__]
    projected = torch.cat([NORMS[dual].project(v[i : i + 1], mu[i].item()) for i in range(30)])
    assert torch.allclose(u + projected, v, atol=1e-5 if dtype == torch.float32 else 1e-10)
    other = penalty.prox(w, mu, one)
    assert (((u - other) * (v - w)).flatten(1).sum(1) >= (u - other).flatten(1).square().sum(1) - 1e-5).all()
    assert torch.allclose(penalty.prox(v, mu * 1e-9, one), v, atol=1e-6)
    assert not penalty.prox(v, mu * 1e4, one).any() and not penalty.prox(v * 0, mu, one).any()


@pytest.mark.parametrize("penalty", [p for p, _ in CONVEX + SPARSE], ids=NAMES)
def test_prox_never_fails_on_extreme_numbers(penalty: Penalty) -> None:
    """Zero gradients leave Adam with a metric of 1e-8, large ones with 1e4; nothing may grow, flip sign or be NaN."""
    v = torch.tensor([0.0, 1e-30, -1e-8, 0.3, -1.0]).repeat(5, 1, 1).mT.reshape(5, 5, 1)
    for metric in (1e-8, 1.0, 1e4):
        for weight in (0.0, 1e-10, 1e-3, 1e6):
            u = penalty.prox(v, torch.full((5,), weight), torch.full_like(v, metric))
            assert u.isfinite().all() and (u.abs() <= v.abs() + 1e-7).all() and (u * v >= 0).all()


def test_l2_prox_is_stationary_in_a_stiff_metric() -> None:
    g = torch.Generator().manual_seed(0)
    v = torch.randn(20, 30, generator=g, dtype=torch.float64)
    metric = 10 ** (6 * torch.rand(20, 30, generator=g, dtype=torch.float64) - 3)
    for weight in (1e-3, 1.0, 30.0):
        u = L2Penalty().prox(v, torch.full((20,), weight, dtype=torch.float64), metric)
        slope = weight * u / u.norm(dim=1, keepdim=True) + metric * (u - v)
        assert (slope.norm(dim=1) <= 1e-7 * (metric * v).norm(dim=1)).all()


def test_group_rules() -> None:
    """The example that tells them apart: both channels together are worth keeping, each alone is not."""
    v, mu, one = torch.ones(1, 2, 1, 1), torch.tensor([0.9]), torch.ones(1, 2, 1, 1)
    assert torch.equal(GroupL0Penalty().prox(v, mu, one), v)
    assert not GroupL0Penalty("max").prox(v, mu, one).any()
    d = torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]]]])
    assert GroupL0Penalty().distance(d).tolist() == [1] and L0Penalty().distance(d).tolist() == [2]


def test_total_variation() -> None:
    """Of the argmin no neighbour is better; a constant costs nothing; one edge sinks by mu / (pixels of its side)."""
    tv = TotalVariation(iterations=400)
    g = torch.Generator().manual_seed(0)
    v = torch.randn(3, 1, 6, 6, generator=g, dtype=torch.float64)
    mu, one = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64), torch.ones_like(v)

    def value(u: Tensor) -> Tensor:
        return mu * tv.distance(u) + 0.5 * (u - v).flatten(1).square().sum(1)

    u = tv.prox(v, mu, one)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            assert (value(u + size * torch.randn(v.shape, generator=g, dtype=torch.float64)) >= value(u) - 1e-6).all()
        assert (value(u + size * (v - u)) >= value(u) - 1e-6).all()
    assert torch.allclose(tv.prox(one, mu, one), one)
    edge = torch.zeros(1, 1, 2, 6, dtype=torch.float64)
    edge[..., 3:] = 1
    flat = tv.prox(edge, torch.tensor([0.3], dtype=torch.float64), torch.ones_like(edge))
    assert torch.allclose(flat, (edge - 0.5).sign() * 0.4 + 0.5, atol=1e-3)  # each half of 2 x 3 moves 0.3 * 2 / 6
    scaled = tv.prox(edge, torch.tensor([0.6], dtype=torch.float64), torch.full_like(edge, 2))
    assert torch.allclose(scaled, flat, atol=1e-3)
    with pytest.raises(ValueError, match="images"):
        tv.prox(torch.zeros(1, 4), torch.ones(1), torch.ones(1, 4))


def test_sum_composes_exactly_where_it_can() -> None:
    g = torch.Generator().manual_seed(0)
    v = torch.randn(5, 2, generator=g, dtype=torch.float64)
    both = SumPenalty([L1Penalty(), L2Penalty()], [0.5, 2.0])
    weight = torch.full((5,), 0.2, dtype=torch.float64)
    u = both.prox(v, weight, torch.ones_like(v))
    axis = torch.arange(-300, 301, dtype=torch.float64) / 100
    grid = torch.cartesian_prod(axis, axis)
    for row in range(5):
        many = v[row : row + 1], weight[:1], torch.ones(1, 2)
        assert cost(both.distance, u[row : row + 1], *many) <= cost(both.distance, grid, *many).min() + 1e-9
    with pytest.raises(ValueError, match="weights"):
        SumPenalty([L1Penalty()], [1.0, 2.0])


# --- the attacks on a victim with a known optimum --------------------------------------------------------------------

STRONG = {"steps": 100, "restarts": 2, "finetune": 100}
EXACT = [
    (PDGD(steps=200), 1.02),
    (PDGD(steps=100, step_size=0.1), 1.02),
    (PDGD(**STRONG, runners_up=2), 1.02),  # type: ignore[arg-type]
    (PDGD(steps=200, surrogate="softplus"), 1.04),
    (PDPGD("linf", steps=300), 1.02),
    (PDPGD("linf", **STRONG), 1.02),  # type: ignore[arg-type]
    (PDPGD("l2", steps=200), 1.02),
    (PDPGD("l1", steps=200), 1.02),
    (PDPGD("l1", **STRONG), 1.02),  # type: ignore[arg-type]
]


@pytest.mark.long
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("shape,batch", [((1, 8, 8), 1), ((1, 8, 8), 8), ((40,), 3)], ids=str)
@pytest.mark.parametrize("attack,limit", EXACT, ids=lambda a: f"{type(a).__name__}-{getattr(a, 'norm', a)}")
def test_reaches_the_closed_form(
    attack: PDGD | PDPGD, limit: float, shape: tuple[int, ...], batch: int, targeted: bool
) -> None:
    model = Linear(shape)
    x, y = at_distance(model, attack.norm, 0.1, batch)
    attack = replace(attack, targeted=targeted, runners_up=0 if targeted else attack.runners_up)
    z = attack(model, x, 1 - y if targeted else y, Noise.keyed(0, torch.arange(batch)))
    assert (model(z).argmax(1) == 1 - y).all()
    found = NORMS[attack.norm].distance(z - x) / 0.1
    assert (found >= 1 - 1e-4).all() and found.mean() <= limit, found


@pytest.mark.parametrize("penalty", [None, L0Penalty(), QuasinormPenalty("1/2"), GroupL0Penalty()], ids=str)
def test_l0_comes_within_one_entry_of_the_optimum(penalty: Penalty | None) -> None:
    """Greedy is optimal on a linear victim: the entries with the largest possible gain, each moved to the box."""
    model = Linear((2, 5, 5) if isinstance(penalty, GroupL0Penalty) else (40,))
    x, y = at_distance(model, "l2", 0.3, 8)
    z = PDPGD("l0", penalty=penalty, steps=150, restarts=2)(model, x, y, Noise.keyed(0, torch.arange(8)))
    assert (model(z).argmax(1) != y).all()
    side = (2 * y - 1)[:, None] * model.weight.detach()
    gain = (side * x.flatten(1)).maximum(side * (x.flatten(1) - 1)).view_as(x)
    if isinstance(penalty, GroupL0Penalty):
        gain = gain.sum(1)
    need = (x.flatten(1) @ model.weight).abs().detach()
    best = (gain.flatten(1).sort(1, descending=True).values.cumsum(1) < need[:, None]).sum(1) + 1
    count = ((z - x) != 0).any(1) if isinstance(penalty, GroupL0Penalty) else (z - x) != 0
    found = count.flatten(1).sum(1)
    assert (found >= best).all() and (found <= best + 1).all(), (found, best)


@dataclass(frozen=True)
class Unmatched(Penalty):
    """l1 with a prox that ignores Adam's metric."""

    def distance(self, d: Tensor) -> Tensor:
        return NORMS["l1"].distance(d)

    def prox(self, v: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        return L1Penalty().prox(v, weight, torch.ones_like(v))


def test_the_metric_of_the_prox_matters() -> None:
    """Why the prox must know Adam's metric: without it the game settles elsewhere."""
    model = Linear((1, 8, 8))
    x, y = at_distance(model, "l1", 0.1, 8)
    lengths = [
        NORMS["l1"].distance(PDPGD("l1", penalty=p, steps=200)(model, x, y) - x).mean() for p in (None, Unmatched())
    ]
    assert lengths[1] > 1.05 * lengths[0]


@pytest.mark.long
def test_total_variation_makes_smooth_perturbations() -> None:
    model = Linear((1, 8, 8))
    x, y = at_distance(model, "l2", 0.3, 4)
    smooth = SumPenalty([TotalVariation(10), L2Penalty()], [1.0, 0.1])
    results = [PDPGD("l2", penalty=p, steps=60, step_size=0.3)(model, x, y) for p in (None, smooth)]
    assert all((model(z).argmax(1) != y).all() for z in results)
    variation = [TotalVariation().distance(z - x).mean() for z in results]
    assert variation[1] < 0.8 * variation[0]


# --- the attacks on a victim with curvature --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curved() -> tuple[nn.Module, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 30), nn.Tanh(), nn.Linear(30, 4)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * (0.4 if p.ndim > 1 else 0.1))
    x = torch.rand(24, 1, 6, 6, generator=g, dtype=torch.float64)
    return net, x, net(x).argmax(1).detach()


ALL = [PDGD(), PDPGD("linf"), PDPGD("l1"), PDPGD("l0")]
IDS = ["l2", "linf", "l1", "l0"]


@pytest.mark.long
@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_few_steps_still_make_an_attack(attack: PDGD | PDPGD, curved: tuple[nn.Module, Tensor, Tensor]) -> None:
    """At 100 steps at most 1.15 times the length of 500, and more steps are not worse."""
    net, x, y = curved
    means = []
    for steps in (30, 100, 500):
        z = replace(attack, steps=steps)(net, x, y)
        assert (net(z).argmax(1) != y).all()
        means.append(distances(z - x)[attack.norm].double().mean().item())
    assert means[1] <= 1.15 * means[2] and means[2] <= 1.01 * means[1] and means[1] <= 1.02 * means[0], means


@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_further_runs_never_lengthen(attack: PDGD | PDPGD, curved: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = curved
    noise = Noise.keyed(0, torch.arange(len(x)))
    one = replace(attack, steps=40)
    variants = [one, replace(one, restarts=3), replace(one, restarts=3, finetune=40)]
    lengths = [distances(a(net, x, y, noise) - x)[attack.norm] for a in variants]
    assert (lengths[1] <= lengths[0]).all() and (lengths[1] < lengths[0]).any()
    assert (lengths[2] <= lengths[1]).all()
    if attack.norm != "l0":  # counts leave no room for fine tuning
        assert (lengths[2] < lengths[1]).any()
    aimed = distances(replace(one, restarts=3, runners_up=9)(net, x, y, noise) - x)[attack.norm]
    assert (aimed <= lengths[0]).all() and (aimed != lengths[1]).any()


@pytest.mark.parametrize("attack", [PDGD(steps=60), PDPGD("linf", steps=60), PDPGD("l1", steps=60)], ids=IDS[:3])
def test_rho_reaches_its_balance_in_few_steps(attack: PDGD | PDPGD) -> None:
    """60 steps of 0.1 would not take rho from 0.01 to the dual length of this victim's weights, about 50 in linf."""
    model = Linear((1, 8, 8))
    x, y = at_distance(model, attack.norm, 0.1, 8)
    found = NORMS[attack.norm].distance(attack(model, x, y) - x) / 0.1
    assert found.mean() <= 1.15, found


@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_restarts_draw_from_the_noise(attack: PDGD | PDPGD, curved: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = curved
    one, two, again = (replace(attack, steps=20, restarts=2)(net, x, y, Noise.keyed(s, y)) for s in (0, 1, 0))
    assert torch.equal(one, again) and not torch.equal(one, two)
    one, two = (replace(attack, steps=20)(net, x, y, Noise.keyed(s, y)) for s in (0, 1))
    assert torch.equal(one, two)  # the first run starts at the image


@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_gradients_that_are_no_numbers_move_nothing(attack: PDGD | PDPGD) -> None:
    x, y = at_distance(Linear((40,)), "l2", 0.1, 4)

    class Kinked(Linear):  # one entry's gradient is NaN at the image
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z) + 0 * (z[:, :1] - x[:, :1]).abs().sqrt()

    z = replace(attack, steps=100)(Kinked((40,)), x, y)
    assert (Linear((40,))(z).argmax(1) != y).all()


@pytest.mark.parametrize("attack", ALL, ids=IDS)
def test_rows_that_need_or_allow_no_attack_stay(attack: PDGD | PDPGD) -> None:
    model = Linear((1, 8, 8))
    x, y = at_distance(model, "l2", 0.1, 6)
    y[::2] = 1 - y[::2]  # misclassified
    z = replace(attack, steps=60)(model, x, y)
    assert torch.equal(z[::2], x[::2]) and (z[1::2] != x[1::2]).flatten(1).any(1).all()
    z = replace(attack, steps=5, targeted=True)(model, x, torch.full_like(y, 2))  # class 2 is out of reach
    assert torch.equal(z, x)

    class Masked(nn.Module):  # no gradient, then no number
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1) * 0 + 2, x.flatten(1).sum(1) * self.value], 1)

    for value in (0.0, float("nan")):
        assert torch.equal(replace(attack, steps=5, restarts=2)(Masked(value), x, torch.zeros_like(y)), x)


# --- the step size ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [PDGD(steps=20), PDPGD("l1", steps=20), DDN(steps=20)], ids=lambda a: a.norm)
def test_the_step_size_that_finds_most_and_nearest_is_chosen(
    attack: PDGD | PDPGD | DDN, curved: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = curved
    y = torch.where(torch.arange(len(y)) < 6, (y + 1) % 4, y)  # these need no attack, and no step size does them better
    noise, grid = Noise.keyed(0, torch.arange(len(x))), (1e-4, 0.05, 0.5, 5.0)
    chosen, reached = choose_step_size(attack, net, x, y, noise, grid)
    assert list(reached) == list(grid) and chosen == replace(attack, step_size=chosen.step_size)
    for size, (share, mean) in reached.items():
        z = replace(attack, step_size=size)(net, x[6:], y[6:], noise[slice(6, None)])
        found = net(z).argmax(1) != y[6:]
        length = distances(z - x[6:])[attack.norm][found].mean().item()
        assert share == found.double().mean().item() and mean == pytest.approx(length, nan_ok=True)
    assert reached[1e-4][0] < 1 or isinstance(
        attack, DDN
    )  # too short to arrive, and so never chosen, near as the few it finds may be
    whole = {size: mean for size, (share, mean) in reached.items() if share == 1}
    assert chosen.step_size == min(whole, key=lambda size: whole[size])


@pytest.mark.parametrize(
    "attack,labels,grid,says",
    [
        (PGD(), "right", (0.1,), "PGD is no minimum-norm attack"),
        (DeepFool(), "right", (0.1,), "DeepFool is no minimum-norm attack with a step_size"),
        (PDGD(targeted=True), "right", (0.1,), "untargeted"),
        (PDGD(), "right", (), "grid"),
        (PDGD(), "wrong", (0.1,), "wrong about all"),
    ],
)
def test_nothing_to_choose_is_said(attack: Any, labels: str, grid: tuple[float, ...], says: str) -> None:
    x, y = at_distance(Linear((9,)), "l2", 0.1, 2)
    with pytest.raises(ValueError, match=says):
        choose_step_size(attack, Linear((9,)), x, y if labels == "right" else 1 - y, Noise.keyed(0, y), grid)
