"""Training against an adversary critic: section 8 of the specification."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from helpers import ROOT, Bare, adam, digits, run, trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from victims import BatchNormNet

from adversarial_lightning.attacks import DeepFool, HighConfidence, Noise
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.callbacks import AttackGrids, CollapseGuard
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.lightning_modules import AdversaryCritic, OneCycle, Standard
from adversarial_lightning.lightning_modules.critic_losses import (
    GAN_LOSSES,
    gradient_penalty,
    mean_where,
    running_confidence,
    total,
)
from adversarial_lightning.lightning_modules.critic_settings import AttackSettings, CriticSettings, Pretraining
from adversarial_lightning.lightning_modules.differentiable_attack import (
    choose_target,
    high_confidence,
    straight_through,
)
from adversarial_lightning.networks import Critic, Whiten


def linear(k: int = 4, n: int = 6, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(n, k)).to(dtype)


def smooth() -> nn.Sequential:
    layers = (nn.Flatten(), nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 4))
    return nn.Sequential(*layers).double()


def images(n: int = 5, dtype: Any = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 2, 3, dtype=dtype), torch.arange(n) % 4


def quiet(k: int = 4, n: int = 6, dtype: torch.dtype = torch.float64) -> Critic:
    return Critic(k, n, [8], input_noise=0, hidden_noise=0).to(dtype)


def module(network: nn.Module | None = None, **settings: Any) -> AdversaryCritic:
    return AdversaryCritic(network or smooth(), settings.pop("critic", None) or quiet(), **settings)


def attack(**settings: Any) -> dict[str, Any]:
    return {"attack_settings": AttackSettings(**settings)}


def critic(**settings: Any) -> dict[str, Any]:
    return {"critic_settings": CriticSettings(**settings)}


def noise(n: int = 5) -> Noise:
    return Noise.keyed(0, torch.arange(n))


def gradients(value: Tensor, net: nn.Module) -> Tensor:
    found = torch.autograd.grad(value, list(net.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def probability(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return net(x).softmax(1).gather(1, target[:, None])[:, 0]


# --- the attack ------------------------------------------------------------------------------------------------------


def test_one_step_on_a_linear_network() -> None:
    """Length (log C - log p) / ||w|| + 1e-4 along w = the gradient of log p; with two classes along W_t - W_s."""
    for k in (2, 4):
        net, (x, _) = linear(k), images()
        target, confidence = net(x).argmin(1), torch.full((5,), 0.9, dtype=torch.float64)
        p = net(x).softmax(1)
        w = net[1].weight[target] - p @ net[1].weight
        r = (high_confidence(net, x, target, confidence, steps=1, overshoot=0) - x).flatten(1)
        length = (confidence.log() - p.gather(1, target[:, None])[:, 0].log()) / w.norm(dim=1)
        assert torch.allclose(r.norm(dim=1), length + 1e-4, rtol=1e-6)
        assert torch.allclose(F.cosine_similarity(r, w), torch.ones(5, dtype=torch.float64))
        if k == 2:
            d = net[1].weight[target] - net[1].weight[1 - target]
            assert torch.allclose(F.cosine_similarity(r, d), torch.ones(5, dtype=torch.float64))


def test_steps_raise_the_probability_until_it_is_reached() -> None:
    net, x = linear(10, 200), torch.rand(5, 1, 10, 20, dtype=torch.float64)
    target, confidence = net(x).argsort(1)[:, -2], torch.full((5,), 0.95, dtype=torch.float64)
    reached = [probability(net, high_confidence(net, x, target, confidence, steps=s), target) for s in range(6)]
    for before, after in pairwise(reached):
        assert (after >= before - 1e-12).all()
    assert (reached[-1] >= 0.95 - 1e-3).all() and (reached[1] < 0.95).any()
    # One that is there already stays; a row that has stopped is not moved by what is left of the loop.
    easy = torch.full((5,), 0.01, dtype=torch.float64)
    assert torch.equal(high_confidence(net, x, net(x).argmax(1), easy), x)
    stopped = high_confidence(net, x, target, confidence, steps=30)
    assert torch.equal(high_confidence(net, x, target, confidence, steps=40), stopped)
    assert high_confidence(net, 5 * x, target, confidence).max() > 1  # no box by default
    boxed = high_confidence(net, x, target, confidence, clamp=True)
    assert boxed.min() >= 0 and boxed.max() <= 1 and boxed.requires_grad


def test_stopping_is_hard_forwards_and_soft_backwards() -> None:
    value = torch.tensor([-3.0, -1e-4, 0.0, 1e-4, 0.4, 0.99], requires_grad=True)
    going = straight_through(value)
    assert going.tolist() == [0, 0, 0, 1, 1, 1]
    (slope,) = torch.autograd.grad(going.sum(), value)
    s = value.detach().sigmoid()
    assert torch.allclose(slope, s * (1 - s))


@pytest.mark.long
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_gradient_through_the_attack_is_that_of_finite_differences(unroll: bool, steps: int) -> None:
    """The stop pattern does not change nearby; frozen iterates are held where the undisturbed network put them."""
    net, (x, _) = smooth(), images(2)
    target, confidence = net(x).argmin(1), torch.full((2,), 0.9, dtype=torch.float64)
    names = [name for name, _ in net.named_parameters()]
    weights = [p.detach() for p in net.parameters()]
    iterates: list[Tensor] = []

    class Frozen(nn.Module):
        """The network with given weights, at given points whatever it is asked about."""

        def __init__(self, values: list[Tensor]) -> None:
            super().__init__()
            self.values, self.at = values, 0

        def forward(self, z: Tensor) -> Tensor:
            self.at += 1
            z = z if unroll else iterates[self.at - 1] + (z - z.detach())
            out: Tensor = torch.func.functional_call(net, dict(zip(names, self.values, strict=True)), z)
            return out

    handle = net.register_forward_pre_hook(lambda _, args: iterates.append(args[0].detach().clone()))
    high_confidence(net, x, target, confidence, steps)
    handle.remove()

    def made(values: list[Tensor]) -> Tensor:
        return high_confidence(Frozen(values), x, target, confidence, steps, unroll=unroll).square().sum()

    free = [w.clone().requires_grad_() for w in weights]
    found = torch.cat([g.flatten() for g in torch.autograd.grad(made(free), free)])
    assert found.any()
    hand = []
    for i, w in enumerate(weights):
        for j in range(w.numel()):
            ends = []
            for sign in (1, -1):
                moved = [v.clone() for v in weights]
                moved[i].view(-1)[j] += sign * 1e-5
                ends.append(made(moved).detach())
            hand.append((ends[0] - ends[1]) / 2e-5)
    soft = stop_part(made, free)
    assert torch.allclose(found - soft, torch.stack(hand), atol=1e-6)


def stop_part(made: Callable[[list[Tensor]], Tensor], free: list[Tensor]) -> Tensor:
    """What the straight-through indicator adds to the gradient, which finite differences of a step cannot see."""
    from adversarial_lightning.lightning_modules import differentiable_attack as place

    whole = torch.cat([g.flatten() for g in torch.autograd.grad(made(free), free)])
    kept = place.straight_through
    try:
        place.straight_through = lambda value: (value > 0).to(value)  # type: ignore[assignment]
        without = torch.cat([g.flatten() for g in torch.autograd.grad(made(free), free)])
    finally:
        place.straight_through = kept
    assert not torch.allclose(whole, without)
    return whole - without


def test_value_and_gradient_are_those_of_the_algorithm() -> None:
    """Section 3 of the specification, line by line: a running product of indicators with the sigmoid's slope."""
    net, (x, _) = smooth(), images()
    target, c = net(x).argmin(1), torch.full((5,), 0.6, dtype=torch.float64)
    r, go = torch.zeros_like(x), torch.ones(5, dtype=torch.float64)
    for _ in range(5):
        z = (x + 1.05 * r).detach().requires_grad_()
        log_p = net(z).log_softmax(1)[torch.arange(5), target]
        s = (c - log_p.exp()).sigmoid()
        go = go * (s + ((s > 0.5).to(s) - s).detach())
        (w,) = torch.autograd.grad(log_p.sum(), z, create_graph=True)
        n = (w.flatten(1).square().sum(1) + 1e-8).sqrt()
        length = (c.log() - log_p).abs() / n + 1e-4
        r = r + (go * length / n).view(-1, 1, 1, 1) * w
    expected = x + 1.05 * r
    found = high_confidence(net, x, target, c)
    assert torch.allclose(found, expected) and not torch.allclose(found, x)
    weight = torch.rand_like(x)  # another direction than that of the step
    assert torch.allclose(gradients((weight * found).sum(), net), gradients((weight * expected).sum(), net))


