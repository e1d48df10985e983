"""Attacks that see no gradients: near the optimum of a linear victim, within their budget, honest on odd models."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from victims import BatchNormNet, Linear, at_distance, fewest

from adversarial_lightning.attacks.boundary import Boundary
from adversarial_lightning.attacks.combinators import WorstOf
from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.decisions import Decisions, Majority, find_start, squares
from adversarial_lightning.attacks.core.introspection import scale_eps, threat
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, distance, distances
from adversarial_lightning.attacks.hop_skip_jump import HopSkipJump
from adversarial_lightning.attacks.one_pixel import OnePixel
from adversarial_lightning.attacks.pgd import PGD
from adversarial_lightning.attacks.rays import RayS, blocks
from adversarial_lightning.attacks.salt_pepper_search import SaltAndPepperSearch
from adversarial_lightning.attacks.transfer import CheckpointSurrogate, Surrogate, Transfer
from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.evaluation.campaign.identity import with_files
from adversarial_lightning.networks import SmallCNN

# Attacks, and how much longer than the optimum their result may be.
NEAR: list[tuple[Attack, float]] = [
    (RayS(queries=500), 1.02),
    (HopSkipJump(queries=1000, probes=50), 1.25),
    (HopSkipJump(norm="linf", queries=1000, probes=50), 1.25),
    (Boundary(queries=500), 1.25),
    (SaltAndPepperSearch(queries=300, steps=10), 2.0),
    (OnePixel(population=20, generations=10), 1.0),
]
DECISIONS = [attack for attack, _ in NEAR if not isinstance(attack, OnePixel)]
QUICK = [replace(attack, queries=120) for attack in DECISIONS]


def ids(table: list[Attack]) -> list[str]:
    return [f"{type(a).__name__}-{a.norm}" for a in table]  # type: ignore[attr-defined]


def keyed(n: int, seed: int = 0) -> Noise:
    return Noise.keyed(seed, torch.arange(n))


class NoGradients(nn.Module):
    """A model that cannot be differentiated, and counts how often it saw each image of the batch it attacks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        assert not x.requires_grad and not torch.is_grad_enabled()
        self.rows += len(x)
        return self.inner(x)


class Coin(nn.Module):
    """Two classes with a share of flipped answers: stochastic, like a randomised defense."""

    stochastic = True

    def __init__(self, inner: nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share, self.noise = inner, share, None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        flip = self.noise.uniform(logits[:, :1]) < self.share  # type: ignore[attr-defined]
        return torch.where(flip, logits[:, [1, 0, 2]], logits)


@pytest.mark.parametrize(
    "shape,batch,targeted", [((1, 8, 8), 8, True), ((40,), 3, False), ((3, 4, 4), 1, True)], ids=str
)
@pytest.mark.parametrize("attack,tolerance", NEAR, ids=ids([a for a, _ in NEAR]))
def test_near_the_optimum_without_gradients(
    attack: Attack, tolerance: float, shape: tuple[int, ...], batch: int, targeted: bool
) -> None:
    attack = replace(attack, targeted=targeted)  # type: ignore[call-arg]
    model, norm = Linear(shape), attack.norm  # type: ignore[attr-defined]
    x, y = at_distance(model, "l2" if norm == "l0" else norm, 0.1, batch)
    z = attack(NoGradients(model), x, 1 - y if targeted else y, keyed(batch))
    channels = shape[0] if len(shape) == 3 else 1  # both l0 attacks change whole pixels
    optimum = fewest(model, x) * channels if norm == "l0" else torch.full((batch,), 0.1)
    assert (model(z).argmax(1) != y).all() and z.min() >= 0 and z.max() <= 1
    length = distance(norm, z - x)
    assert (length <= optimum * tolerance + 0.5 * (norm == "l0")).all(), length / optimum
    assert (length >= (fewest(model, x) if norm == "l0" else optimum * (1 - 1e-4))).all()
    again = attack(model, x, y if targeted else 1 - y, keyed(batch))
    assert torch.equal(again, x)  # adversarial already


@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize("attack", DECISIONS, ids=ids(DECISIONS))
def test_budget_is_kept_for_each_row(attack: Attack, votes: int) -> None:
    """All rows spend all of it, no row more, whatever the others do; a row that needs no attack costs one look."""
    model = NoGradients(Linear((40,)))
    x, y = at_distance(model.inner, "l2", 0.1, 3)  # type: ignore[arg-type]
    for wrong, expected in ((False, 3 * 120), (True, 120 + 2 * votes)):
        model.rows = 0
        y = torch.where(torch.tensor([False, wrong, wrong]), 1 - y, y)
        replace(attack, queries=120, votes=votes)(model, x, y, keyed(3))  # type: ignore[call-arg]
        assert expected - 3 * (votes - 1) <= model.rows <= expected


@pytest.mark.parametrize("attack", QUICK, ids=ids(QUICK))
def test_a_row_of_a_stochastic_model_does_not_depend_on_its_batch(attack: Attack) -> None:
    inner = Linear((40,), dtype=torch.float64)
    x, y = at_distance(inner, "l2", 0.1, 5)
    y[3] = 1 - y[3]  # a row that stops at once
    attack, index = replace(attack, votes=3), torch.arange(5)  # type: ignore[call-arg]
    whole = attack(Coin(inner, 0.2), x, y, Noise.keyed(1, index))
    assert not torch.equal(whole, x)
    for rows in (torch.tensor([2]), torch.tensor([4, 3, 0])):
        part = attack(Coin(inner, 0.2), x[rows], y[rows], Noise.keyed(1, index[rows]))
        assert torch.allclose(part, whole[rows], atol=1e-12)


@pytest.mark.parametrize("attack", [*QUICK, OnePixel(population=10, generations=3)], ids=str)
def test_hopeless_rows_and_odd_logits_return_the_image(attack: Attack) -> None:
    class Always(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits = torch.tensor(logits)

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), -1)

    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 0])
    for logits in ([2.0, 0.0], [0.0, torch.nan], [0.0, torch.inf], [torch.nan, torch.nan]):
        assert torch.equal(attack(Always(logits), x, y, keyed(2)), x)


