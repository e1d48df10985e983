"""Training methods: one table of all, then what the specification of each demands."""

import contextlib
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from helpers import Bare, Coded, adam, digits, trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from adversarial_lightning import lightning_modules
from adversarial_lightning.attacks import FGSM, PGD, Langevin, Noise, noise_for
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.lightning_modules import (
    ATENT,
    RSE,
    TRADES,
    VAECLA,
    VAT,
    AdversarialTraining,
    AdversaryCritic,
    Classifier,
    Cosine,
    ERClassifier,
    Exponential,
    LossClassifier,
    MarginMaximization,
    OneCycle,
    Schedule,
    Standard,
    Steps,
)
from adversarial_lightning.lightning_modules.atent import ema_weights
from adversarial_lightning.lightning_modules.critic_settings import AttackSettings, Pretraining
from adversarial_lightning.lightning_modules.er_classifier import AuthorsCode
from adversarial_lightning.networks import Critic, NoisyConvolutions

INNER = PGD(eps=0.1, steps=2)
KL = PGD(eps=0.1, steps=2, loss="kl", start_std=0.001)
ADAMS: dict[str, Any] = {"optimizer": adam, "classifier_optimizer": adam, "critic_optimizer": adam}
SAMPLER = Langevin(eps=0.1, steps=3, step_size=0.05)
METHODS = {
    "standard": lambda net: Standard(net, adam, OneCycle()),
    "pgd_at": lambda net: AdversarialTraining(net, PGD(eps=0.1, steps=2), optimizer=adam),
    "fgsm_at": lambda net: AdversarialTraining(net, FGSM(eps=0.1), clean_weight=0.5, optimizer=adam),
    "atent": lambda net: ATENT(net, SAMPLER, optimizer=adam, schedule=Cosine()),
    "critic": lambda net: AdversaryCritic(
        net,
        Critic(10, 784, [16]),
        critic_weight=0.1,
        attack_settings=AttackSettings(steps=2),
        pretraining=Pretraining(epochs=0),
        optimizer=adam,
        critic_optimizer=adam,
    ),
    "margin": lambda net: MarginMaximization(net, penalty_mode="eval", optimizer=adam),
    "vat": lambda net: VAT(net, eps=0.5, optimizer=adam),
    "trades": lambda net: TRADES(net, KL, beta=1.0, optimizer=adam),
    "rse": lambda net: RSE(net, adam),
    "vaecla": lambda net: VAECLA(net, optimizer=adam, classifier_optimizer=adam),
    "er": lambda net: ERClassifier(net, INNER, regularization=0.1, critic_hidden=[16], schedule=OneCycle(), **ADAMS),
    "er_own": lambda net: ERClassifier(
        net, regularization=0.1, critic_hidden=[16], authors_code=AuthorsCode(reg_optimizer="own"), **ADAMS
    ),
    "ecla": lambda net: ERClassifier(net, regularization=0, **ADAMS),
    "atent_eval": lambda net: ATENT(net, SAMPLER, sampler_mode="eval", optimizer=adam),
}
STEPS = {"critic": 2, "vaecla": 2, "er": 4, "er_own": 4, "ecla": 2}  # of optimizers, in a batch; else 1