def test_frozen_iterates_pass_no_gradient_to_the_image() -> None:
    """d x_hat / d x is the identity: no path through earlier iterates, unless unrolled."""
    net, (x, _) = smooth(), images()
    target, confidence = net(x).argmin(1), torch.full((5,), 0.9, dtype=torch.float64)
    for unroll in (False, True):
        z = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(high_confidence(net, z, target, confidence, unroll=unroll).sum(), z)
        assert torch.equal(slope, torch.ones_like(x)) != unroll
    assert not high_confidence(net, x, target, confidence, create_graph=False).requires_grad


def test_zero_gradients_and_vanishing_probabilities_are_finite() -> None:
    net, (x, _) = linear(dtype=torch.float32), images(dtype=torch.float32)
    confidence = torch.full((5,), 0.9)
    for scale in (0.0, 1e4):
        with torch.no_grad():
            net[1].weight.fill_(scale).mul_(torch.arange(4.0)[:, None])
        target = net(x).argmin(1)
        z = high_confidence(net, x, target, confidence)
        assert z.isfinite().all() and gradients(z.sum(), net).isfinite().all()
        assert scale or torch.equal(z, x)


# --- targets and confidences -----------------------------------------------------------------------------------------


def test_closest_target_is_the_analytic_one_and_not_the_runner_up() -> None:
    net = linear(3, 2)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 10.0]]))
        net[1].bias.copy_(torch.tensor([0.0, -1.0, -2.0]))
    x = torch.zeros(1, 1, 1, 2, dtype=torch.float64).requires_grad_()
    z = net(x)
    assert z.argsort(1)[0].tolist() == [2, 1, 0]
    assert choose_target(z, x, z.argmax(1), "closest", noise(1)).item() == 2  # 0.2 away; the runner-up 10
    with torch.no_grad():  # distances of class 1: l2 1, linf 1, l1 1; of class 2: l2 1.13, linf 0.8, l1 1.6
        net[1].weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0], [2.0, 2.0]]))
        net[1].bias.copy_(torch.tensor([0.0, -3.0, -3.2]))
    assert choose_target(net(x), x, net(x).argmax(1), "closest", noise(1)).item() == 1
    with torch.no_grad():  # of class 1: l2 1, l1 1; of class 2: l2 0.92, l1 1.3
        net[1].bias.copy_(torch.tensor([0.0, -3.0, -2.6]))
    assert choose_target(net(x), x, net(x).argmax(1), "closest", noise(1)).item() == 2
    two, (x, _) = linear(2), images()
    x = x.requires_grad_()
    for choice in ("closest", "uniform", "probable"):
        z = two(x)
        source = z.argmax(1)
        assert torch.equal(choose_target(z, x, source, choice, noise()), 1 - source)  # type: ignore[arg-type]


