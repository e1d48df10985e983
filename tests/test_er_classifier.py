"""ER-Classifier, its variants and baselines: section 7 of the specification."""

import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, Bare, Coded, adam, alone, digits, run, trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from adversarial_lightning.attacks import PGD, Noise, noise_for
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.defenses import Voting, required_adaptations
from adversarial_lightning.lightning_modules import RSE, TRADES, VAECLA, ERClassifier, OneCycle, Standard
from adversarial_lightning.lightning_modules.er_classifier import PRIORS, AuthorsCode, sliced_w1
from adversarial_lightning.lightning_modules.trades import kl_attack, trades
from adversarial_lightning.lightning_modules.vaecla import kl_to_standard_normal
from adversarial_lightning.networks import ERNet, NoisyConvolutions
from adversarial_lightning.networks.noisy import GaussianNoise

ADAMS: dict[str, Any] = {"optimizer": adam, "classifier_optimizer": adam, "critic_optimizer": adam}
INNER = PGD(eps=0.1, steps=2)
KL = PGD(eps=0.1, steps=2, loss="kl", start_std=0.001)


def module(batch_norm: bool = True, **settings: Any) -> ERClassifier:
    """A small one, of weights that are always the same; fields of `AuthorsCode` may stand among the settings."""
    torch.manual_seed(0)
    code = {field.name: settings.pop(field.name) for field in fields(AuthorsCode) if field.name in settings}
    settings["authors_code"] = AuthorsCode(**code)
    settings = {"attack": INNER, "regularization": 0.1, "critic_hidden": [16], **ADAMS, **settings}
    return ERClassifier(Coded(batch_norm=batch_norm), **settings)


def batch(n: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    x, y, index = digits().dataset("train").__getitems__(list(range(n)))
    return x, y, index


def noise(n: int, seed: int = 0) -> Noise:
    return Noise.keyed(seed, torch.arange(n))


def state(part: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in part.state_dict().items()}


def moved(part: Any, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in part.state_dict().items())


def weights(part: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in part.parameters()])


# --- the three updates -----------------------------------------------------------------------------------------------


def test_the_critic_stays_within_the_clip(tmp_path: Path) -> None:
    """At construction, after every one of its steps (which go further), and after a checkpoint was loaded."""
    made, reached, before = module(n_critic=2, clip=0.02), [], []
    assert weights(made.critic).abs().max() == 0.02  # type: ignore[arg-type]
    clip = made.clip_critic

    def watched() -> None:
        before.append(weights(made.critic).abs().max())  # type: ignore[arg-type]
        clip()
        reached.append(weights(made.critic).abs().max())  # type: ignore[arg-type]

    made.clip_critic = watched  # type: ignore[method-assign]
    run = trainer(tmp_path, 2)
    run.fit(made, digits())
    assert len(reached) == 2 * 7 * 2 and min(before) > 0.02 and max(reached) <= 0.02
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = module(n_critic=2, clip=0.02)
    again.load_state_dict(torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(weights(again.critic), weights(made.critic))  # type: ignore[arg-type]


@pytest.mark.parametrize("reg_optimizer", ["shared", "own"])
def test_each_update_changes_only_its_own_parameters(reg_optimizer: Any) -> None:
    made, (x, y, _) = module(reg_optimizer=reg_optimizer), batch()
    encoder, classifier, critic, *own = alone(made)
    parts = {"encoder": made.network.encoder, "classifier": made.network.classifier, "critic": made.critic}
    updates: list[tuple[Callable[[], object], set[str]]] = [
        (lambda: made.update_critic([x], noise(16), critic), {"critic"}),
        (lambda: made.update_classification(x, [x], y, [encoder, classifier]), {"encoder", "classifier"}),
        (lambda: made.update_encoder([x], own[0] if own else encoder), {"encoder"}),
    ]
    for update, expected in updates:
        made.critic.zero_grad()  # type: ignore[union-attr]
        before = {name: state(part) for name, part in parts.items()}
        update()
        assert {name for name, part in parts.items() if moved(part, before[name])} == expected
        assert ("critic" in expected) == any(p.grad is not None for p in made.critic.parameters())  # type: ignore[union-attr]
        assert all(p.requires_grad for p in made.parameters()) and all(m.training for m in made.modules())


def test_signs() -> None:
    """The critic scores the prior high and codes low; the encoder then moves its codes to the prior."""
    slow = {"optimizer": lambda p: torch.optim.Adam(p, lr=3e-4)}
    made = module(attack=None, critic_hidden=[64], critic_optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), **slow)
    encoder, _, critic = alone(made)
    codes = 3 + noise(256).normal(torch.zeros(256, 32))
    made.network.encoder.eval()
    made.network.encoder[-1].bias.data += 3

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return codes

    whole, made.network.encoder = made.network.encoder, Fixed()
    for step in range(50):
        logs = made.update_critic([codes], noise(256, step), critic)
    assert logs["w1_hat"] > 0
    made.network.encoder = whole
    x, norms = batch()[0], []
    for _ in range(50):
        norms.append(float(whole(x).detach().norm(dim=1).mean()))
        made.update_encoder([x], encoder)
    assert norms[-1] < 0.9 * norms[0]


