"""MALADE: denoisers that know the score, chains that follow it, and attacks through, round and in place of them."""

import math
from pathlib import Path

import pytest
import torch
from helpers import Bare, adam, digits, trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from victims import BatchNormNet

from adversarial_lightning.attacks import BPDA, FGSM, PGD, GrayBox, Noise, ReconstructionPGD, noise_for
from adversarial_lightning.attacks.core.gradient import ce, input_gradient
from adversarial_lightning.attacks.corruptions import SaltAndPepper
from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.defenses import MALA, MALADE, Magnet, Purified, Voting, required_adaptations
from adversarial_lightning.detectors import ReconstructionError, ScoreNorm
from adversarial_lightning.evaluation.outcomes.outcome import evaluate_batch
from adversarial_lightning.lightning_modules import Cosine, DenoisingAutoencoder, Standard
from adversarial_lightning.lightning_modules.denoising_autoencoder import (
    class_weights,
    supervised_objective,
    supervised_share,
)
from adversarial_lightning.networks import MLP, ConvAutoencoder, Denoiser, FCDenseNet, MagnetAutoencoder
from adversarial_lightning.networks.eval_mode import frozen_eval

MNIST = Path("data/MNIST/raw/t10k-images-idx3-ubyte")


class LinearMap(nn.Module):
    """r(x) = A x + b on flattened images."""

    def __init__(self, n: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(n, n, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)).view_as(x)


class Table(nn.Module):
    """A piecewise linear function of one number, between knots on [-5, 5]."""

    def __init__(self, knots: int = 41) -> None:
        super().__init__()
        self.knots = torch.linspace(-5, 5, knots, dtype=torch.float64)
        self.values = nn.Parameter(self.knots.clone())

    def forward(self, x: Tensor) -> Tensor:
        place = ((x + 5) / 10 * (len(self.knots) - 1)).clamp(0, len(self.knots) - 1.001)
        low = place.floor().long()
        return torch.lerp(self.values[low], self.values[low + 1], place - low)


class Logistic(nn.Module):
    """Two classes by one number; the boundary is not where it should be, at 0."""

    slope, boundary = 4.0, 0.6

    def forward(self, x: Tensor) -> Tensor:
        z = self.slope * (x.flatten(1) - self.boundary)
        return torch.cat([-z / 2, z / 2], 1)