def test_drawn_targets_have_their_odds_and_belong_to_the_sample() -> None:
    n = 4000
    logits = torch.tensor([0.2, 0.1, 0.0, 0.7]).log().expand(n, -1)
    source, draws = torch.full((n,), 3), noise(n)
    uniform = choose_target(logits, logits, source, "uniform", draws)
    shares = uniform.bincount(minlength=4) / n
    assert torch.allclose(shares, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]), atol=0.03)
    probable = choose_target(logits, logits, source, "probable", noise(n))
    shares = probable.bincount(minlength=4) / n
    assert torch.allclose(shares, torch.tensor([2 / 3, 1 / 3, 0.0, 0.0]), atol=0.03)
    half = choose_target(logits[::2], logits[::2], source[::2], "probable", noise(n)[slice(None, None, 2)])
    assert torch.equal(half, probable[::2])


def test_running_confidence_by_hand() -> None:
    """Keyed by prediction, absent classes untouched, no gradient, momentum; nobody asks for the label."""
    logits = torch.tensor([[4.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]], requires_grad=True)
    before = torch.tensor([0.5, 0.7, 1.0])
    p = logits.detach().softmax(1)
    for momentum in (0.5, 0.9):
        after = running_confidence(before, logits, momentum)
        hand = before.clone()
        for k in range(3):
            rows = [float(row.max()) for row in p if int(row.argmax()) == k]
            if rows:
                hand[k] = momentum * before[k] + (1 - momentum) * sum(rows) / len(rows)
        assert torch.allclose(after, hand) and after[1] == 0.7 and not after.requires_grad


def test_goals_follow_the_settings() -> None:
    x, _ = images()
    made = module()
    made.confidences.copy_(torch.tensor([0.3, 0.6, 1.0, 0.1]))
    goal = made.attack_target(x, noise())
    own = made.network(x).softmax(1).amax(1)
    expected = made.confidences[goal.target].clamp(0.25 + 1e-3, 1 - 1e-4)
    assert torch.equal(goal.confidence, expected.to(own)) and (goal.target != goal.source).all()
    assert torch.allclose(goal.own, own)
    assert torch.allclose(module(made.network, **attack(confidence="same")).attack_target(x, noise()).confidence, own)
    assert (module(made.network, **attack(confidence=0.8)).attack_target(x, noise()).confidence == 0.8).all()


# --- the critic's loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gan_loss", GAN_LOSSES)
def test_signs(gan_loss: str) -> None:
    """Eqs. 4.3 and 4.4 as printed point the other way."""
    losses = GAN_LOSSES[gan_loss]
    s = torch.tensor([0.2, 0.6], requires_grad=True)
    for loss, sign in ((losses.real, -1), (losses.attacked, 1), (losses.classifier, -1)):
        (slope,) = torch.autograd.grad(loss(s).sum(), s)
        assert (slope.sign() == sign).all()


