"""APGD, FAB, Square, and what is made of them: Targeted and AutoAttack."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from victims import BatchNormNet, Linear, at_distance

from adversarial_lightning.attacks.apgd import APGD, sparse_step
from adversarial_lightning.attacks.autoattack import AutoAttack
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.gradient import ce, dlr_targeted, margin
from adversarial_lightning.attacks.core.introspection import scale_eps, threat
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, project_l1_box
from adversarial_lightning.attacks.fab import FAB, project_plane
from adversarial_lightning.attacks.pgd import PGD
from adversarial_lightning.attacks.square import Square, pattern
from adversarial_lightning.attacks.targeted import Targeted
from adversarial_lightning.evaluation.outcomes.outcome import counting

SHAPES = [(1, 8, 8), (40,)]
BUDGET = [
    *(APGD(norm=norm, eps=0.1, steps=30) for norm in ("linf", "l2")),
    APGD(norm="l1", eps=0.1, steps=100),
    APGD(norm="l1", eps=0.1, steps=50, multi_eps=True),
    APGD(norm="linf", eps=0.1, steps=20, loss="margin", random_start=False),
    APGD(norm="l2", eps=0.1, steps=20, loss="margin"),
]
MINIMUM = [
    *(FAB(norm=norm, steps=15) for norm in ("linf", "l2", "l1")),
    FAB(norm="l2", steps=10, restarts=2, search_steps=0),
]


def keyed(n: int, seed: int = 0) -> Noise:
    return Noise.keyed(seed, torch.arange(n))


def curved(classes: int = 10) -> nn.Module:
    """A victim with curvature and unlike rows."""
    g = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, classes))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * (0.3 if p.ndim == 2 else 0.1)
    return net


def victims(n: int, classes: int = 10) -> tuple[nn.Module, Tensor, Tensor]:
    net = curved(classes)
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return net, x, net(x).argmax(1)


class Jitter(nn.Module):
    stochastic, noise = True, None

    def forward(self, x: Tensor) -> Tensor:
        assert self.noise is not None
        return x + 0.01 * self.noise.normal(x)


# --- the attacks on a victim with a known optimum --------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("attack", BUDGET, ids=lambda a: f"{a.norm}-{a.loss}-{a.multi_eps}")
def test_apgd_finds_the_optimum(attack: APGD, shape: tuple[int, ...], batch: int, targeted: bool) -> None:
    model, attack = Linear(shape), replace(attack, targeted=targeted)
    for distance, found in ((0.1 / 1.03, True), (0.103, False)):
        x, y = at_distance(model, attack.norm, distance, batch)
        z = attack(model, x, 1 - y if targeted else y, keyed(batch))
        assert ((model(z).argmax(1) != y) == found).all()
        assert (NORMS[attack.norm].distance(z.double() - x.double()) <= 0.1 * (1 + 1e-6) + 6e-8).all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("attack", MINIMUM, ids=lambda a: f"{a.norm}-{a.restarts}")
def test_fab_is_within_two_percent_of_the_optimum(
    attack: FAB, shape: tuple[int, ...], batch: int, targeted: bool
) -> None:
    model, attack = Linear(shape, dtype=torch.float64), replace(attack, targeted=targeted)
    x, y = at_distance(model, attack.norm, 0.1, batch)
    z = attack(model, x, 1 - y if targeted else y, keyed(batch))
    assert (model(z).argmax(1) != y).all()
    length = NORMS[attack.norm].distance(z - x)
    assert (length >= 0.1).all() and (length < 0.102).all()
    done = attack(model, x, y if targeted else 1 - y, keyed(batch))
    assert torch.equal(done, x)  # adversarial already


@pytest.mark.parametrize(
    "shape,norm,factor,targeted",
    [
        ((1, 8, 8), "linf", 1.05, False),
        ((40,), "linf", 1.05, True),
        ((1, 8, 8), "l2", 1.5, True),
        ((40,), "l2", 1.5, False),
        ((1, 8, 8), "l1", 3.0, False),
        ((40,), "l1", 3.0, True),
    ],
)
def test_square_needs_little_more_than_the_optimum(
    shape: tuple[int, ...], norm: str, factor: float, targeted: bool
) -> None:
    """Windows of one sign fit linf; those of l2 and l1 are patterns that a random direction hardly resembles."""
    model = Linear(shape)
    for distance, found in ((0.1 / factor, True), (0.103, False)):
        attack = Square(norm=norm, eps=0.1, queries=800 if found else 100, targeted=targeted)  # type: ignore[arg-type]
        x, y = at_distance(model, norm, distance, 3)
        z = attack(model, x, 1 - y if targeted else y, keyed(3))
        assert ((model(z).argmax(1) != y) == found).all()
        assert (NORMS[norm].distance(z.double() - x.double()) <= 0.1 * (1 + 1e-6) + 6e-8).all()


@pytest.mark.parametrize("norm,eps", [("linf", 0.03), ("l2", 0.3), ("l1", 1.5)])
def test_apgd_is_stronger_than_pgd_at_equal_steps(norm: str, eps: float) -> None:
    net, x, y = victims(64)
    mean = {}
    for name, attack in (
        ("pgd", PGD(norm=norm, eps=eps, steps=30, loss="ce")),  # type: ignore[arg-type]
        ("apgd", APGD(norm=norm, eps=eps, steps=30, loss="ce")),  # type: ignore[arg-type]
    ):
        z = attack(net, x, y, keyed(64))
        mean[name] = (ce(net(z), y).mean().item(), (net(z).argmax(1) != y).double().mean().item())
    assert mean["apgd"][0] > mean["pgd"][0] and mean["apgd"][1] >= mean["pgd"][1], mean
    assert 0 < mean["apgd"][1] < 1  # the radius tells attacks apart


def test_apgd_prefers_points_that_fool_to_higher_loss() -> None:
    """A scripted landscape: the loss rises with every look; the third fools row 0, the second nearly row 1."""
    x = torch.full((3, 4), 0.5)
    seen: list[Tensor] = []

    def look(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(z)
        k = len(seen)
        return torch.randn(3, 4), torch.full((3,), float(k)), torch.tensor([2 * (k == 3), k == 2, 0])

    best, choice = APGD(eps=0.2).ascend(look, x, x, 0.2, 20)
    assert len(seen) == 21 and torch.equal(best, seen[-1])
    assert torch.equal(choice, torch.stack([seen[2][0], seen[1][1], seen[-1][2]]))


@pytest.mark.parametrize("rises", [False, True])
def test_apgd_halves_the_step_of_rows_whose_loss_does_not_rise(rises: bool) -> None:
    """Row 0 always rises and keeps its diameter as step; row 1 never does, and returns to its start at checkpoints."""
    x = torch.full((2, 1), 0.5, dtype=torch.float64)
    points: list[Tensor] = []

    def look(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points.append(z)
        k = float(len(points))
        side = 1.0 if len(points) % 2 else -1.0
        return torch.full_like(x, side), torch.tensor([k, k if rises else -k]), torch.zeros(2, dtype=torch.long)

    APGD(eps=0.2).ascend(look, x, x, 0.2, 100)
    moves = torch.stack([(b - a).abs()[:, 0] for a, b in itertools.pairwise(points)])
    assert moves[-10:, 0].max() > 0.1
    assert (moves[-10:, 1].max() > 0.1) == rises


def test_sparse_steps_stay_long_where_the_first_checkpoint_finds_few_pixels() -> None:
    """Nothing is better than the start, which differs in one pixel of 20: on from there, and by the whole radius."""
    x = torch.full((1, 20), 0.5, dtype=torch.float64)
    start = x.index_fill(1, torch.tensor([3]), 0.6)
    gradient = torch.linspace(1, 2, 20, dtype=torch.float64)[None]
    points: list[Tensor] = []

    def look(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points.append(z)
        return gradient, torch.tensor([-float(len(points))]), torch.zeros(1, dtype=torch.long)

    APGD("l1", 0.2).ascend(look, x, start, 0.2, 100)
    step = torch.zeros_like(x).index_fill(1, torch.tensor([19]), 0.2)  # on one pixel: two thirds of one, at least one
    assert torch.allclose(points[5], x + project_l1_box(start + step - x, x, 0.2))


def test_apgd_with_eot_survives_a_gradient_that_is_right_only_on_average() -> None:
    inner = Linear((30,))

    class Wild(Jitter):
        def forward(self, x: Tensor) -> Tensor:
            assert self.noise is not None
            return x * (1 + 20 * self.noise.normal(x))

    x, y = at_distance(inner, "l2", 0.05, 8)
    model = nn.Sequential(Wild(), inner)
    few = APGD(norm="l2", eps=0.1, steps=3, loss="margin", random_start=False)
    gain = [margin(inner(a(model, x, y, keyed(8))), y).mean() for a in (few, replace(few, eot_samples=300))]
    assert gain[1] > gain[0]


@pytest.mark.parametrize("attack", [APGD(steps=5), APGD("l1", 3.0, steps=5), FAB(steps=5), Square(queries=20)])
def test_nothing_that_is_not_finite_comes_out(attack: Attack) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1)
            root = (s - 0.5).clamp_min(0).sqrt().sum(1)  # gradient inf * 0 below 0.5
            return torch.stack([root, s.sum(1), torch.where(s[:, 0] > 0.6, torch.nan, s[:, 0])], 1)

    x, y = torch.rand(8, 1, 4, 4).round(decimals=1), torch.arange(8) % 2
    assert attack(Broken(), x, y, keyed(8)).isfinite().all()


# --- the parts -------------------------------------------------------------------------------------------------------


def test_targeted_dlr_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0, -7.0]])
    assert torch.allclose(dlr_targeted(logits, torch.tensor([0]), torch.tensor([2])), torch.tensor([-3 / 3.5]))
    assert torch.allclose(dlr_targeted(logits, torch.tensor([1]), torch.tensor([0])), torch.tensor([2 / 3.5]))
    with pytest.raises(ValueError, match="4 classes"):
        dlr_targeted(logits[:, :3], torch.tensor([0]), torch.tensor([2]))


def test_l1_projection_with_the_box_is_the_nearest_point() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(30, 12, generator=g, dtype=torch.float64)
    x[:, :3] = x[:, :3].round()
    d = torch.randn(30, 12, generator=g, dtype=torch.float64)
    eps = 0.9
    p = project_l1_box(d, x, eps)
    assert (p.abs().sum(1) <= eps + 1e-12).all() and (x + p >= -1e-12).all() and (x + p <= 1 + 1e-12).all()
    for seed in range(200):  # <d - p, v - p> <= 0 for all feasible v, and only at the projection
        v = NORMS["l1"].random(d, eps, keyed(30, seed))
        v = (x + v * (eps / v.abs().sum(1))[:, None]).clamp(0, 1) - x
        assert (((d - p) * (v - p)).sum(1) <= 1e-9).all()
    small = 1e-3 * d
    inside = (x + small).clamp(0, 1) - x
    assert torch.allclose(project_l1_box(small, x, eps), inside)
    assert not project_l1_box(d, x, 0.0).any()
    # On the sphere, where projecting on ball and box in turn is not.
    assert torch.allclose(p.abs().sum(1), torch.full((30,), eps, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_hyperplane_projection_is_the_shortest_step(norm: str) -> None:
    """Against bisection on the multiplier (linf, l2) and linear programming (l1)."""
    from scipy.optimize import linprog

    g = torch.Generator().manual_seed(0)
    z, w = torch.rand(20, 9, generator=g, dtype=torch.float64), torch.randn(20, 9, generator=g, dtype=torch.float64)
    z[:, 0], w[:, 1] = z[:, 0].round(), 0
    c = torch.randn(20, generator=g, dtype=torch.float64)
    d = project_plane(z, w, c, norm)  # type: ignore[arg-type]
    assert (z + d >= -1e-12).all() and (z + d <= 1 + 1e-12).all()
    reach = torch.where((w > 0) == (c[:, None] > 0), z, 1 - z) * w.abs()
    possible = reach.sum(1) > c.abs()
    assert possible.any() and not possible.all()
    assert torch.allclose((w * d).sum(1)[possible], -c[possible])
    assert torch.allclose((w * d).sum(1).abs(), torch.minimum(reach.sum(1), c.abs()))  # else as far as the box lets
    length = NORMS[norm].distance(d)
    for i in possible.nonzero()[:, 0].tolist():
        slope, room = w[i].abs(), reach[i] / w[i].abs().clamp_min(1e-30)
        if norm == "l1":
            answer = linprog(
                [1] * 9, A_eq=[slope.tolist()], b_eq=[abs(c[i].item())], bounds=[(0, r) for r in room.tolist()]
            )
            best = answer.fun
        else:
            low, high = 0.0, 1e6
            for _ in range(100):
                t = (low + high) / 2
                step = torch.minimum(t * (slope if norm == "l2" else (slope > 0).double()), room)
                low, high = (t, high) if (slope * step).sum() < c[i].abs() else (low, t)
            best = NORMS[norm].distance(step[None]).item()
        assert abs(length[i].item() - best) < 1e-9
    assert not project_plane(z, torch.zeros_like(w), c, norm).any()  # type: ignore[arg-type]


def test_sparse_steps_move_the_largest_entries() -> None:
    step = sparse_step(torch.tensor([[1.0, -4.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0]]), torch.tensor([2, 3]))
    assert step.tolist() == [[0, -0.5, 0.5, 0], [0, 0, 0, 0]]


def test_square_patterns() -> None:
    eta = pattern(5, 5, torch.zeros((), dtype=torch.float64))
    assert (eta[:2] > 0).all() and (eta[2:] < 0).all()
    assert eta[1, 2] == eta.max() and eta[3, 2] == eta.min()
    assert pattern(1, 6, torch.zeros(())).shape == (1, 6) and pattern(1, 1, torch.zeros(())).abs().item() == 1


def test_square_in_l1_is_steeper_and_projects_what_it_overfills() -> None:
    x, attack = torch.full((2, 2, 10, 10), 0.5, dtype=torch.float64), Square("l1", 1.0)
    tile = attack.tile(5, 5, x)
    assert tile.abs().sum() == pytest.approx(1)
    assert torch.allclose(tile[1, 2] / tile[0, 0], torch.tensor((1 + 2**-4 + 3**-4) / 3**-4).double())
    # From the image itself each channel gets a pattern as long as the radius; of both together the largest are kept.
    d = attack.change(x, x, (5, 5), keyed(2)) - x
    assert torch.allclose(d.abs().sum((1, 2, 3)), torch.ones(2).double()) and ((d != 0).sum((1, 2, 3)) < 30).all()
    far = replace(attack, eps=300.0)  # the start is not stretched: 25 patterns in each channel
    assert torch.allclose((far.start(x, keyed(2)) - x).abs().sum((1, 2, 3)), torch.full((2,), 50.0).double())


def test_square_windows_shrink_and_fit() -> None:
    images, flat = torch.zeros(1, 3, 28, 28), torch.zeros(1, 1, 1, 40)
    schedule = Square(queries=10_000)
    sides = [schedule.window(q, images)[0] for q in (1, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert sides == [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]  # round(28 sqrt(0.8 / 2^k))
    short = Square(queries=5000)
    assert short.window(6, images) == (18, 18) and replace(short, rescale_schedule=False).window(6, images) == (25, 25)
    assert [schedule.window(q, flat) for q in (1, 11, 9000)] == [(1, 32), (1, 16), (1, 1)]


def test_square_counts_queries_and_stops_at_success() -> None:
    model = Linear((1, 8, 8))
    x, y = at_distance(model, "linf", 0.05, 8)
    with counting(model) as passes:
        Square(eps=0.02, queries=50)(model, x, y, keyed(8))
    assert (passes.forwards, passes.backwards) == (50 * 8, 0)
    with counting(model) as passes:
        Square(eps=0.3, queries=50)(model, x, y, keyed(8))
    assert passes.forwards < 50 * 8 * 0.7


# --- rows ------------------------------------------------------------------------------------------------------------


def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack with the same parts and fewer steps: for tests of what holds at any length."""
    whole = AutoAttack.ensemble

    def shorter(attack: Attack) -> Attack:
        if isinstance(attack, Targeted):
            return replace(attack, attack=shorter(attack.attack))
        return replace(attack, queries=40) if isinstance(attack, Square) else replace(attack, steps=8)  # type: ignore[type-var]

    monkeypatch.setattr(AutoAttack, "ensemble", lambda self, classes: [shorter(a) for a in whole(self, classes)])