def network(name: str, dropout: float = 0.0, batch_norm: bool = False) -> nn.Module:
    """A small network of the kind that a method trains; dropout needs the global generator."""
    if name in ("vaecla", "er", "er_own", "ecla"):
        return Coded(batch_norm=batch_norm, dropout=dropout)
    net = Bare(batch_norm=batch_norm)
    net.layers[3] = nn.Sequential(nn.Dropout(dropout), nn.Flatten())
    return NoisyConvolutions(net, 0.1, 0.1) if name == "rse" else net


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_table_holds_every_method() -> None:
    leaves = {c for c in catalogue(lightning_modules) if issubclass(c, Classifier)} - {Classifier, LossClassifier}
    assert {type(make(network(name))) for name, make in METHODS.items()} == leaves


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_fit_validate_test_predict(name: str, tmp_path: Path) -> None:
    """Training learns; validate and test agree with a hand count; the checkpoint gives the network back."""
    module, data = METHODS[name](network(name)), digits()
    run = trainer(tmp_path, epochs=10)
    run.fit(module, data)
    assert run.callback_metrics["val/acc"] > 0.6
    (tested,) = run.test(module, data, verbose=False)
    x, y, index = data.dataset("test").__getitems__(list(range(50)))
    module.eval()
    with torch.no_grad(), noise_for(module.network, Noise.keyed(0, index)):
        right = (module(x).argmax(1) == y).float().mean()
    assert tested["test/acc"] == pytest.approx(float(right))
    (validated,) = run.validate(module, data, verbose=False)
    assert set(validated) == {"val/acc", "val/loss"}
    predictions = run.predict(module, data)
    assert predictions is not None
    assert torch.cat([p["index"] for p in predictions]).tolist() == index.tolist()  # type: ignore[call-overload,index]
    run.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert build(checkpoint["catalogue"]["data"], [Digits]).train_limit == 200
    restored, _ = load_network(tmp_path / "x.ckpt", network(name))
    assert torch.equal(weights(restored), weights(module.network))


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.parametrize("at", ["middle", "end"])
def test_resume_is_exact(name: str, at: str, tmp_path: Path) -> None:
    """A run stopped in the middle or at the end of an epoch and resumed ends with the bits of one that was not."""

    def module() -> Classifier:
        torch.manual_seed(0)
        return METHODS[name](network(name, dropout=0.2, batch_norm=name != "critic"))

    whole, per_batch = module(), STEPS.get(name, 1)  # Lightning counts every optimizer's steps
    every = {"every_n_train_steps": 10 * per_batch} if at == "middle" else {"every_n_epochs": 1}

    def run() -> pl.Trainer:
        keep = ModelCheckpoint(dirpath=tmp_path / "c", filename="{step}", save_top_k=-1, **every)  # 7 batches an epoch
        return trainer(tmp_path, epochs=3, callbacks=[keep], enable_checkpointing=True)

    run().fit(whole, digits())
    resumed = module()
    step = (10 if at == "middle" else 7) * per_batch
    checkpoint = tmp_path / "stopped.ckpt"
    (tmp_path / "c" / f"step={step}.ckpt").rename(checkpoint)
    shutil.rmtree(tmp_path / "c")
    run().fit(resumed, digits(), ckpt_path=str(checkpoint), weights_only=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert all(torch.equal(a, b) for a, b in zip(whole.network.buffers(), resumed.network.buffers(), strict=True))


def test_python_built_modules_keep_plain_hyper_parameters(tmp_path: Path) -> None:
    module = ATENT(lightning_modules_network(), SAMPLER, alpha=0.5)
    assert module.hparams["alpha"] == 0.5
    assert module.hparams["network"] == {
        "class_path": "networks.MLP",
        "init_args": {"num_classes": 10, "features": 784, "hidden": [5], "dropout": 0.0, "init": "torch"},
    }
    assert module.hparams["sampler"]["init_args"]["eps"] == 0.1


def lightning_modules_network() -> nn.Module:
    from adversarial_lightning.networks import MLP

    return MLP(hidden=[5])


def test_a_network_that_does_not_fit_the_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_classes to 10"):
        trainer(tmp_path).fit(Standard(Bare(7), adam), digits())
    with pytest.raises(ValueError, match=r"Bare cannot take the images \(1, 20, 20\) of Digits"):
        trainer(tmp_path).fit(Standard(Bare(), adam), digits(size=20))


def test_images_outside_the_box_are_refused_in_training(tmp_path: Path) -> None:
    class Scaled(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batch[0].mul_(2).sub_(1)

    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        trainer(tmp_path, callbacks=[Scaled()]).fit(Standard(Bare(), adam), digits())


# --- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_by_hand() -> None:
    cycle = OneCycle(warmup=0.25, initial=0.1, final=0.01)
    assert [cycle.factor(t) for t in (0, 0.25, 1)] == pytest.approx([0.1, 1, 0.01])
    assert cycle.factor(0.125) == pytest.approx(0.55)
    assert [Cosine().factor(t) for t in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [Steps([0.5, 0.8]).factor(t) for t in (0, 0.49, 0.5, 0.8, 1)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    by_epoch = Exponential(times=7, gamma=0.5)
    assert [by_epoch.factor(e * 100 / 700) for e in range(8)] == [0.5**e for e in range(8)]
    assert by_epoch.factor(99 / 700) == 1
    for bad in (lambda: OneCycle(warmup=0), lambda: Steps([1.5]), lambda: Exponential(times=0)):
        with pytest.raises(ValueError, match="training"):
            bad()


@pytest.mark.parametrize("name", ["standard", "atent", "er"])
def test_schedule_is_stepped_every_batch_to_its_end(name: str, tmp_path: Path) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    schedule: Schedule = Cosine()
    module = METHODS[name](network(name))
    module.schedule = schedule
    trainer(tmp_path, callbacks=[Watch()]).fit(module, digits())
    n = len(rates)
    assert n == 2 * math.ceil(200 / 32)
    assert rates == pytest.approx([5e-3 * schedule.factor(i / n) for i in range(n)])


# --- adversarial training ---------------------------------------------------------------------------------------------


def test_adversarial_training_is_its_formula() -> None:
    net, attack = Bare(), PGD(eps=0.1, steps=2)
    x, y, index = digits().dataset("train").__getitems__(list(range(8)))
    noise = Noise.keyed(0, index)
    adversarial = F.cross_entropy(net(attack(net, x, y, noise)), y)
    losses = AdversarialTraining(net, attack).losses(x, y, Noise.keyed(0, index))
    assert torch.equal(losses["loss"], adversarial)
    losses = AdversarialTraining(net, attack, clean_weight=0.3).losses(x, y, Noise.keyed(0, index))
    assert torch.allclose(losses["loss"], 0.7 * adversarial + 0.3 * F.cross_entropy(net(x), y))
    with pytest.raises(ValueError, match="clean_weight"):
        AdversarialTraining(net, attack, clean_weight=1.0)


# --- ATENT: section 8 of its specification ---------------------------------------------------------------------------


def atent_step(module: ATENT, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One training step outside a Trainer, with a rate of zero: the logged mu and the gradient left in `.grad`."""

    class Alone:
        strategy = current_epoch = None
        global_rank = 0

    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    module.optimizers = lambda: optimizer  # type: ignore[assignment,method-assign]
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[assignment,method-assign]
    module.log_dict = lambda values: None  # type: ignore[assignment,method-assign]
    module.noise = lambda index: Noise.keyed(0, index)  # type: ignore[method-assign]
    module._trainer = Alone()  # type: ignore[assignment]
    mu = module.training_step((x, y, torch.arange(len(x))), 0)
    return mu, torch.cat([p.grad.flatten() for p in module.network.parameters() if p.grad is not None])


def reference(module: ATENT, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Line 5 to 12 of Algorithm 1 as printed: K graphs alive, autograd through the average."""
    net, s, noise = module.network, module.sampler, Noise.keyed(0, torch.arange(len(x)))
    z, mu = s.begin(x, noise), torch.zeros((), dtype=x.dtype)
    for k in range(s.steps):
        z = z.detach().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)[0]
        z = s.step(z.detach(), gradient, x, noise, last=k == s.steps - 1)
        mu = (1 - module.alpha) * mu + module.alpha * F.cross_entropy(net(z), y)
    gradients = torch.autograd.grad(mu, list(net.parameters()))
    return mu.detach(), torch.cat([g.flatten() for g in gradients])


def doubles(n: int = 6) -> tuple[Tensor, Tensor]:
    x, y, _ = digits().dataset("train").__getitems__(list(range(n)))
    return x.double(), y


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "alpha,tail_tol,tolerance", [(0.9, 0.0, 1e-10), (0.3, 0.0, 1e-10), (0.9, 1e-4, 1e-3), (1.0, 0.0, 1e-10)]
)
def test_atent_gradient_is_that_of_the_average(
    norm: Any, mode: Any, alpha: float, tail_tol: float, tolerance: float
) -> None:
    sampler = Langevin(norm=norm, eps=0.2, steps=6, step_size=0.05, pull=0.1 if norm == "l2" else 0.0, noise_scale=0.01)
    module = ATENT(Bare().double(), sampler, alpha=alpha, tail_tol=tail_tol, sampler_mode=mode)
    x, y = doubles()
    mu, gradient = atent_step(module, x, y)
    expected_mu, expected = reference(module, x, y)
    assert (gradient - expected).norm() <= tolerance * expected.norm()
    assert torch.allclose(mu, expected_mu, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_atent_projects_the_last_sample_where_the_paper_does(norm: Any) -> None:
    """`project: last` (Algorithm 2): step K, no other, puts the sample into the ball."""
    sampler = Langevin(norm=norm, eps=0.2, steps=4, step_size=0.15, noise_scale=0.0, project="last", start="zero")
    module = ATENT(Bare().double(), sampler, alpha=1.0)
    x, y = doubles()
    seen: list[Tensor] = []
    hook = module.network.register_forward_pre_hook(lambda net, args: seen.append(args[0].detach().clone()))
    _, gradient = atent_step(module, x, y)
    hook.remove()
    far = [float(NORMS[norm].distance(z - x).max()) for z in seen]
    assert far[-1] <= 0.2 + 1e-9 and max(far[:-1]) > 0.25
    assert torch.allclose(gradient, reference(module, x, y)[1], atol=1e-10)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_atent_follows_raw_gradients_of_each_image(mode: Any) -> None:
    """`direction: raw` (Eq. 9): the step is the image's own gradient, whatever the batch and the average's weights."""
    sampler = Langevin(norm="l2", eps=5, steps=3, step_size=0.5, noise_scale=0.0, direction="raw", project="never")
    module = ATENT(Bare().double(), sampler, alpha=0.7, tail_tol=0.0, sampler_mode=mode)
    x, y = doubles()
    assert torch.allclose(atent_step(module, x, y)[1], reference(module, x, y)[1], atol=1e-10)


def test_atent_with_alpha_one_is_the_last_sample() -> None:
    module = ATENT(Bare().double(), replace(SAMPLER, noise_scale=0.0), alpha=1.0)
    x, y = doubles()
    _, gradient = atent_step(module, x, y)
    z = SAMPLER.begin(x, noise := Noise.keyed(0, torch.arange(len(x))))
    for k in range(3):
        z = z.detach().requires_grad_()
        g = torch.autograd.grad(F.cross_entropy(module(z), y, reduction="sum"), z)[0]
        z = replace(SAMPLER, noise_scale=0.0).step(z.detach(), g, x, noise, last=k == 2)
    expected = torch.autograd.grad(F.cross_entropy(module(z), y), list(module.network.parameters()))
    assert torch.allclose(gradient, torch.cat([g.flatten() for g in expected]), atol=1e-12)


@pytest.mark.parametrize("alpha", [0.9, 0.25, 1.0])
def test_atent_weights_sum_as_the_recursion_says(alpha: float) -> None:
    c = ema_weights(7, alpha)
    assert len(c) == 8 and c[0] == 0 and sum(c) == pytest.approx(1 - (1 - alpha) ** 7)
    mu = 0.0
    losses = [0.3, 0.1, 2.0, 5.0, 0.7, 1.0, 4.0]
    for loss in losses:
        mu = (1 - alpha) * mu + alpha * loss
    assert sum(w * loss for w, loss in zip(c[1:], losses, strict=True)) == pytest.approx(mu)


def test_atent_clean_limits() -> None:
    """linf radius 0 with projection: c_sum times the clean gradient; l2 with pull 1, no noise: x after one step."""
    x, y = doubles()
    module = ATENT(Bare().double(), replace(SAMPLER, eps=0.0), tail_tol=0.0)
    _, gradient = atent_step(module, x, y)
    clean = torch.autograd.grad(F.cross_entropy(module(x), y), list(module.network.parameters()))
    assert torch.allclose(gradient, sum(ema_weights(3, 0.9)) * torch.cat([g.flatten() for g in clean]), atol=1e-12)
    s = Langevin(norm="l2", step_size=1e-12, pull=1.0, noise_scale=0, project="never")
    assert torch.allclose(s.step(x * 0 + 0.7, x * 0, x, Noise.keyed(0, torch.arange(len(x))), last=False), x)


def test_atent_survives_zero_gradients() -> None:
    """A constant network: finite samples and weights (also step 1 of Table 2: SmallCNN starts at zero logits)."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(10, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)

    for norm in ("linf", "l2"):
        module = ATENT(Constant(), replace(SAMPLER, norm=norm))  # type: ignore[arg-type]
        mu, gradient = atent_step(module, *doubles())
        assert mu.isfinite() and gradient.isfinite().all() and gradient.any()


def test_atent_leaks_no_gradient_and_steps_once(tmp_path: Path) -> None:
    net = Bare()
    net.layers[0].weight.requires_grad_(False)
    frozen = net.layers[0].weight.clone()
    module, steps = ATENT(net, SAMPLER, optimizer=adam), 0

    class Count(pl.Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            nonlocal steps
            steps += 1

    run = trainer(tmp_path, epochs=1, callbacks=[Count()])
    run.fit(module, digits())
    assert steps == run.global_step == 7
    assert net.layers[0].weight.grad is None and torch.equal(net.layers[0].weight, frozen)


def test_atent_eval_sampler_leaves_batch_norm_to_the_weight_passes() -> None:
    """Sampling in eval mode: buffers move once for each weight gradient, not for each sample, and modes come back."""
    x, y = doubles()
    moved = {}
    for mode in ("train", "eval"):
        net = Bare(batch_norm=True).double()
        net.layers[4].eval()
        atent_step(ATENT(net, SAMPLER, alpha=1.0, sampler_mode=mode), x, y)  # type: ignore[arg-type]
        moved[mode] = int(net.layers[1].num_batches_tracked)
        assert net.training and not net.layers[4].training and net.layers[1].training
    assert moved == {"train": 4, "eval": 1}


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": 1.1}, {"tail_tol": 0.9}, {"tail_tol": -0.1}])
def test_atent_refuses(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ATENT(Bare(), SAMPLER, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"eot_samples": 2}, {"targeted": True}])
def test_atent_refuses_samplers_it_would_not_follow(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="samples is 1, targeted false"):
        ATENT(Bare(), replace(SAMPLER, **change))


def test_atent_warns_where_l2_samples_miss_the_radius(tmp_path: Path) -> None:
    far = Langevin(norm="l2", eps=0.1, steps=3, step_size=1.0, project="never")
    with pytest.warns(UserWarning, match="calibrate sampler.pull"):
        trainer(tmp_path, epochs=1).fit(ATENT(Bare(), far, optimizer=adam), digits())
    good = replace(far, step_size=0.1, project="every")
    with contextlib.nullcontext():  # warnings are errors
        trainer(tmp_path, epochs=1).fit(ATENT(Bare(), good, optimizer=adam), digits())


def test_atent_memory_does_not_grow_with_steps() -> None:
    """Tensors that autograd saves and that are alive at once: the same number for K 3 and K 12."""
    peaks = []
    for steps in (3, 12):
        alive, peak = set(), 0

        def pack(t: Tensor, alive: set[int] = alive) -> Any:
            nonlocal peak

            class Saved:
                def __init__(self) -> None:
                    self.t = t
                    alive.add(id(self))

                def __del__(self) -> None:
                    alive.discard(id(self))

            saved = Saved()
            peak = max(peak, len(alive))
            return saved

        x, y = doubles()
        module = ATENT(Bare().double(), replace(SAMPLER, steps=steps), tail_tol=0.0, alpha=0.5)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.t):
            atent_step(module, x, y)
        peaks.append(peak)
    assert peaks[0] == peaks[1] > 0


def test_all_processes_validate_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several processes the buffers of the first one are sent to the others; with one nothing is sent."""
    module, sent = Standard(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))), []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: sent.append((tensor, source)))
    module.on_validation_start()
    assert not sent
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    module.on_validation_start()
    assert [source for _, source in sent] == [0, 0, 0]
    assert all(a is b for (a, _), b in zip(sent, module.network.buffers(), strict=True))


def test_the_progress_bar_has_the_accuracy_and_networks_leave_images_alone() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2).flatten(1)

    module, logged, x = Standard(Doubling()), {}, torch.rand(2, 1, 1, 3)
    module.log = lambda name, value, **how: logged.update({name: how})  # type: ignore[assignment,method-assign]
    before = x.clone()
    module.validation_step((x, torch.tensor([0, 1]), torch.arange(2)), 0)
    assert torch.equal(x, before)
    assert logged == {name: {"prog_bar": name == "val/acc", "on_epoch": True} for name in ("val/acc", "val/loss")}


def test_the_first_batch_of_an_epoch_is_looked_at() -> None:
    """Images out of [0, 1] are refused before the first step; later batches cost no look."""
    module, batch = Standard(nn.Flatten()), (torch.full((2, 1, 2, 2), 2.0), torch.zeros(2), torch.arange(2))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        module.on_train_batch_start(batch, 0)
    module.on_train_batch_start(batch, 1)