@pytest.mark.parametrize("attack", QUICK, ids=ids(QUICK))
def test_more_queries_never_hurt(attack: Attack) -> None:
    """The first queries are the same, and the nearest point is kept."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 3))
    x = torch.rand(8, 1, 8, 8)
    y, norm = net(x).argmax(1), attack.norm  # type: ignore[attr-defined]
    lengths = []
    for queries in (60, 120, 240):
        z = replace(attack, queries=queries)(net, x, y, keyed(8))  # type: ignore[call-arg]
        lengths.append(torch.where(net(z).argmax(1) == y, torch.inf, distance(norm, z - x).double()))
    assert (lengths[0] >= lengths[1]).all() and (lengths[1] >= lengths[2]).all() and (lengths[0] > lengths[2]).any()


def test_majority_votes_find_what_single_questions_miss() -> None:
    """A tenth of a model's answers are flipped: single questions believe points that never crossed the boundary."""
    inner = Linear((30,))
    x, y = at_distance(inner, "l2", 0.3, 16)
    share = {}
    for votes in (1, 15):
        attack = Boundary(queries=100 * votes, votes=votes)
        share[votes] = (inner(attack(Coin(inner, 0.1), x, y, keyed(16))).argmax(1) != y).float().mean().item()
    assert share[1] < 0.2 and share[15] > 0.9, share