def test_a_linear_critic_measures_the_shift_of_the_means() -> None:
    """sup of mean D(z) - mean D(codes) over |weights| <= c is c ||mean z - mean codes||_1: max norms are bounded."""
    shift = torch.tensor([1.0, -2.0, 0.5])
    made = ERClassifier(Coded(3), critic_hidden=[], critic_optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    critic = alone(made)[2]
    like = torch.zeros(20_000, 3)
    made.network.encoder = nn.Identity()
    codes = noise(20_000, 1).normal(like) + shift
    for _ in range(60):
        logs = made.update_critic([codes], noise(20_000), critic)
    expected = (noise(20_000).normal(like).mean(0) - codes.mean(0)).abs().sum()
    assert float(logs["w1_hat"].detach()) / 0.01 == pytest.approx(float(expected), rel=1e-4)
    assert float(expected) == pytest.approx(3.5, rel=0.02)


def test_an_mlp_critic_keeps_its_lipschitz_bound_and_rises_with_the_shift() -> None:
    z, found = noise(256).normal(torch.zeros(256, 2)), []
    for shift in (1.0, 2.0, 4.0):
        torch.manual_seed(0)
        fast = {"critic_optimizer": lambda p: torch.optim.Adam(p, lr=1e-2)}
        made = ERClassifier(Coded(2), clip=0.1, critic_hidden=[64, 64], **fast)
        critic = alone(made)[2]
        made.network.encoder, made.prior = nn.Identity(), lambda noise, like: z  # type: ignore[assignment]
        codes = z + torch.tensor([shift, 0.0])
        for _ in range(30):
            logs = made.update_critic([codes], noise(256), critic)
        assert made.critic is not None
        bound = shift
        for layer in made.critic.modules():
            bound *= float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) if isinstance(layer, nn.Linear) else 1
        w1 = float((made.critic(z).mean() - made.critic(codes).mean()).detach())
        assert 0 < w1 <= bound and logs["w1_hat"] > 0
        found.append(w1)
    assert found == sorted(found)


def test_weight_0_is_standard_training_without_a_critic(tmp_path: Path) -> None:
    """E-CLA bit for bit: the classifier's and critic's settings do not matter, dropout draws the same masks."""
    trained = []
    for make in (
        lambda net: ERClassifier(
            net, regularization=0.0, n_critic=3, authors_code=AuthorsCode(reg_optimizer="own"), **ADAMS
        ),
        lambda net: Standard(net, adam),
    ):
        torch.manual_seed(0)
        made = make(Coded(batch_norm=True, dropout=0.2))
        trainer(tmp_path, 1).fit(made, digits())
        trained.append(made)
    first, second = (t.network.state_dict() for t in trained)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert trained[0].critic is None and not any("critic" in name for name in trained[0].state_dict())


# --- switches --------------------------------------------------------------------------------------------------------


def after_one_batch(**settings: Any) -> Tensor:
    made = module(**settings)
    alone(made)
    made.training_step(batch(), 0)
    return weights(made.network.encoder)