ROWS = [
    APGD("linf", 0.05, steps=30, loss="dlr"),
    APGD("l1", 2.0, steps=30),
    FAB("l2", steps=8, restarts=2),
    *(Square(norm, eps, queries=40) for norm, eps in (("linf", 0.1), ("l2", 0.8), ("l1", 6.0))),  # type: ignore[arg-type]
    Targeted(APGD("linf", 0.03, steps=8, loss="dlr", targeted=True)),
    Targeted(FAB("linf", steps=5, targeted=True), 4),
    Targeted(
        PGD("linf", 0.06, steps=2, step_size=0.04, targeted=True)
    ),  # row 3 falls to a later target, in another grouping
    AutoAttack("standard", "linf", 0.03),
    AutoAttack("rand", "l2", 0.2),
]


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("attack", ROWS, ids=lambda a: type(a).__name__)
def test_a_row_does_not_depend_on_its_batch(attack: Attack, stochastic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows leave the batch early, and with a model that draws."""
    short_autoattack(monkeypatch)
    net, x, y = victims(7)
    model = nn.Sequential(Jitter(), net) if stochastic else net
    index = torch.arange(10, 17)
    whole = attack(model, x, y, Noise.keyed(5, index))
    assert (whole != x).any() if stochastic else (net(whole).argmax(1) != y).any()
    for rows in (torch.tensor([2]), torch.tensor([6, 0, 3])):
        part = attack(model, x[rows], y[rows], Noise.keyed(5, index[rows]))
        assert torch.allclose(part, whole[rows], atol=1e-9)


# --- Targeted --------------------------------------------------------------------------------------------------------


def test_targeted_takes_the_nearest_of_minimum_norm_attacks() -> None:
    net, x, y = victims(6, classes=5)
    y[5] = (y[5] + 1) % 5  # misclassified
    inner = FAB("l2", steps=10, targeted=True)
    attack = Targeted(inner)
    assert attack.kind == "minimum-norm" and Targeted(PGD(targeted=True)).kind == "budget"
    z = attack(net, x, y, keyed(6))
    each = []
    for k in range(1, 5):
        target = (y + k) % 5
        p = inner(net, x, target, keyed(6))
        each.append(torch.where(net(p).argmax(1) == target, (p - x).flatten(1).norm(dim=1), torch.inf))
    best = torch.stack(each).amin(0)
    assert torch.allclose((z - x).flatten(1).norm(dim=1)[:5], best[:5]) and torch.equal(z[5], x[5])


def test_targeted_budget_attack_stops_at_the_first_success() -> None:
    net, x, y = victims(8)
    weak = Targeted(PGD("linf", 1e-4, steps=2, targeted=True, loss="margin"), 9)
    with counting(net) as passes:
        z = weak(net, x, y, keyed(8))
    assert passes.backwards == 8 * 9 * 2 and (net(z).argmax(1) == y).all()
    strong = replace(weak, attack=replace(weak.attack, eps=0.3, steps=10))  # type: ignore[type-var]
    with counting(net) as passes:
        z = strong(net, x, y, keyed(8))
    assert passes.backwards == 8 * 10 and (net(z).argmax(1) != y).all()
    assert torch.equal(net(z).argmax(1), net(x).scatter(1, y[:, None], -torch.inf).argmax(1))
    margins = [margin(net(Targeted(weak.attack, n)(net, x, y, keyed(8))), y) for n in (1, 3, 9)]
    assert all((b >= a).all() for a, b in itertools.pairwise(margins))


def test_targeted_has_at_most_the_targets_there_are() -> None:
    model = BatchNormNet(3)
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    a = Targeted(PGD("linf", 0.1, steps=3, targeted=True), 2)
    assert torch.equal(a(model, x, y, keyed(4)), replace(a, n_targets=9)(model, x, y, keyed(4)))
    assert threat(a) == ("linf", 0.1) and threat(scale_eps(a, 0.5)) == ("linf", 0.05)


# --- AutoAttack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_autoattack_runs_the_settings_of_the_reference(norm: str) -> None:
    a = AutoAttack("standard", norm, 0.25)  # type: ignore[arg-type]
    l1 = norm == "l1"
    ce_run = APGD(norm, 0.25, 100, "ce", multi_eps=l1)  # type: ignore[arg-type]
    dlr_t = Targeted(APGD(norm, 0.25, 100, "dlr", targeted=True, multi_eps=l1), 5 if l1 else 9)  # type: ignore[arg-type]
    fab_t = Targeted(FAB(norm, 100, 0.1, 1.05, 0.9, 1, 0, targeted=True), 9)  # type: ignore[arg-type]
    square = Square(norm, 0.25, 5000, 0.8, rescale_schedule=False)  # type: ignore[arg-type]
    assert a.ensemble(10) == [*[ce_run] * (5 if l1 else 1), dlr_t, fab_t, square]
    if not l1:
        plus = replace(a, version="plus").ensemble(10)
        plain = FAB(norm, 100, 0.1, 1.05, 0.9, 5, 0)  # type: ignore[arg-type]
        assert plus == [*[ce_run] * 5, *[replace(ce_run, loss="dlr")] * 5, plain, square, dlr_t, fab_t]
    rand = replace(a, version="rand")
    eot = APGD(norm, 0.25, 100, "ce", eot_samples=20)  # type: ignore[arg-type]
    assert rand.ensemble(10) == [eot, replace(eot, loss="dlr")] and rand.eot_samples == 20
    assert threat(a) == (norm, 0.25) and threat(scale_eps(a, 2)) == (norm, 0.5)


@pytest.mark.long
def test_autoattack_finds_the_optimum_and_no_more() -> None:
    """The whole of it, once."""
    model = Linear((1, 8, 8))
    for distance, found in ((0.1 / 1.03, True), (0.103, False)):
        x, y = at_distance(model, "linf", distance, 1)
        z = AutoAttack(eps=0.1)(model, x, y, keyed(1))
        assert ((model(z).argmax(1) != y) == found).all()
        assert ((z - x).abs() <= 0.1 * (1 + 1e-6) + 6e-8).all() and not torch.equal(z, x)


@pytest.mark.long
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("norm,eps", [("linf", 0.03), ("l2", 0.25), ("l1", 1.5)])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_autoattack_goes_on_with_survivors_only(
    version: str, norm: str, eps: float, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (version, norm) == ("plus", "l1"):
        return
    short_autoattack(monkeypatch)
    net, x, y = victims(12, classes)
    y[3] = (y[3] + 1) % classes  # misclassified
    seen: list[int] = []
    call = Attack.__call__

    def counted(self: Attack, model: nn.Module, x: Tensor, y: Tensor, noise: Noise | None = None) -> Tensor:
        if not isinstance(self, AutoAttack) and not getattr(self, "targeted", False):
            seen.append(len(x))
        return call(self, model, x, y, noise)

    monkeypatch.setattr(Attack, "__call__", counted)
    a = AutoAttack(version, norm, eps)  # type: ignore[arg-type]
    z = a(net, x, y, keyed(12))
    assert torch.equal(z[3], x[3])
    assert (NORMS[norm].distance(z - x) <= eps * (1 + 1e-6)).all()
    assert seen[0] == 11 and all(b <= a for a, b in itertools.pairwise(seen))
    correct = torch.arange(12)[torch.arange(12) != 3]
    first = a.ensemble(classes)[0](net, x[correct], y[correct], keyed(12).fork(0)[correct])
    left = int((net(first).argmax(1) == y[correct]).sum())
    assert seen[1] == (left or 11) and left < 11  # without survivors the second call is the one above
    assert torch.equal(scale_eps(a, 0.0)(net, x, y, keyed(12)), x)


def test_autoattack_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    short_autoattack(monkeypatch)
    model = BatchNormNet(5)
    model.train()
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    buffers, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with torch.inference_mode():
        x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        for attack in (AutoAttack(eps=0.05), AutoAttack("plus", "l2", 0.3), AutoAttack("rand", "l1", 1.0)):
            z = attack(model, x, torch.arange(4), keyed(4))
            assert z.dtype == x.dtype and not z.requires_grad and z.min() >= 0 and z.max() <= 1
    assert torch.equal(state, torch.get_rng_state()) and all(m.training for m in model.modules())
    assert all(p.requires_grad and (p.grad == 3).all() for p in model.parameters())
    assert all(torch.equal(v, buffers[k]) for k, v in model.state_dict().items())