class Pull(nn.Module):
    """r(x) = mean + share (x - mean): the optimal denoiser of N(mean, s - sigma2) is share = 1 - sigma2 / s."""

    def __init__(self, mean: float = 0.5, share: float = 0.5) -> None:
        super().__init__()
        self.mean, self.share = mean, share
        self.empty = nn.Parameter(torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.mean + self.share * (x - self.mean)


def autoencoder(seed: int = 0, trained_for: str | None = "anything") -> Denoiser:
    """An untrained denoiser of small images, not far from the identity on grey ones."""
    torch.manual_seed(seed)
    return Denoiser(ConvAutoencoder(width=4, mean_pixel=0.5), 0.15, trained_for)


def defended(inner: nn.Module, **settings: object) -> Purified:
    """MALADE in front of `inner`, which its denoiser is for."""
    return Purified(inner, MALADE(autoencoder(trained_for=digest_weights(inner)), **settings))  # type: ignore[arg-type]


def keyed(n: int, seed: int = 0) -> Noise:
    return Noise.keyed(seed, torch.arange(n))


def minimise(module: DenoisingAutoencoder, x: Tensor, y: Tensor, steps: int = 30) -> None:
    """Full-batch minimisation of Eq. 8 under fixed noise."""
    optimizer = torch.optim.LBFGS(module.network.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = module.objective(module.terms(x, y, keyed(len(x))), y)
        loss.backward()
        return loss

    optimizer.step(closure)


# --- what a denoiser learns ------------------------------------------------------------------------------------------


def test_a_linear_dae_learns_the_score_of_a_gaussian() -> None:
    """r(x) = mu + S (S + sigma2 I)^-1 (x - mu): Eq. 6 in closed form."""
    n, sigma2 = 4, 0.15
    root, mu = torch.randn(n, n, dtype=torch.float64) / 2, torch.rand(n, dtype=torch.float64)
    x = (mu + torch.randn(60_000, n, dtype=torch.float64) @ root.T).view(-1, 1, 2, 2)
    module = DenoisingAutoencoder(LinearMap(n, torch.float64), sigma2=sigma2)
    minimise(module, x, torch.zeros(len(x), dtype=torch.long))
    precision = torch.linalg.inv(root @ root.T + sigma2 * torch.eye(n, dtype=torch.float64))
    expected = -(x[:1000].flatten(1) - mu) @ precision
    found = module.network.score(x[:1000]).flatten(1)
    assert (found - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.long
@pytest.mark.parametrize("ce_scale", [1.0, 0.0])
def test_an_sdae_reaches_the_fixed_point_at_finite_sigma(ce_scale: float) -> None:
    """Two Gaussians at -1 and 1 (variance 0.2), a logistic classifier: r = x + sigma2 (score + E grad log f(r))."""
    sigma2, var, n = 0.15, 0.2, 40_000
    y = torch.arange(n) % 2
    x = (2 * y - 1 + math.sqrt(var) * torch.randn(n, dtype=torch.float64)).view(-1, 1, 1, 1)
    module = DenoisingAutoencoder(Table(), Logistic(), sigma2, ce_scale)
    minimise(module, x, y, 60)
    t = torch.linspace(-1.6, 1.6, 33, dtype=torch.float64)
    posterior = torch.sigmoid(2 * t / (var + sigma2))  # of class 1, of the noisy data
    score = (2 * posterior - 1 - t) / (var + sigma2)
    r = module.network(t.view(-1, 1, 1, 1)).flatten().detach()
    # E over y of d/dr log f_y(r), y from the posterior at t:
    pull = Logistic.slope * (posterior - torch.sigmoid(Logistic.slope * (r - Logistic.boundary)))
    residual = (r - (t + sigma2 * (score + ce_scale * pull))).abs()
    assert residual.mean() < 0.012 and residual.max() < 0.05
    assert (sigma2 * pull).abs().max() > 0.1  # the second term is no trifle here
    if not ce_scale:
        plain = DenoisingAutoencoder(Table(), sigma2=sigma2)
        minimise(plain, x, y, 60)
        assert torch.equal(plain.network(x[:50]), module.network(x[:50]))


def test_the_squared_error_is_a_sum_over_pixels_and_a_mean_over_images() -> None:
    """The gradient is that of Eq. 8 written by hand for L = 784; a mean over pixels would be 784 times smaller."""
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    module = DenoisingAutoencoder(ConvAutoencoder(width=2), inner, 0.15)
    x, y = torch.rand(5, 1, 28, 28), torch.arange(5)
    module.objective(module.terms(x, y, keyed(5)), y).backward()
    found = [p.grad.clone() for p in module.network.parameters()]
    module.zero_grad()
    r = module.network(x + math.sqrt(0.15) * keyed(5).normal(x))
    hand = (
        sum(((r[i] - x[i]) ** 2).sum() - 2 * 0.15 * inner(r[i : i + 1]).log_softmax(1)[0, y[i]] for i in range(5)) / 5
    )
    hand.backward()
    for a, p in zip(found, module.network.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-4, atol=1e-5)


def test_reweighting_makes_classes_count_alike() -> None:
    """On an unbalanced set the loss is that of the resampled, balanced set."""
    labels = torch.tensor([0] * 6 + [1] * 2 + [3])
    weights = class_weights(labels)
    assert weights.tolist() == pytest.approx([0.5, 1.5, 0.0, 3.0]) and weights[labels].mean() == pytest.approx(1)
    error, cross_entropy = torch.rand(9), torch.rand(9)
    balanced = torch.cat([torch.arange(6), torch.tensor([6, 7] * 3), torch.tensor([8] * 6)])
    expected = supervised_objective(error[balanced], cross_entropy[balanced], 0.15)
    assert torch.allclose(supervised_objective(error, cross_entropy, 0.15, weight=weights[labels]), expected)


def test_reweighting_of_the_second_term_leaves_the_first_alone() -> None:
    module = DenoisingAutoencoder(ConvAutoencoder(width=2), Bare(), 0.15, reweight="ce_only")
    module._weights = torch.tensor([0.5, 2.0])
    terms = {"reconstruction": torch.tensor([1.0, 3.0]), "cross_entropy": torch.tensor([10.0, 30.0])}
    found = module.objective(terms, torch.tensor([1, 0]))
    assert float(found) == pytest.approx(((1 + 0.3 * 2 * 10) + (3 + 0.3 * 0.5 * 30)) / 2)


def test_the_supervised_share_is_the_classifier_s_pull_over_the_score_s() -> None:
    """The posterior is taken at the noisy image, the gradient at the restored one."""
    x, r = torch.linspace(-1, 2, 10, dtype=torch.float64), torch.linspace(1.5, -0.5, 10, dtype=torch.float64)
    p, q = (torch.sigmoid(Logistic.slope * (v - Logistic.boundary)) for v in (x, r))
    expected = 0.15 * (Logistic.slope * (p - q)).abs() / (r - x).abs()
    images = [v.view(-1, 1, 1, 1) for v in (x, r)]
    assert torch.allclose(supervised_share(Logistic(), *images, 0.15), expected)


@pytest.mark.parametrize("corruption", ["once", "fresh"])
def test_magnets_noise_is_drawn_once_and_clipped(corruption: str, tmp_path: Path) -> None:
    """As its public code does; the theory wants new noise in each step, as it falls."""
    network, seen = ConvAutoencoder(width=2), []
    network.register_forward_pre_hook(lambda net, args: seen.append(args[0].detach()) if net.training else None)
    module = DenoisingAutoencoder(network, corruption=corruption, optimizer=adam)  # type: ignore[arg-type]
    trainer(tmp_path, epochs=2).fit(module, digits(train_limit=16, batch_size=16))
    first, second = (batch[batch.flatten(1).sum(1).argsort()] for batch in seen)  # epochs are shuffled
    assert torch.equal(first, second) == (corruption == "once")
    assert (first.min() >= 0 and first.max() <= 1) == (corruption == "once")


@pytest.mark.long
def test_fit_chooses_restores_and_leaves_the_classifier_alone(tmp_path: Path) -> None:
    """Trained on real digits: no collapse to black, the classifier bit for bit the same, and noted."""
    data = digits(train_limit=400)
    frozen = Bare(batch_norm=True)
    trainer(tmp_path, epochs=1).fit(Standard(frozen, adam), data)
    before = digest_weights(frozen)
    whole = DenoisingAutoencoder(ConvAutoencoder(width=8), frozen, optimizer=adam, schedule=Cosine())
    run = trainer(tmp_path, epochs=3)
    run.fit(whole, data)
    assert digest_weights(frozen) == before and not frozen.training
    assert {f"val/{n}" for n in ("loss", "reconstruction", "cross_entropy", "acc", "supervised_share")} <= set(
        run.callback_metrics
    )
    x, _, index = data.dataset("val").__getitems__(list(range(50)))
    black = x.square().flatten(1).sum(1).mean()
    assert run.callback_metrics["val/reconstruction"] < 0.6 * black
    expected = (whole.network(x + 0.15**0.5 * Noise.keyed(0, index).fork("held out").normal(x)) - x).square()
    assert run.callback_metrics["val/reconstruction"] == pytest.approx(expected.flatten(1).sum(1).mean().item(), 1e-4)
    parts = {name: run.callback_metrics[f"val/{name}"] for name in ("loss", "reconstruction", "cross_entropy")}
    eq_8 = parts["reconstruction"] + 2 * 0.15 * whole.ce_scale * parts["cross_entropy"]  # checkpoints are chosen by it
    assert parts["loss"] == pytest.approx(eq_8.item(), 1e-5) and parts["loss"] > 1.01 * parts["reconstruction"]
    run.save_checkpoint(tmp_path / "sdae.ckpt")

    denoiser, _ = load_network(tmp_path / "sdae.ckpt")
    assert isinstance(denoiser, Denoiser) and denoiser.trained_for == before and denoiser.sigma2 == 0.15
    assert torch.equal(denoiser(x), whole.network.eval()(x))
    purifier = MALADE(str(tmp_path / "sdae.ckpt"), steps=2)
    assert Purified(Purified(frozen, Magnet(denoiser)), purifier)(x).shape == (50, 10)
    with pytest.raises(ValueError, match="trained for another classifier"):
        Purified(Bare(batch_norm=True), purifier)
    mlp = {f"network.{name}": value for name, value in MLP().state_dict().items()}
    torch.save({"state_dict": mlp, "catalogue": {"network": describe(MLP())}}, tmp_path / "mlp.ckpt")
    with pytest.raises(ValueError, match="holds a MLP, no denoiser"):
        MALADE(str(tmp_path / "mlp.ckpt"))
    with pytest.raises(ValueError, match="DAE use MALA"):
        MALADE(autoencoder(trained_for=None))
    with pytest.raises(ValueError, match="use MALADE"):
        MALA(denoiser)


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_resume_is_exact_and_a_dae_needs_no_classifier(tmp_path: Path) -> None:
    def module() -> DenoisingAutoencoder:
        torch.manual_seed(0)
        return DenoisingAutoencoder(ConvAutoencoder(width=4), reweight="loss", optimizer=adam, schedule=Cosine())

    whole, resumed = module(), module()
    keep = ModelCheckpoint(dirpath=tmp_path, filename="stopped", every_n_train_steps=10)  # in the second epoch
    trainer(tmp_path, epochs=2, callbacks=[keep], enable_checkpointing=True).fit(whole, digits())
    run = trainer(tmp_path, epochs=2)
    run.fit(resumed, digits(), ckpt_path=str(tmp_path / "stopped.ckpt"), weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert "val/acc" not in run.callback_metrics and run.callback_metrics["val/loss"] > 0
    (tested,) = run.test(resumed, digits(), verbose=False)
    assert set(tested) == {"test/loss", "test/reconstruction"}
    (restored, *_) = run.predict(resumed, digits()) or []
    assert restored["restored"].shape[1:] == (1, 28, 28)


def test_fc_densenet_recomputes_without_changing_anything() -> None:
    a, b = FCDenseNet(dropout=0.1), FCDenseNet(dropout=0.1, recompute=False)
    b.load_state_dict(a.state_dict())
    x = torch.rand(2, 3, 32, 32)
    for net in (a, b):
        torch.manual_seed(0)
        net(x).square().sum().backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)
    assert all(torch.equal(p, q) for p, q in zip(a.buffers(), b.buffers(), strict=True))


# --- chains ----------------------------------------------------------------------------------------------------------


def test_magnet_is_one_step_of_malade() -> None:
    denoiser, x = autoencoder(), torch.rand(4, 1, 8, 8)
    one = MALADE(denoiser, step_size=denoiser.sigma2, steps=1, noise_std=0)
    assert torch.equal(one(x), Magnet(denoiser)(x)) and torch.equal(one(x), denoiser(x))
    assert not one.stochastic and required_adaptations(one) == {"bpda": False, "eot": False}
    assert torch.equal(MALADE(denoiser, steps=0)(x), x)
    assert torch.equal(MALADE(denoiser, step_size=0, steps=3, noise_std=0)(x), x)
    dae = autoencoder(trained_for=None)
    assert torch.equal(MALA(dae, noise_std=0)(x), MALADE(denoiser, noise_std=0)(x))


def test_chain_statistics_are_those_of_theory() -> None:
    """Linear r of N(mu, s - sigma2): the stationary variance is delta^2 / (1 - (1 - alpha / s)^2)."""
    s, sigma2, alpha, delta = 0.3, 0.15, 0.1, 0.05
    chain = MALA(Denoiser(Pull(0.5, 1 - sigma2 / s), sigma2), alpha, 60, delta, clip="none")
    with noise_for(chain, keyed(400)):
        z = chain(torch.full((400, 1, 8, 8), 0.9))
    expected = delta**2 / (1 - (1 - alpha / s) ** 2)
    assert z.mean() == pytest.approx(0.5, abs=2e-3) and z.var() == pytest.approx(expected, rel=0.03)
    start = torch.full((1, 1, 8, 8), 0.9)
    far = [float(MALA(chain.denoiser, alpha, n, 0.0, clip="none")(start).std()) for n in (1, 2)]
    assert far == [0.0, 0.0]
    beyond = Denoiser(Pull(0.5, 1 - sigma2 / 0.1), sigma2)  # s = 0.1, alpha = 0.25 > 2 s, still below 2 sigma2
    assert abs(float(MALA(beyond, 0.25, 20, 0.0, clip="none")(start).mean()) - 0.5) > 10


def test_annealing_and_clipping() -> None:
    denoiser, x = autoencoder(), torch.rand(3, 1, 8, 8)
    z, c = x, 0.03 / 0.15
    for t in range(3):
        z = (1 - c * 0.5**t) * z + c * 0.5**t * denoiser(z)
    assert torch.allclose(MALADE(denoiser, steps=3, noise_std=0, annealing=0.5)(x), z.clamp(0, 1))
    drawn, z = keyed(3), x
    for t in range(3):
        z = z + 0.2 * 0.5 ** (t / 2) * drawn.normal(x)  # delta^2 shrinks like alpha
    still = MALADE(denoiser, step_size=0, steps=3, noise_std=0.2, annealing=0.5, clip="none")
    with noise_for(still, keyed(3)):
        assert torch.allclose(still(x), z)
    assert torch.allclose(Magnet(Denoiser(Pull(0.5, 3.0), 0.15))(x), (3 * x - 1).clamp(0, 1), atol=1e-6)
    noisy = {clip: MALADE(denoiser, noise_std=0.5, clip=clip) for clip in ("none", "final", "each")}
    out = {}
    for clip, chain in noisy.items():
        with noise_for(chain, keyed(3)):
            out[clip] = chain(x)
    assert out["none"].max() > 1 and torch.equal(out["final"], out["none"].clamp(0, 1))
    assert out["each"].max() <= 1 and not torch.allclose(out["each"], out["final"])


def test_streams_belong_to_the_image_and_to_one_side() -> None:
    """Same seed, same output, in any batch; an attack moves nothing of the defender's."""
    inner = BatchNormNet().eval()
    model = defended(inner)
    chain, x = model.purifier, torch.rand(64, 1, 8, 8)
    with noise_for(chain, keyed(64)):
        together = chain(x)
    for i in range(0, 64, 9):
        with noise_for(chain, keyed(64)[i : i + 1]):
            assert torch.allclose(chain(x[i : i + 1]), together[i : i + 1], atol=1e-6)
    with noise_for(chain, keyed(64, 1)):
        assert not torch.allclose(chain(x), together)
    defender_noise = keyed(4)
    with noise_for(model, defender_noise):
        PGD(eps=0.1, steps=2, eot_samples=3)(model, x[:4], torch.arange(4) % 3, keyed(4, 9))
        assert defender_noise.counter == 0 and torch.allclose(chain(x[:4]), together[:4], atol=1e-6)


def test_a_chain_that_is_not_finite_is_never_predicted() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1, :1, :1] > 0.5, torch.inf, x)

    x = torch.rand(4, 1, 8, 8)
    x[:, 0, 0, 0] = torch.tensor([0.2, 0.9, 0.2, 0.9])
    inner = BatchNormNet().eval()
    for purifier in (MALA(Denoiser(Breaks(), 0.15), noise_std=0), MALA(Denoiser(Breaks(), 0.15), clip="each")):
        rows, _ = evaluate_batch(
            Purified(inner, purifier), None, x, torch.zeros(4, dtype=torch.long), torch.arange(4), seed=0, name="clean"
        )
        assert [row.clean == -1 for row in rows] == [False, True, False, True]
    assert Magnet(Denoiser(Breaks(), 0.15))(x).isnan().flatten(1).all(1).tolist() == [False, True, False, True]


def test_votes() -> None:
    """Counts decide, mean probabilities decide ties, and a single broken pass breaks the answer."""

    class Script(nn.Module):
        stochastic = True
        turns = iter(())

        def forward(self, x: Tensor) -> Tensor:
            return next(self.turns).expand(len(x), 3) + 0 * x.flatten(1).sum(1, keepdim=True)

    model, x = Script(), torch.rand(2, 1, 4, 4, requires_grad=True)
    passes = [torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 1, 0]), torch.tensor([9.0, 0, 0])]

    def answer(mode: str, turns: list[Tensor]) -> Tensor:
        model.turns = iter(turns)
        return Voting(model, len(turns), mode)(x)  # type: ignore[arg-type]

    assert answer("vote", passes).argmax(1).tolist() == [1, 1]
    assert answer("mean_logits", passes).argmax(1).tolist() == [0, 0]
    assert answer("mean_probs", passes).argmax(1).tolist() == [0, 0]
    assert answer("vote", passes[1:]).argmax(1).tolist() == [0, 0]  # a tie
    surer = torch.tensor([0.0, 0, 5])
    assert answer("vote", [passes[0], surer]).argmax(1).tolist() == [2, 2]  # a tie of 1 and 2: the mean decides
    assert answer("vote", [passes[0], torch.tensor([0.0, torch.nan, 0])]).isnan().any()
    assert answer("vote", passes).requires_grad
    with pytest.raises(ValueError, match="votes"):
        Voting(model, 0)