def test_an_optimizer_of_its_own_cancels_the_weight() -> None:
    """From Adam's zero state; one step on the sum does not, and neither does a shared state."""

    def exact(p: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(p, lr=5e-3, eps=1e-16)

    same = {name: exact for name in ADAMS}
    for mode in ("own", "joint", "shared"):  # no batch norm: the bias before one has rounding errors for gradients
        steps = [
            after_one_batch(batch_norm=False, clip=0.5, regularization=w, reg_optimizer=mode, **same)
            for w in (0.1, 1.0)
        ]
        assert torch.allclose(*steps, atol=1e-5) == (mode == "own"), mode


@pytest.mark.parametrize(
    "change",
    [
        *({"accumulate_grads": True}, {"mix_clean": True}, {"reg_optimizer": "own"}, {"reg_optimizer": "joint"}),
        *({"prior": "uniform"}, {"prior": "cauchy"}, {"critic_out": "logsigmoid"}, {"n_critic": 3}, {"beta": 2.0}),
        *({"attack": None}, {"mix_clean": True, "beta": 2.0}, {"mix_clean": True, "reg_optimizer": "joint"}),
    ],
    ids=str,
)
def test_every_switch_changes_the_weights(change: dict[str, Any]) -> None:
    changed = after_one_batch(regularization=10.0, clip=0.5, **change)
    assert changed.isfinite().all() and not torch.equal(changed, after_one_batch(regularization=10.0, clip=0.5))


def test_accumulated_gradients_of_the_critic() -> None:
    """Its second step follows the sum of both gradients, the first of a batch only its own."""
    x, _, _ = batch()
    for accumulate in (False, True):
        made = module(n_critic=2, accumulate_grads=accumulate, clip=10.0, critic_optimizer=sgd)
        critic = alone(made)[2]
        assert made.critic is not None
        for _ in range(2):
            made.update_critic([x], noise(16), critic)
        gradients = torch.cat([p.grad.flatten() for p in made.critic.parameters() if p.grad is not None])
        made.n_critic, made.authors_code = 1, AuthorsCode()
        alone_made = module(critic_optimizer=sgd)
        alone_made.critic.load_state_dict(made.critic.state_dict())  # type: ignore[union-attr]
        alone_made.update_critic([x], noise(16), alone(alone_made)[2])
        single = torch.cat([p.grad.flatten() for p in alone_made.critic.parameters() if p.grad is not None])  # type: ignore[union-attr]
        ratio = float(gradients.norm() / single.norm())
        assert ratio == pytest.approx(2 if accumulate else 1, rel=0.3)


@pytest.mark.parametrize(
    "settings,critic_steps,encoder_steps",
    [
        ({}, 1, 2),
        ({"mix_clean": True}, 2, 3),
        ({"n_critic": 3}, 3, 2),
        ({"mix_clean": True, "n_critic": 3, "reg_optimizer": "joint"}, 6, 1),
    ],
)
def test_steps_of_a_batch(settings: dict[str, Any], critic_steps: int, encoder_steps: int) -> None:
    made = module(**settings)
    encoder, classifier, critic = alone(made)
    made.training_step(batch(), 0)
    steps = [int(next(iter(o.state.values()))["step"]) for o in (encoder, classifier, critic)]
    assert steps == [encoder_steps, 1, critic_steps]


def test_update_2_is_its_formula() -> None:
    x, y, _ = batch()
    made = module()
    other = (x + 0.1).clamp(0, 1)
    clean, attacked = F.cross_entropy(made(x), y), F.cross_entropy(made(other), y)
    assert torch.equal(made.classification_loss(x, [other], y)[0], attacked)
    assert torch.allclose(made.classification_loss(x, [x, other], y)[0], (clean + attacked) / 2)
    made = module(beta=2.0)
    expected = trades(made(x), made(other), y, 2.0)[0]
    assert torch.allclose(made.classification_loss(x, [other], y)[0], expected)
    assert torch.allclose(made.classification_loss(x, [x, other], y)[0], expected)


@pytest.mark.parametrize("reg_optimizer", ["joint", "shared"])
def test_the_encoder_follows_the_regulariser_uphill(reg_optimizer: Any) -> None:
    """Gradient of CE - lambda D(codes): in one step (joint), or of its second term alone after the first (shared)."""
    made, (x, y, _) = module(reg_optimizer=reg_optimizer, regularization=3.0, optimizer=sgd), batch()
    encoder, classifier = alone(made)[:2]
    weights_of_encoder = list(made.network.encoder.parameters())
    codes = made.network.encoder(x)
    score = made.critic(codes).mean()  # type: ignore[misc]
    data = F.cross_entropy(made.network.classifier(codes), y) if reg_optimizer == "joint" else 0.0
    expected = torch.autograd.grad(data - 3.0 * score, weights_of_encoder)
    if reg_optimizer == "joint":
        made.update_jointly(x, [x], y, [encoder, classifier])
    else:
        made.update_encoder([x], encoder)
    found = [p.grad for p in weights_of_encoder]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))  # type: ignore[arg-type]