def test_majority_counts_votes() -> None:
    x = torch.rand(2, 5)
    answers = iter([torch.tensor([[1.0, 0.0], [0.0, 2.0]])] * 2 + [torch.tensor([[0.0, 1.0], [0.0, torch.nan]])])

    class Script(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return next(answers)

    counts = Majority(Script(), 3)(x)
    assert counts[0].tolist() == [2, 1] and counts[1].isnan().all()


def test_rows_that_are_not_asked_answer_no_and_pay_nothing() -> None:
    model, x = Linear((6,)), torch.full((3, 6), 0.5)
    y = model(x).argmax(1)
    settings = {"distance": NORMS["l2"].distance, "targeted": False, "queries": 3}
    ask = Decisions(model, x, torch.cat([y[:2], 1 - y[2:]]), keyed(3), **settings)  # type: ignore[arg-type]
    other = (model.weight.detach() * (2 * y[0] - 1) < 0).float().expand(3, 6)  # as far away as can be
    assert ask(other, torch.tensor([True, False, True])).tolist() == [True, False, False]
    assert ask.used.tolist() == [2, 1, 1] and torch.equal(ask.closest.point[1:], x[1:])
    assert ask(other).tolist() == [True, True, False]
    assert ask(other).tolist() == [False, True, False]  # row 0 has spent its three
    assert not ask(other).any() and not ask.open.any()


def test_varied_starts_reach_more_classes_than_noise() -> None:
    """A model that tells images by how coarse they are: uniform noise is one class to it."""

    class Coarse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rough = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
            return torch.stack([rough, torch.full_like(rough, 0.2)], 1)

    x = torch.rand(4, 1, 16, 16)
    for start, found in (("uniform", False), ("varied", True)):
        settings = {"distance": NORMS["l2"].distance, "targeted": False, "queries": 99}
        ask = Decisions(Coarse(), x, torch.zeros(4, dtype=torch.long), keyed(4), **settings)  # type: ignore[arg-type]
        assert (find_start(ask, keyed(4), 40, start) == found).all()  # type: ignore[arg-type]
    z = squares(x, keyed(4), 4)
    assert set(z.unique().tolist()) == {0.0, 1.0} and torch.equal(z[..., :4, :4], z[..., :1, :1].expand(4, 1, 4, 4))


def test_rays_flips_nothing_all_halves_quarters_and_so_on() -> None:
    assert blocks(6, 11).tolist() == [
        *([0, 0], [0, 6], [0, 3], [3, 6], [0, 2], [2, 4], [4, 6]),
        *([0, 1], [1, 2], [2, 3], [3, 4]),
    ]


def test_rays_begins_at_random_corners_where_white_and_black_do_not_fool() -> None:
    model = Linear((48,))
    with torch.no_grad():
        model.weight -= model.weight.mean()  # neither white nor black
    x, y = at_distance(model, "linf", 0.05, 8)
    z = RayS(queries=500)(model, x, y, keyed(8))
    assert (model(z).argmax(1) != y).all() and (NORMS["linf"].distance(z - x) <= 0.05 * 1.02).all()


@pytest.mark.parametrize("pixels", [1, 3])
@pytest.mark.parametrize("shape", [(3, 6, 6), (20,)], ids=str)
def test_one_pixel_changes_no_more_than_its_pixels(pixels: int, shape: tuple[int, ...]) -> None:
    model = Linear(shape)
    x, y = at_distance(model, "l2", 0.05, 4)
    z = OnePixel(pixels=pixels, population=20, generations=20)(model, x, y, keyed(4))
    changed = (z != x).flatten(2).any(1) if len(shape) == 3 else z != x
    assert (model(z).argmax(1) != y).all() and (changed.sum(1) <= pixels).all() and changed.any(1).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_one_pixel_evolves(targeted: bool) -> None:
    """Random pixels do not fool this victim, evolved ones do; another key is another search."""
    model = Linear((1, 8, 8))
    x, y = at_distance(model, "l2", 0.22, 8)
    goal = 1 - y if targeted else y
    found = {}
    for generations in (1, 40):
        attack = OnePixel(pixels=3, population=30, generations=generations, targeted=targeted)
        z = attack(model, x, goal, keyed(8))
        found[generations] = (model(z).argmax(1) != y).sum().item()
    assert found[1] <= 2 and found[40] >= 7, found
    twins = attack(model, x[:1].expand(4, 1, 8, 8), goal[:1].expand(4), keyed(4))
    assert len({tuple(row.flatten().tolist()) for row in twins}) == 4


def test_one_pixel_is_the_same_for_a_row_alone_and_with_a_stochastic_model() -> None:
    inner = Linear((30,))
    x, y = at_distance(inner, "l2", 0.3, 4)
    attack, model = OnePixel(population=20, generations=3), Coin(inner, 0.02)
    whole = attack(model, x, y, keyed(4))
    assert (whole != x).any()
    # The look at the clean rows draws from the streams of the batch; all that follows from those of the row.
    assert torch.equal(attack(model, x[2:3], y[2:3], keyed(4)[torch.tensor([2])]), whole[2:3])


def test_salt_and_pepper_changes_whole_pixels_to_black_and_white() -> None:
    model = Linear((3, 6, 6))
    x, y = at_distance(model, "l2", 0.2, 4)
    z = SaltAndPepperSearch(queries=100)(model, x, y, keyed(4))
    changed = z != x
    assert (changed == changed[:, :1]).all() and set(z[changed].tolist()) <= {0.0, 1.0}
    assert (distances(z - x)["l0"] == 3 * changed[:, 0].flatten(1).sum(1)).all()


@pytest.mark.parametrize("attack", [*QUICK, OnePixel(population=10, generations=3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutional_victims_in_both_precisions(attack: Attack, dtype: torch.dtype) -> None:
    model = BatchNormNet().to(dtype)
    x, y = torch.rand(4, 1, 8, 8, dtype=dtype), torch.arange(4) % 3
    with torch.inference_mode():
        z = attack(model, x, y)
    assert z.shape == x.shape and z.dtype == dtype and z.min() >= 0 and z.max() <= 1 and z.isfinite().all()


# --- transfer --------------------------------------------------------------------------------------------------------


class Untouchable(nn.Module):
    """A model that must not be asked."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the attacker has no access to this model")


@dataclass(frozen=True)
class Given(Surrogate):
    """A surrogate that lies ready."""

    inner: nn.Module

    def network(self) -> nn.Module:
        return self.inner


def save(path: Path, seed: int) -> tuple[str, nn.Module]:
    """A checkpoint of a random network; also the network."""
    network = SmallCNN().eval()
    for p in network.parameters():
        p.data = 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "catalogue": {"network": describe(network)}}, path)
    return str(path), network


def test_transfer_is_the_attack_on_the_surrogate_alone() -> None:
    surrogate = Linear((30,))
    x, y = at_distance(surrogate, "linf", 0.05, 4)
    attack = PGD(eps=0.06, steps=5)
    z = Transfer(attack, Given(surrogate))(Untouchable(), x, y, keyed(4))
    assert torch.equal(z, attack(surrogate, x, y, keyed(4).fork("transfer")))
    assert (surrogate(z).argmax(1) != y).all() and surrogate.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transfer_from_a_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    path, network = save(tmp_path / "a.ckpt", 0)
    x, y = torch.rand(2, 1, 28, 28, dtype=dtype), torch.arange(2)
    attack = Transfer(PGD(steps=2), CheckpointSurrogate(path))
    z = attack(Untouchable(), x, y, keyed(2))
    assert torch.equal(z, attack.attack(network.to(dtype), x, y, keyed(2).fork("transfer"))) and z.dtype == dtype
    assert CheckpointSurrogate(path).network() is CheckpointSurrogate(path).network()
    spec = with_files(describe(attack))["init_args"]["surrogate"]["init_args"]["path"]
    assert spec["file"] == "a.ckpt"
    save(tmp_path / "a.ckpt", 1)  # other weights: another evaluation, and another result
    assert with_files(describe(attack))["init_args"]["surrogate"]["init_args"]["path"]["sha256"] != spec["sha256"]
    assert not torch.equal(attack(Untouchable(), x, y, keyed(2)), z)


def test_the_parts_of_a_transfer_say_norm_radius_and_target(tmp_path: Path) -> None:
    surrogate = CheckpointSurrogate(save(tmp_path / "a.ckpt", 0)[0])
    attack = Transfer(PGD(norm="l2", eps=0.5, targeted=True), surrogate)
    assert threat(attack) == ("l2", 0.5) and attack.kind == "budget" and attack.targeted
    assert scale_eps(attack, 2) == Transfer(PGD(norm="l2", eps=1.0, targeted=True), surrogate)
    assert hash(attack) == hash(Transfer(PGD(norm="l2", eps=0.5, targeted=True), surrogate))
    assert threat(WorstOf([attack, attack])) == ("l2", 0.5)


def test_bad_surrogates_are_named(tmp_path: Path) -> None:
    path, network = save(tmp_path / "a.ckpt", 0)
    x, y = torch.rand(2, 1, 28, 28), torch.arange(2)
    with pytest.raises(ValueError, match=r"missing\.ckpt"):
        CheckpointSurrogate(str(tmp_path / "missing.ckpt"))
    with pytest.raises(ValueError, match="budget"):
        Transfer(RayS(), CheckpointSurrogate(path))
    with pytest.raises(ValueError, match="10 outputs"):
        Transfer(PGD(), CheckpointSurrogate(path))(Untouchable(), x, y + 9)
    torch.save({"state_dict": {}, "code": network}, tmp_path / "unsafe.ckpt")
    with pytest.raises(ValueError, match="nothing was loaded"):
        Transfer(PGD(), CheckpointSurrogate(str(tmp_path / "unsafe.ckpt")))(Untouchable(), x, y)