def test_losses_read_the_heads_of_label_and_target() -> None:
    """Gradients of the last layer: real images move the head of y, attacked ones that of t, and no other."""
    x, _ = images(1)
    made = module(**critic(gradient_penalty_weight=0.0), **attack(confidence=0.9))
    goal = made.attack_target(x, noise(1))
    y = goal.source
    last = made.critic.layers[-1]
    loss, _ = made.critic_loss(x, y, goal, noise(1))
    (slope,) = torch.autograd.grad(loss, last.bias)
    assert slope[y] < 0 < slope[goal.target] and (slope != 0).sum() == 2
    loss, logs = made.classifier_loss(x, y, goal, noise(1))
    (slope,) = torch.autograd.grad(logs["gan"], last.bias)
    assert slope[goal.target] < 0 and (slope != 0).sum() == 1


def test_slope_penalty_of_a_linear_critic() -> None:
    v = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    x = torch.rand(4, 3, dtype=torch.float64).requires_grad_()
    for scale, slope, expected in ((1.0, 1.0, 0.0), (3.0, 1.0, 4.0), (3.0, 0.0, 9.0)):
        assert torch.allclose(gradient_penalty(scale * (x @ v), x, slope), torch.full((4,), expected).double())
    made = module()
    x, y = images()
    goal = made.attack_target(x, noise())
    attacked = made.attack(x, goal.target, goal.confidence, create_graph=False).requires_grad_()
    stayed = made.network(attacked).argmax(1)[:2]  # two attacks that failed
    goal = goal._replace(source=torch.cat([stayed, goal.source[2:]]))
    real = x.clone().requires_grad_()
    total, logs = made.critic_loss(x, y, goal, noise())
    assert torch.allclose(logs["gradient_penalty_real"], gradient_penalty(made.critic(real, y), real).mean())
    won = made.critic_labels(attacked, goal)[1]
    assert won.any() and not won[:2].any()
    at_attacked = gradient_penalty(made.critic(attacked, goal.target), attacked)[won].mean()
    assert torch.allclose(logs["gradient_penalty_attacked"], at_attacked)
    penalties = logs["gradient_penalty_real"] + logs["gradient_penalty_attacked"]
    assert torch.allclose(total, logs["critic"] + 10 * penalties) and penalties > 0


def test_images_are_judged_as_the_target() -> None:
    """Not as what the network says; with code parity the other way round. Success is any other class than before."""
    made, (x, _) = module(), images()
    predicted = made.network(x).argmax(1)
    goal = made.attack_target(x, noise())._replace(source=(predicted + 1) % 4, target=(predicted + 2) % 4)
    goal = goal._replace(source=torch.cat([goal.source[:3], predicted[3:]]))
    heads, won, _ = made.critic_labels(x, goal)
    assert torch.equal(heads, goal.target) and won.tolist() == [True, True, True, False, False]
    made.code_parity = True
    assert torch.equal(made.critic_labels(x, goal)[0], predicted)


def test_failed_attacks_do_not_count() -> None:
    """By hand over the successful rows only; with code parity the critic takes all, as of the class predicted there."""
    x, y = images(8)
    made = module(cycle_weight=0.0, **critic(gradient_penalty_weight=0.0), **attack(confidence=0.9))
    goal = made.attack_target(x, noise(8))
    too_low = torch.tensor([0.9, 1e-6]).double().repeat(4)  # reached at the start: x stays what it is
    goal = goal._replace(confidence=too_low)
    attacked = made.attack(x, goal.target, goal.confidence)
    predicted = made.network(attacked).argmax(1)
    won = predicted != goal.source
    assert won.any() and not won.all()
    s = made.critic(attacked, goal.target)
    real = F.softplus(-made.critic(x, y)).mean()
    loss, _ = made.critic_loss(x, y, goal, noise(8))
    assert torch.allclose(loss, real + F.softplus(s)[won].mean())
    _, logs = made.classifier_loss(x, y, goal, noise(8))
    assert torch.allclose(logs["gan"], F.softplus(-s)[won].mean())
    made.code_parity = True
    loss, _ = made.critic_loss(x, y, goal, noise(8))
    assert torch.allclose(loss, real + F.softplus(made.critic(attacked, predicted)).mean())


def test_without_a_success_the_terms_are_zero() -> None:
    x, y = images()
    made = module()
    same = made.attack_target(x, noise())._replace(
        confidence=torch.full((5,), 1e-6, dtype=torch.float64)
    )  # reached at once
    critic_loss, _ = made.critic_loss(x, y, same, noise())
    loss, logs = made.classifier_loss(x, y, same, noise())
    assert critic_loss.isfinite() and logs["gan"] == 0 and logs["cycle"] == 0 and logs["attack_success"] == 0
    assert torch.equal(loss, F.cross_entropy(made.network(x), y))
    assert gradients(loss, made.network).isfinite().all()
    assert mean_where(torch.tensor([torch.nan, 1.0]), torch.tensor([False, False])) == 0