def test_what_the_attack_is_given() -> None:
    """Labels, predictions in eval mode, or for TRADES the probabilities; train mode comes back."""
    x, y, _ = batch()
    seen: list[Tensor] = []

    class Spy(PGD):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise | None = None) -> Tensor:
            seen.append(y)
            return super().__call__(model, x, y, noise)

    spy = Spy(eps=0.1, steps=1)
    settings: list[dict[str, Any]] = [{}, {"attack_label": "prediction"}, {"beta": 1.0}]
    for change in settings:
        made = module(attack=spy, **change)
        z = made.attacked(x, y, noise(16))
        assert (z - x).abs().max() <= 0.1 + 1e-6 and made.training and made.network.encoder.training
    logits = module().eval()(x)
    assert (
        torch.equal(seen[0], y) and torch.equal(seen[1], logits.argmax(1)) and torch.equal(seen[2], logits.softmax(1))
    )
    assert module(attack=None).attacked(x, y, noise(16)) is x


# --- priors and distances --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_priors(dtype: torch.dtype) -> None:
    like = torch.zeros(20_000, 2, dtype=dtype)
    for name, prior in PRIORS.items():
        z = prior(noise(20_000), like)
        assert z.shape == like.shape and z.dtype == dtype and z.isfinite().all(), name
        assert torch.equal(z, prior(noise(20_000), like)) and not torch.equal(z, prior(noise(20_000, 1), like))
    uniform, gaussian = (PRIORS[name](noise(20_000), like) for name in ("uniform", "gaussian"))
    assert -3 <= uniform.min() < -2.99 and 2.99 < uniform.max() <= 3 and abs(float(uniform.mean())) < 0.05
    assert float(gaussian.std()) == pytest.approx(1, abs=0.02)
    cauchy = PRIORS["cauchy"](noise(20_000), like).flatten()
    quartiles = cauchy.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=dtype))
    assert quartiles.tolist() == pytest.approx([-1, 0, 1], abs=0.05)


def test_sliced_distance_of_a_shift() -> None:
    """W1 along a direction u between a sample and itself moved by s is |<u, s>|."""
    a, s = noise(100).normal(torch.zeros(100, 3)), torch.tensor([3.0, 0.0, 4.0])
    u = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 7.0], [0.0, 1.0, 0.0]])
    assert float(sliced_w1(a, (a + s).flip(0), u)) == pytest.approx((3 + 4 + 0) / 3, rel=1e-5)


# --- TRADES, VAE-CLA, RSE --------------------------------------------------------------------------------------------


def test_trades_is_its_formula() -> None:
    x, y, _ = batch()
    net = Bare()
    zero = TRADES(net, KL, beta=0.0).losses(x, y, noise(16))
    assert torch.equal(zero["loss"], F.cross_entropy(net(x), y))
    still = TRADES(net, PGD(eps=0.0, loss="kl", start_std=0.001), beta=6.0).losses(x, y, noise(16))
    assert float(still["divergence"].detach()) == pytest.approx(0, abs=1e-6)
    z = kl_attack(KL, net, x, noise(16))
    p, q = net(x).softmax(1), net(z).softmax(1)
    losses = TRADES(net, KL, beta=2.5).losses(x, y, noise(16))
    divergence = (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(losses["divergence"], divergence, rtol=1e-4) and divergence > 0
    assert torch.allclose(losses["loss"], F.cross_entropy(net(x), y) + 2.5 * divergence, rtol=1e-4)
    at_random = (x + 0.1 * noise(16).normal(x).sign()).clamp(0, 1)
    assert losses["divergence"] > 2 * trades(net(x), net(at_random), y, 1.0)[2]
    # Both terms are differentiated at x as well as at x'.
    gradients = (
        torch.autograd.grad(v, list(net.parameters()), retain_graph=True) for v in (losses["divergence"], divergence)
    )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_pgd_starts_in_a_small_gaussian() -> None:
    x = torch.full((64, 1, 8, 8), 0.5)
    for std, most in ((0.001, 0.001), (10.0, 0.1)):
        start = PGD(eps=0.1, start_std=std)._start(x, noise(64))
        assert start.abs().max() <= 0.1 and float(start.std()) == pytest.approx(most, rel=0.05)
    with pytest.raises(ValueError, match="random_start"):
        PGD(random_start=False, start_std=0.001)


def test_vaecla_is_its_formula() -> None:
    """KL to N(0, I) against torch's own; the code is drawn in training and the mean at inference."""
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    ours = kl_to_standard_normal(mean, log_variance)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    assert torch.allclose(ours, torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).sum(1))
    assert not kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)).any()
    x, y, _ = batch()
    net = Coded()
    made = VAECLA(net, kl_weight=0.5)
    losses = made.losses(x, y, noise(16))
    assert torch.allclose(losses["loss"], losses["data"] + 0.5 * losses["kl"])
    assert not torch.equal(losses["data"], made.losses(x, y, noise(16, 1))["data"])
    made.log_variance.weight.data.zero_()
    made.log_variance.bias.data.fill_(math.log(4.0))  # sigma 2
    drawn = net.classifier(net.encoder(x) + 2 * noise(16).normal(net.encoder(x).detach()))
    assert torch.allclose(made.losses(x, y, noise(16))["data"], F.cross_entropy(drawn, y))
    made.log_variance.bias.data.fill_(-60.0)
    assert torch.allclose(made.losses(x, y, noise(16))["data"], F.cross_entropy(net(x), y))
    assert torch.equal(made.eval()(x), net(x))