# --- attacks ---------------------------------------------------------------------------------------------------------


def test_gradients_by_bpda_and_through_the_chain() -> None:
    """BPDA: the classifier's gradient at the defended point; full: finite differences; N = 0: the plain gradient."""
    inner = BatchNormNet().eval().double()
    x, y = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.arange(3)
    model = defended(inner, steps=3, clip="none").double()

    class Gradient(FGSM):
        def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            found.append(input_gradient(model, x, y, ce, self.eot_samples)[0])
            return x

    found: list[Tensor] = []
    z = []
    handle = inner.register_forward_pre_hook(lambda _, args: z.append(args[0].detach()))
    BPDA(Gradient())(model, x, y, keyed(3))
    handle.remove()
    with frozen_eval(inner):
        assert torch.allclose(found[0], input_gradient(inner, z[0], y, ce)[0])
    Gradient()(model, x, y, keyed(3))
    direction = torch.randn_like(x)

    def loss(step: float) -> Tensor:
        with noise_for(model, keyed(3).fork("defense")), torch.no_grad():
            return ce(model(x + step * direction), y)

    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert torch.allclose((found[1] * direction).flatten(1).sum(1), numeric, rtol=1e-5)
    none = defended(inner, steps=0)
    Gradient()(none, x, y, keyed(3))
    with frozen_eval(inner):
        assert torch.equal(found[2], input_gradient(inner, x, y, ce)[0])
    quiet = defended(inner, steps=3, noise_std=0).double()
    BPDA(Gradient(), "chain")(quiet, x, y, keyed(3))
    Gradient()(quiet, x, y, keyed(3))
    assert torch.allclose(found[3], found[4])
    BPDA(Gradient(), "chain", 1)(quiet, x, y, keyed(3))
    BPDA(Gradient(), "denoiser")(quiet, x, y, keyed(3))
    assert not torch.allclose(found[5], found[4]) and not torch.allclose(found[5], found[6])
    GrayBox(Gradient())(model, x, y, keyed(3))
    assert torch.equal(found[7], found[2])