def test_cycle_leads_back_and_reaches_the_second_attack_only() -> None:
    x, y = images()
    made = module(critic_weight=0.0, cycle_weight=1.0, **attack(confidence=0.9))
    goal = made.attack_target(x, noise())
    _, logs = made.classifier_loss(x, y, goal, noise())
    first = made.attack(x, goal.target, goal.confidence).detach()
    back = high_confidence(made.network, first, goal.source, goal.own)
    won = made.critic_labels(first, goal)[1]
    by_hand = (back - x).flatten(1).square().sum(1)[won].mean()
    assert torch.allclose(logs["cycle"], by_hand)
    assert torch.allclose(gradients(logs["cycle"], made.network), gradients(by_hand, made.network))
    for kind, power in (("l2", 2), ("l1", 1)):
        made.cycle = kind  # type: ignore[assignment]
        _, logs = made.classifier_loss(x, y, goal, noise())
        assert torch.allclose(logs["cycle"], (back - x).flatten(1).norm(power, dim=1)[won].mean())
    made.attack = lambda z, *args, **settings: x if z is not x else first  # type: ignore[method-assign,assignment]
    assert made.classifier_loss(x, y, goal, noise())[1]["cycle"] == 0


def test_a_step_raises_what_the_critic_says_of_attacked_images() -> None:
    """One step of the classifier against a frozen critic."""
    x, y = images(16)
    made = module(critic_weight=1.0, cycle_weight=0.0, **attack(confidence=0.9))
    goal = made.attack_target(x, noise(16))
    before = made.classifier_loss(x, y, goal, noise(16))[1]["gan"]
    optimizer = torch.optim.SGD(made.network.parameters(), lr=1e-3)
    before.backward()
    optimizer.step()
    after = made.classifier_loss(x, y, goal, noise(16))[1]["gan"]
    assert after < before


# --- the module ------------------------------------------------------------------------------------------------------


def small(**settings: Any) -> AdversaryCritic:
    torch.manual_seed(0)
    fixed = {"pretraining": Pretraining(0), "optimizer": adam, "critic_optimizer": adam}
    return AdversaryCritic(Bare(), Critic(10, 784, [32]), **{**fixed, **settings})


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.long
def test_each_player_moves_its_own_weights(tmp_path: Path) -> None:
    """Bitwise: the critic's step leaves the classifier alone and the other way round; what was frozen stays."""
    made = small()
    made.network.layers[0].bias.requires_grad_(False)
    seen: list[tuple[str, bool, bool, bool]] = []
    update = made.update

    def watched(optimizer: Any, loss: Tensor) -> None:
        before = weights(made.network), weights(made.critic)
        update(optimizer, loss)
        player = "critic" if optimizer.param_groups[0]["params"][0] is next(made.critic.parameters()) else "classifier"
        moved = [not torch.equal(a, weights(m)) for a, m in zip(before, (made.network, made.critic), strict=True)]
        other = made.network if player == "critic" else made.critic
        clean = not any(p.requires_grad for p in other.parameters())
        seen.append((player, *moved, clean))  # type: ignore[arg-type]

    made.update = watched  # type: ignore[method-assign]
    fit = trainer(tmp_path, 1)
    fit.fit(made, digits(train_limit=64))
    assert seen[:2] == [
        ("critic", False, True, True),
        ("classifier", True, False, True),
    ]  # and the other one was frozen
    assert len(seen) == 4 and fit.global_step == 4
    assert made.network.layers[0].bias.grad is None and not made.network.layers[0].bias.requires_grad
    assert made.critic.layers[0].weight.requires_grad


@pytest.mark.long
def test_without_weights_it_is_standard_training(tmp_path: Path) -> None:
    made = small(critic_weight=0.0, cycle_weight=0.0)
    trainer(tmp_path, 1).fit(made, digits())
    torch.manual_seed(0)
    plain = Standard(Bare(), adam)
    trainer(tmp_path, 1).fit(plain, digits())
    assert torch.equal(weights(made.network), weights(plain.network))


@pytest.mark.long
def test_training_learns_and_the_game_is_open(tmp_path: Path) -> None:
    """Pre-training first; the critic errs sometimes, attacks succeed, confidences move; reloads without the critic."""
    made, logged = small(pretraining=Pretraining(1, 5e-6)), []
    made.log_dict = lambda values: logged.append({k: float(v) for k, v in values.items()})  # type: ignore[assignment,method-assign]
    fit = trainer(tmp_path, 5)
    fit.fit(made, digits())
    assert set(logged[0]) == {"train/loss", "train/ce"}
    last = {k: sum(row[k] for row in logged[-7:]) / 7 for k in logged[-1]}
    assert last["train/attack_success"] > 0.5 and 0.02 < last["train/critic_error_attacked"] < 0.98
    assert 0.1 < last["train/confidence"] < 1 and all(v == v for v in last.values())
    assert fit.callback_metrics["val/acc"] > 0.6
    assert (made.confidences < 1).all()
    fit.save_checkpoint(tmp_path / "x.ckpt")
    network, _ = load_network(tmp_path / "x.ckpt", Bare())
    assert torch.equal(weights(network), weights(made.network))
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert torch.equal(state["state_dict"]["confidences"], made.confidences) and len(state["optimizer_states"]) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    "change", [critic(gan_loss="hinge"), attack(target="uniform"), attack(unroll=True) | critic(steps=2)], ids=str
)
@pytest.mark.parametrize("label", ["head", "layers"])
def test_options_train(change: dict[str, Any], label: Any, tmp_path: Path) -> None:
    made = small(**change)
    made.critic = Critic(10, 784, [16], label)
    made.extra_networks = [(made.critic, adam, None)]
    trainer(tmp_path, 1, limit_train_batches=2).fit(made, digits())
    assert weights(made.network).isfinite().all()