def test_rse_has_a_noise_layer_for_each_convolution() -> None:
    """Its first has a strength of its own; without noise it is the plain net; draws belong to the samples."""
    plain = ERNet(width=4).eval()
    x = batch()[0]
    expected = plain(x)
    noisy = NoisyConvolutions(plain, init=0.0, inner=0.0)
    assert torch.equal(noisy(x), expected) and required_adaptations(noisy) == {"bpda": False, "eot": False}
    noisy = NoisyConvolutions(ERNet(width=4), init=0.8, inner=0.4).eval()
    layers = [m.std for m in noisy.modules() if isinstance(m, GaussianNoise)]
    assert layers == [0.8, 0.4, 0.4, 0.4] and required_adaptations(noisy) == {"bpda": False, "eot": True}
    assert not torch.equal(noisy(x), noisy(x))
    draws = noise(16)
    with noise_for(noisy, draws):
        first = noisy(x)
    with noise_for(noisy, noise(16)[torch.tensor([3, 1])]):
        assert torch.allclose(noisy(x[[3, 1]]), first[[3, 1]], atol=1e-5)
    assert draws.counter > 0


def test_the_ensemble_varies_less_the_more_draws_it_has() -> None:
    """Variance of the mean probabilities falls like 1 / draws."""
    net, x = NoisyConvolutions(Bare(), 0.3, 0.3).eval(), batch(8)[0]
    with torch.no_grad():
        answers = [torch.stack([Voting(net, n, "mean_probs")(x).softmax(1) for _ in range(100)]) for n in (1, 8)]
    assert float(answers[0].var(0).mean() / answers[1].var(0).mean()) == pytest.approx(8, rel=0.3)


# --- as others use them ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_training_learns_and_inference_needs_no_critic(tmp_path: Path) -> None:
    made = ERClassifier(Coded(), INNER, regularization=0.1, critic_hidden=[16], **ADAMS)
    fit = trainer(tmp_path, 5)
    fit.fit(made, digits())
    assert fit.callback_metrics["val/acc"] > 0.6
    logged = {name for name in fit.callback_metrics if name.startswith("train/")}
    assert logged == {f"train/{name}" for name in ("loss", "w1_hat", "code_mean", "code_std", "code_score")}
    fit.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    content["state_dict"] = {name: t for name, t in content["state_dict"].items() if "critic" not in name}
    torch.save(content, tmp_path / "exported.ckpt")
    x = batch()[0]
    for name in ("x.ckpt", "exported.ckpt"):
        assert torch.equal(load_network(tmp_path / name, Coded())[0](x), made.eval()(x))


TWO = """
import os, sys, torch
sys.path.insert(0, {root!r} + "/tests")
from test_er_classifier import JOINT
from helpers import digits, trainer
for name, make in JOINT.items():
    module = make()
    run = trainer({folder!r}, 2, devices=2, strategy="ddp_find_unused_parameters_true")
    run.fit(module, digits(batch_size=16, train_limit=96))
    mine = torch.cat([p.detach().flatten() for p in module.parameters()])
    both = run.strategy.all_gather(mine)
    assert (both[0] == both[1]).all(), "ranks differ"
    if run.global_rank == 0:
        torch.save(mine, {folder!r} + "/" + name + ".pt")
run.strategy.barrier()
os._exit(0)  # gloo's threads may abort a process that leaves in the usual way
"""