@pytest.mark.parametrize("batch", [1, 5])
def test_draws_side_by_side_are_those_in_a_row(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """EOT in one batch: the same numbers, the same gradients, and the stream ends at the same place."""
    inner = BatchNormNet().eval().double()
    model = defended(inner, steps=2).double()
    model = Purified(model, MALA(autoencoder(3, None), steps=1).double())  # two modules on one stream
    x, y = torch.rand(batch, 1, 8, 8, dtype=torch.float64), torch.arange(batch) % 3

    def run(at_once: int) -> tuple[Tensor, Tensor, int, int]:
        monkeypatch.setattr("adversarial_lightning.attacks.core.eot_batched._AT_ONCE", at_once)
        noise, passes = keyed(batch), []
        handle = inner.register_forward_hook(lambda *_: passes.append(1))
        with frozen_eval(model), noise_for(model, noise):
            gradient, value = input_gradient(model, x, y, ce, 7)
        handle.remove()
        return gradient, value, noise.counter, len(passes)

    together, apart = run(10**9), run(0)
    assert torch.allclose(together[0], apart[0]) and torch.allclose(together[1], apart[1])
    assert together[2] == apart[2] and (together[3], apart[3]) == (2, 7)
    assert not torch.allclose(run(0)[0], _one(model, x, y, batch))


def _one(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> Tensor:
    with frozen_eval(model), noise_for(model, keyed(batch)):
        return input_gradient(model, x, y, ce, 1)[0]


def test_eot_averages_gradients_and_its_variance_falls() -> None:
    """M = 1 is BPDA; the variance of the mean is 1/M; and the mean of gradients is not the gradient of the mean."""
    inner = BatchNormNet().eval()
    model, x, y = defended(inner, steps=1, noise_std=0.5), torch.rand(1, 1, 8, 8), torch.tensor([1])
    x, y = x.expand(300, -1, -1, -1).clone(), y.expand(300)

    def gradients(samples: int) -> Tensor:
        with frozen_eval(model), noise_for(model, keyed(300)):
            return input_gradient(model, x, y, ce, samples)[0].flatten(1)

    ratio = gradients(1).var(0).sum() / gradients(8).var(0).sum()
    assert 6.5 < ratio < 9.5
    pgd = ReconstructionPGD(eps=0.3, steps=3, step_size=0.1, reconstruction_weight=0)
    same = BPDA(PGD(eps=0.3, steps=3, step_size=0.1))
    for victim in (model, Purified(model, MALA(Denoiser(Pull(share=0.5), 0.15), steps=2, noise_std=0.1))):
        a, b = (attack(victim, x[:4], y[:4], keyed(4)) for attack in (pgd, same))
        assert torch.equal(a, b)

    class Sign(nn.Module):  # logits saturate: the mean logit is flat where single draws are steep
        def forward(self, z: Tensor) -> Tensor:
            s = 50 * (z.flatten(1).mean(1, keepdim=True) - 0.5)
            return torch.cat([s, -s], 1)

    noisy = Purified(Sign(), MALA(Denoiser(Pull(share=1.0), 0.15), steps=1, noise_std=2.0, clip="none"))
    x, y = torch.full((1, 1, 8, 8), 0.5), torch.tensor([0])
    with frozen_eval(noisy), noise_for(noisy, keyed(1)):
        of_gradients = input_gradient(noisy, x, y, ce, 400)[0]
    with frozen_eval(noisy), noise_for(noisy, keyed(1)):
        z = x.clone().requires_grad_()
        of_logits = torch.autograd.grad(ce(torch.stack([noisy(z) for _ in range(400)]).mean(0), y).sum(), z)[0]
    assert (of_gradients - of_logits).norm() > 0.1 * of_gradients.norm()


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize(
    "make",
    [
        lambda eps: BPDA(PGD(eps=eps, steps=3, eot_samples=2)),
        lambda eps: BPDA(PGD(norm="l2", eps=eps, steps=3), "chain", 1),
        lambda eps: BPDA(FGSM(eps=eps), "denoiser"),
        lambda eps: GrayBox(PGD(eps=eps, steps=3)),
        lambda eps: ReconstructionPGD(eps=eps, steps=3),
    ],
)
def test_results_stay_in_the_ball_and_the_box(make: object, eps: float) -> None:
    model, x = defended(BatchNormNet().eval()), torch.rand(4, 1, 8, 8)
    attack = make(eps)  # type: ignore[operator]
    z = attack(model, x, torch.arange(4) % 3, keyed(4))
    size = (z - x).flatten(1).norm(dim=1) if getattr(attack, "attack", attack).norm == "l2" else (z - x).abs()
    assert size.max() <= eps + 1e-6 and z.min() >= 0 and z.max() <= 1
    assert torch.equal(z, x) == (eps == 0)


def test_salt_and_pepper_has_the_lengths_of_figure_c14() -> None:
    """On images with MNIST's share of grey values: E of the l1 change is density L / 2."""
    x = torch.rand(500, 1, 28, 28)
    d = SaltAndPepper(0.25)(BatchNormNet(), x, torch.zeros(500, dtype=torch.long), keyed(500)) - x
    assert d.abs().flatten(1).sum(1).mean() == pytest.approx(98.0, abs=0.5)


@pytest.mark.skipif(not MNIST.exists(), reason="needs the MNIST files")
def test_salt_and_pepper_has_the_lengths_of_figure_c14_on_mnist() -> None:
    from adversarial_lightning.datamodules import MNIST as Data

    x = Data("data").dataset("test").__getitems__(list(range(10_000)))[0]
    d = SaltAndPepper(0.25)(BatchNormNet(), x, torch.zeros(len(x), dtype=torch.long), keyed(len(x))) - x
    assert d.abs().flatten(1).sum(1).mean() == pytest.approx(98.0, abs=0.5)
    assert d.flatten(1).norm(dim=1).mean() == pytest.approx(9.7, abs=0.05)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make,says",
    [
        (lambda: DenoisingAutoencoder(ConvAutoencoder(), sigma2=0.0), "sigma2"),
        (lambda: DenoisingAutoencoder(ConvAutoencoder(), sigma2=math.nan), "sigma2"),
        (lambda: DenoisingAutoencoder(ConvAutoencoder(), ce_scale=-1), "ce_scale"),
        (lambda: DenoisingAutoencoder(ConvAutoencoder(), reweight="ce_only"), "ce_only"),
        (lambda: MALADE(autoencoder(), step_size=-0.1), "step_size"),
        (lambda: MALADE(autoencoder(), steps=-1), "steps"),
        (lambda: MALADE(autoencoder(), noise_std=math.nan), "noise_std"),
        (lambda: MALADE(autoencoder(), noise_std=math.inf), "noise_std"),
        (lambda: MALADE(autoencoder(), clip="ech"), "clip of Chain must be none, final or each"),  # type: ignore[arg-type]
        (lambda: DenoisingAutoencoder(ConvAutoencoder(), reweight="los"), "reweight"),  # type: ignore[arg-type]
        (lambda: DenoisingAutoencoder(ConvAutoencoder(), corruption="twice"), "corruption"),  # type: ignore[arg-type]
        (lambda: Voting(MLP(), mode="votes"), "mode of Voting"),  # type: ignore[arg-type]
        (lambda: FCDenseNet(variant=57), "variant must be one of 56, 67, 103"),  # type: ignore[arg-type]
        (lambda: MALADE(autoencoder(), annealing=0), "annealing"),
        (lambda: MALADE(autoencoder(), step_size=0.31), r"diverge above 2 times: choose at most 0\.3"),
        (lambda: MALADE("no.ckpt"), "no file 'no.ckpt'"),
        (lambda: ConvAutoencoder(mean_pixel=0.0), "mean_pixel"),
        (lambda: ConvAutoencoder()(torch.rand(1, 1, 30, 30)), "multiples of 4"),
        (lambda: FCDenseNet()(torch.rand(1, 3, 48, 48)), "multiples of 32"),
        (lambda: MagnetAutoencoder()(torch.rand(1, 1, 7, 7)), "multiples of 2"),
        (lambda: BPDA(PGD(), steps=3), "backward: chain"),
        (lambda: BPDA(PGD())(BatchNormNet(), torch.rand(1, 1, 8, 8), torch.tensor([0])), "'purifier'"),
        (lambda: GrayBox(PGD())(BatchNormNet(), torch.rand(1, 1, 8, 8), torch.tensor([0])), "'purifier'"),
    ],
)
def test_bad_settings(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


def test_an_autoencoder_that_does_not_fit_the_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        trainer(tmp_path).fit(DenoisingAutoencoder(ConvAutoencoder(), optimizer=adam), digits(size=30))
    with pytest.raises(ValueError, match="cannot take images"):
        trainer(tmp_path).fit(DenoisingAutoencoder(ConvAutoencoder(channels=3), optimizer=adam), digits())
    with pytest.raises(ValueError, match="num_classes to 10"):
        trainer(tmp_path).fit(DenoisingAutoencoder(ConvAutoencoder(), Bare(7), optimizer=adam), digits())
    with pytest.raises(ValueError, match=r"no file 'resnet152'.*TorchvisionClassifier.*name: resnet152"):
        trainer(tmp_path).fit(DenoisingAutoencoder(ConvAutoencoder(), "resnet152", optimizer=adam), digits())


def test_selection_goes_on_with_the_best_third_and_breaks_ties_by_cost() -> None:
    from adversarial_lightning.reproduce.select_malade import Candidate, Score, halve

    pool = [Candidate(c, n, 0.0) for c in (0.1, 0.2) for n in (1, 5, 10)]
    seen: list[tuple[object, int]] = []

    def measure(candidate: object, images: int) -> object:
        seen.append((candidate, images))
        c, n = candidate.pull, candidate.steps  # type: ignore[attr-defined]
        if n == 10:
            return Score(images, 0.5)  # loses clean accuracy: never attacked
        return Score(images, 1.0, bpda=0.9, full=0.3 if c == 0.1 else 0.4)

    rows = halve(pool, measure, [10, 30])
    assert len(seen) == 6 + 2 and {c for c, n in seen if n == 30} == {Candidate(0.2, 1, 0.0), Candidate(0.2, 5, 0.0)}
    assert rows[-1][0] == Candidate(0.2, 1, 0.0) and rows[-1][1].robust == 0.3 + 0.1
    with pytest.raises(ValueError, match="points"):
        halve(pool, lambda c, n: Score(n, 0.5), [10])


@pytest.mark.parametrize(("p", "expected"), [(1, [0.0, 0.125, 0.25]), (2, [0.0, 0.03125, 0.0625])])
def test_the_reconstruction_error_is_the_mean_distance_and_belongs_to_its_classifier(
    p: int, expected: list[float]
) -> None:
    """r halves the way to 1/2; |x - r| is 0; 1/4 on half of the pixels; 1/4, of either sign."""
    x = torch.full((3, 1, 8, 8), 0.5)
    x[1:, :, :4], x[2, :, 4:] = 0, 1
    x.requires_grad_()
    inner = BatchNormNet().eval()
    score = ReconstructionError(inner, Denoiser(Pull(0.5, 0.5), 0.01), p).score(x)
    assert score.tolist() == pytest.approx(expected) and score.requires_grad
    with pytest.raises(ValueError, match="was trained for another classifier"):
        ReconstructionError(BatchNormNet(), autoencoder(trained_for=digest_weights(inner)))
    with pytest.raises(ValueError, match="p is 1 or 2"):
        ReconstructionError(inner, autoencoder(), 3)


def test_the_score_norm_is_the_length_of_the_score_and_belongs_to_its_classifier() -> None:
    """With the optimal denoiser of N(0.5, s - sigma2) it is |x - 0.5| / s; MALADE in front changes nothing about it."""
    s, x = 0.3, torch.rand(5, 1, 8, 8, requires_grad=True)
    inner = BatchNormNet().eval()
    score = ScoreNorm(inner, Denoiser(Pull(0.5, 1 - 0.15 / s), 0.15)).score(x)
    assert torch.allclose(score, (x - 0.5).flatten(1).norm(dim=1) / s, rtol=1e-5) and score.requires_grad
    mine = autoencoder(trained_for=digest_weights(inner))
    guarded = ScoreNorm(defended(inner), mine)
    assert torch.allclose(guarded.score(x[:2]), mine.score(x[:2]).flatten(1).norm(dim=1))
    with pytest.raises(ValueError, match="of ScoreNorm was trained for another classifier"):
        ScoreNorm(BatchNormNet(), mine)


def test_a_denoiser_stays_in_eval_mode() -> None:
    """FC-DenseNet has batch norm: a classifier that is put into train mode must not change its purifier."""
    denoiser = autoencoder(trained_for=None)
    for user in (MALA(denoiser), Magnet(denoiser), ScoreNorm(MLP(), denoiser)):
        user.train()
        assert user.training and not any(m.training for m in user.denoiser.modules())
        user.eval()
        assert not user.training