class Loop(pl.Callback):
    """The running confidences by hand, from what the network says at the start of each batch."""

    def __init__(self) -> None:
        self.expected, self.moved = torch.ones(10), []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.expected = running_confidence(self.expected, pl_module.network(batch[0]), 0.7)
        self.moved.append([c.scheduler.last_epoch for c in trainer.lr_scheduler_configs])


@pytest.mark.long
def test_confidences_follow_each_batch_once_and_the_critic_waits_for_its_turn(tmp_path: Path) -> None:
    """Its schedule stands still while the classifier is trained alone."""
    made = small(**attack(momentum=0.7), pretraining=Pretraining(1), schedule=OneCycle(), critic_schedule=OneCycle())
    loop = Loop()
    trainer(tmp_path, 2, callbacks=[loop]).fit(made, digits(train_limit=96))
    assert torch.allclose(made.confidences, loop.expected) and (made.confidences < 1).any()
    assert loop.moved == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 1], [5, 2]]


def test_means_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes the other holds no row that counts: DDP halves the sum of their gradients, hence 2 times 3."""
    values, where = torch.tensor([3.0, 5.0]), torch.tensor([True, False])
    assert (
        mean_where(values, where) == 3 and mean_where(values, ~where) == 5 and mean_where(values, where & ~where) == 0
    )
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    assert mean_where(values, where) == 6 and mean_where(values, where & ~where) == 0
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))  # the other has the same rows
    assert mean_where(values, where) == 3 and torch.equal(total(values), 2 * values) and values[0] == 3


def test_pretraining_decays_all_weight_matrices_but_the_last() -> None:
    made, (x, y) = module(pretraining=Pretraining(decay=0.5)), images()
    first = made.network[1].weight.square().sum()
    assert torch.allclose(made.pretraining_loss(x, y)[0], F.cross_entropy(made.network(x), y) + 0.25 * first)


def test_the_critics_own_step_keeps_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    made, (x, y) = module(), images()
    asked: list[bool] = []
    attack = made.attack

    def watched(*given: Tensor, create_graph: bool = True) -> Tensor:
        asked.append(create_graph)
        return attack(*given, create_graph=create_graph)

    monkeypatch.setattr(made, "attack", watched)
    goal = made.attack_target(x, noise())
    made.critic_loss(x, y, goal, noise())
    made.classifier_loss(x, y, goal, noise())
    assert asked == [False, True, True]  # the critic's; the classifier's, and the way back


@pytest.mark.long
@pytest.mark.parametrize("broken", ["network", "critic"])
def test_a_loss_that_is_no_number_stops_training(broken: str, tmp_path: Path) -> None:
    made = small()
    nn.init.constant_(next(getattr(made, broken).parameters()), torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        trainer(tmp_path, callbacks=[CollapseGuard()]).fit(made, digits(train_limit=96))


TWO = """
import sys, torch
sys.path.insert(0, {root!r} + "/tests")
from adversarial_lightning.lightning_modules.critic_losses import mean_where
from test_adversary_critic import joint
from helpers import digits, trainer
module = joint()
run = trainer({folder!r}, 2, devices=2, strategy="ddp_find_unused_parameters_true")
run.fit(module, digits(batch_size=16, train_limit=96))
mine = torch.cat([*(p.detach().flatten() for p in module.parameters()), module.confidences])
both = run.strategy.all_gather(mine)
assert (both[0] == both[1]).all(), "ranks differ"
# Three of four count on the first process, one on the second: the mean of both shares is that of the four.
values = torch.arange(4.0) + 10 * run.global_rank
counts = torch.arange(4) < (1 if run.global_rank else 3)
shares = run.strategy.all_gather(mean_where(values, counts))
assert torch.allclose(shares.mean(), torch.tensor((0 + 1 + 2 + 10) / 4)), shares
if run.global_rank == 0:
    torch.save(mine, {folder!r} + "/two.pt")