def joint(make: Callable[[], Any]) -> Callable[[], Any]:
    def made() -> Any:
        torch.manual_seed(0)
        return make()

    return made


def sgd(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, lr=0.1)


SGDS: dict[str, Any] = {name: sgd for name in ADAMS}
JOINT = {
    "er": joint(lambda: ERClassifier(Coded(), INNER, 1.0, critic_hidden=[16], schedule=OneCycle(), clip=0.1, **SGDS)),
    "code": joint(
        lambda: ERClassifier(
            Coded(),
            INNER,
            1.0,
            critic_hidden=[16],
            authors_code=AuthorsCode(accumulate_grads=True, mix_clean=True),
            clip=0.1,
            **SGDS,
        )
    ),
    "er_trades": joint(
        lambda: ERClassifier(
            Coded(), KL, 1.0, 2.0, critic_hidden=[16], authors_code=AuthorsCode(reg_optimizer="joint"), **SGDS
        )
    ),
    "vaecla": joint(lambda: VAECLA(Coded(), optimizer=sgd, classifier_optimizer=sgd)),
    "rse": joint(lambda: RSE(NoisyConvolutions(Bare(), 0.2, 0.1), sgd)),
}


@pytest.mark.long
def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    """Draws of priors, attacks, codes and noise layers are those of the joint batch."""
    script = tmp_path / "run.py"
    script.write_text(TWO.format(root=str(ROOT), folder=str(tmp_path)))
    run(sys.executable, str(script))
    for name, make in JOINT.items():
        one = make()
        trainer(tmp_path, 2).fit(one, digits(train_limit=96))
        two = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        # Other draws change weights by 2 % and more; rounding flips single signs of the attack's gradient.
        assert (two - weights(one)).abs().max() < 3e-3 * weights(one).abs().max(), name
        assert not torch.allclose(two, weights(make()), atol=1e-2), name


def test_ddp_must_expect_unused_parameters_where_there_is_a_critic() -> None:
    for weight, unused in ((0.1, True), (0.0, False)):
        made = module(regularization=weight)
        made._trainer = SimpleNamespace(strategy=DDPStrategy(find_unused_parameters=unused))  # type: ignore[assignment]
        made.on_fit_start()
    made._trainer = SimpleNamespace(strategy=DDPStrategy(find_unused_parameters=False))  # type: ignore[assignment]
    made.critic = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
        made.on_fit_start()


class Loose(Coded):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def test_an_embedding_of_one_number_is_enough() -> None:
    assert ERClassifier(Coded(1)).network.embedding == 1


@pytest.mark.parametrize(
    "make,says",
    [
        (lambda: ERNet(embedding=0), "embedding must be at least 1, not 0"),
        (lambda: ERClassifier(Coded(0)), "embedding must be at least 1"),
        (lambda: ERClassifier(Bare()), "encoder and classifier"),
        (lambda: ERClassifier(Loose()), "outside encoder and classifier"),
        (lambda: module(regularization=-0.1), "regularization"),
        (lambda: module(regularization=float("nan")), "regularization"),
        (lambda: module(clip=0.0), "clip"),
        (lambda: module(clip=-1.0), "clip"),
        (lambda: module(n_critic=0), "n_critic"),
        (lambda: module(prior="laplace"), "prior is one of gaussian, uniform, cauchy; not 'laplace'"),
        (lambda: module(beta=-1.0), "beta"),
        (lambda: module(attack=None, mix_clean=True), "need an attack"),
        (lambda: module(attack=None, beta=6.0), "need an attack"),
        (lambda: TRADES(Bare(), KL, beta=-1.0), "beta"),
        (lambda: VAECLA(Coded(), kl_weight=-1.0), "kl_weight"),
        (lambda: VAECLA(Bare()), "encoder and classifier"),
        (lambda: RSE(Bare()), "NoisyConvolutions"),
        (lambda: NoisyConvolutions(nn.Linear(2, 2)), "no convolutions"),
        (lambda: NoisyConvolutions(Bare(), init=-0.1), "std must be at least 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_mistakes_are_named(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