"""


def joint() -> AdversaryCritic:
    return small(pretraining=Pretraining(1), schedule=OneCycle(), critic_schedule=OneCycle())


@pytest.mark.long
def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    """Noise, running confidences and the mean over successes are those of the joint batch."""
    script = tmp_path / "run.py"
    script.write_text(TWO.format(root=str(ROOT), folder=str(tmp_path)))
    run(sys.executable, str(script))
    one = joint()
    trainer(tmp_path, 2).fit(one, digits(train_limit=96))
    expected = torch.cat([weights(one), one.confidences])
    assert (torch.load(tmp_path / "two.pt", weights_only=True) - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize(
    "make,says",
    [
        (lambda: module(critic_weight=-1.0), "critic_weight must be at least 0"),
        (lambda: AttackSettings(steps=0), "steps must be at least 1"),
        (lambda: CriticSettings(steps=0), "steps must be at least 1"),
        (lambda: AttackSettings(momentum=1.0), "momentum"),
        (lambda: module(**attack(confidence=0.25)), "between 1/K = 0.25 and 1"),
        (lambda: module(**attack(confidence=1)), "between 1/K"),
        (lambda: AttackSettings(confidence="runing_mean"), "must be running_mean or same, not 'runing_mean'"),
        (lambda: AttackSettings(target="closets"), "target of AttackSettings"),
        (lambda: module(cycle="l3"), "cycle of AdversaryCritic"),
        (lambda: CriticSettings(gan_loss="wgan"), "gan_loss of CriticSettings"),
        (lambda: Pretraining(-1), "epochs must be at least 0"),
        (lambda: HighConfidence(confidence=0.05)(Bare(), torch.rand(1, 1, 28, 28), torch.zeros(1).long()), "above 1/K"),
        (lambda: AttackGrids(confidences=(0.5, 1.5)), "confidences"),
        (lambda: AdversaryCritic(Bare(7), quiet()), "critic.num_classes to 7"),
        (lambda: module(linear(3)).attack_target(images()[0], noise()), "critic.num_classes to 3"),
        (lambda: module(nn.Sequential(smooth(), nn.Softmax(1))).attack_target(images()[0], noise()), "probabilities"),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    "network,settings,says",
    [
        (BatchNormNet(10), {}, "batch norm"),
        (Bare(), {"precision": "bf16-mixed"}, "precision 32-true"),
    ],
)
def test_trainers_and_networks_that_would_go_wrong(
    network: nn.Module, settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    size = {"size": 8} if isinstance(network, BatchNormNet) else {}
    judge = Critic(10, 64 if size else 784, [16])
    with pytest.raises(ValueError, match=says):
        trainer(tmp_path, **settings).fit(AdversaryCritic(network, judge, pretraining=Pretraining(0)), digits(**size))


def test_ddp_must_expect_unused_parameters() -> None:
    """Asked of the strategy alone: a trainer would leave a process group behind for the tests that follow."""
    made = module()
    for unused in (False, True):
        strategy = DDPStrategy(find_unused_parameters=unused)
        made._trainer = SimpleNamespace(precision="32-true", strategy=strategy)  # type: ignore[assignment]
        with nullcontext() if unused else pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
            made.on_fit_start()


def test_evaluation_attack() -> None:
    """Steps of at most 0.1, images in the box, both conditions of a success; longer than DeepFool's."""
    net, x = smooth().float(), torch.rand(32, 1, 2, 3)
    with torch.no_grad():
        net[3].weight.mul_(50)
        net[3].bias -= net(x).mean(0)
    y = net(x).argmax(1)
    z = HighConfidence(confidence=0.9)(net, x, y)
    p, predicted = net(z).softmax(1).max(1)
    changed = (z != x).flatten(1).any(1)
    assert changed.sum() >= 30 and len(set(y.tolist())) > 2
    assert z.min() >= 0 and z.max() <= 1 and ((p >= 0.9) & (predicted != y))[changed].all()
    deepfool = DeepFool(steps=500, max_step=0.1)(net, x, y)
    both = changed & (deepfool != x).flatten(1).any(1)
    lengths = [NORMS["l2"].distance(a - x)[both] for a in (z, deepfool)]
    assert lengths[0].mean() > lengths[1].mean() > 0.01
    far = [HighConfidence(confidence=0.3, steps=3, overshoot=0, max_step=step)(net, x, y) for step in (0.01, None)]
    short, long = (float(NORMS["l2"].distance(z - x).max()) for z in far)
    assert 0 < short <= 0.03 + 1e-6 < long


# --- the stand-in for annotators, and the thesis' metrics ------------------------------------------------------------


def test_an_oracle_abstains_and_its_shares_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean probability below 0.5, or fewer than 3 of 5 that agree: "?"; three percentages of 100 with intervals."""
    from adversarial_lightning.reproduce.oracle_standin import UNKNOWN, Oracle, augment, shares

    oracle = Oracle.__new__(Oracle)
    sure, split, few = torch.zeros(5, 10), torch.full((5, 10), 0.1), torch.zeros(5, 10)
    sure[:, 3] = 1
    few[:2, 7] = 1  # two are certain, three prefer another each: the mean is 0.64
    few[2:, 7], few[2, 0], few[3, 1], few[4, 2] = 0.4, 0.6, 0.6, 0.6
    oracle.probabilities = lambda x: torch.stack([sure, split, few], 1)  # type: ignore[method-assign]
    x = torch.rand(3, 1, 8, 8)
    assert oracle.label(x, torch.arange(3)).tolist() == [3, UNKNOWN, UNKNOWN]
    labels, target, y = torch.tensor([3, 3, 5, -1]), torch.tensor([3, 1, 1, 1]), torch.tensor([0, 3, 0, 0])
    found = shares(labels, target, y)
    assert (found["change"], found["no_change"], found["other"]) == (25, 25, 50)
    assert found["change_interval"][0] < 25 < found["change_interval"][1]
    looks = augment(torch.rand(20, 1, 28, 28))
    assert looks.shape == (20, 1, 28, 28) and looks.min() >= 0 and looks.max() <= 1


def test_metrics_of_the_thesis_on_a_linear_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """rho is 1.02 margins over ||x||, misclassified images count as 0 in rho_all; FGSM with and without the box."""
    from adversarial_lightning.reproduce.thesis_metrics import metrics

    net, (x, _) = linear(2).float(), images(12, torch.float32)
    w = (net[1].weight[1] - net[1].weight[0]).detach()
    s = x.flatten(1) @ w + (net[1].bias[1] - net[1].bias[0]).detach()
    y = (s > 0).long()
    y[0] = 1 - y[0]
    found = metrics(net, x, y, eps=0.05)
    rho = 1.02 * (s.abs() / w.norm() + 1e-4) / x.flatten(1).norm(dim=1)
    assert found["error"] == pytest.approx(1 / 12)
    assert found["rho_correct"] == pytest.approx(float(rho[1:].mean()), rel=1e-3)
    assert found["rho_all"] == pytest.approx(float(rho[1:].sum()) / 12, rel=1e-3)
    assert found["rho_predicted"] == pytest.approx(float(rho.mean()), rel=1e-3)
    assert found["found"] == 1 and len(found["each"]) == 11 and found["failed"] == 0
    for name in ("error", "fgsm_error_clipped", "rho_correct", "rho_all", "rho_predicted"):
        low, high = found["interval"][name]
        assert low < found[name] < high

    def short(_: DeepFool, __: nn.Module, z: torch.Tensor, ___: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z * 0.1, torch.zeros(len(z), dtype=torch.bool)  # a failure keeps its length and stays in the mean

    monkeypatch.setattr(DeepFool, "displacement", short)
    stopped = metrics(net, x, y, eps=0.05, of=12)
    assert stopped["failed"] == len(stopped["each"]) == 11 and stopped["rho_correct"] == pytest.approx(0.1)
    assert set(stopped["interval"].values()) == {None}  # all images
    fooled = (s.abs() < 0.05 * w.abs().sum()).float()
    assert found["fgsm_error_unclipped"] == pytest.approx((float(fooled[1:].sum()) + 1) / 12)
    assert found["fgsm_error_clipped"] <= found["fgsm_error_unclipped"]


def test_whitened_images_are_attacked_behind_the_whitening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 3.2: rho of a linear network in its own space; a network without whitening is refused."""
    from adversarial_lightning.reproduce.thesis_metrics import examples, metrics, whitened

    x, _ = images(12, torch.float32)
    net = Bare(2)
    net.layers = nn.Sequential(Whiten(6), nn.Flatten(), nn.Linear(6, 2))
    net.layers[0].fit(x)
    rest, z = whitened(net, x)
    with torch.no_grad():
        assert torch.allclose(rest(z), net.layers(x)) and not torch.allclose(z, x)
    w = (net.layers[2].weight[1] - net.layers[2].weight[0]).detach()
    s = z.flatten(1) @ w + (net.layers[2].bias[1] - net.layers[2].bias[0]).detach()
    rho = 1.02 * (s.abs() / w.norm() + 1e-4) / z.flatten(1).norm(dim=1)
    assert metrics(rest, z, (s > 0).long())["rho_correct"] == pytest.approx(float(rho.mean()), rel=1e-3)
    with pytest.raises(ValueError, match="does not start with"):
        whitened(Bare(2), x)
    net = linear(4).float()
    grid = examples([net, net], x[:3], net(x[:3]).argmax(1))
    assert grid.shape == (3, 3 * 4 + 2, 3 * 5 + 2) and torch.equal(grid[:, 2:4, 2:5], x[0].expand(3, -1, -1))
    assert torch.equal(grid[:, 6:8], grid[:, 10:12]) and not torch.equal(grid[:, 2:4], grid[:, 6:8])
