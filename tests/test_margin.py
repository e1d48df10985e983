"""Margin maximization and VAT: section 10 of the specification, on closed forms first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Bare, adam, digits, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from victims import BatchNormNet

from adversarial_lightning.attacks import DeepFool, Noise
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.attacks.deepfool import relative_robustness
from adversarial_lightning.callbacks import CollapseGuard
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.lightning_modules import VAT, MarginMaximization, Standard
from adversarial_lightning.lightning_modules.double_backward import pair_gradients
from adversarial_lightning.lightning_modules.margin_maximization import (
    Route,
    binary_objective,
    margin_sensitivity,
    multiclass_hinge,
)
from adversarial_lightning.lightning_modules.vat import divergence, probabilities, virtual_perturbation
from adversarial_lightning.networks import MLP
from adversarial_lightning.networks.eval_mode import frozen_eval

ROOT = Path(__file__).resolve().parent.parent

ROUTES: list[Route] = ["full", "two_pass", "topk", "closest"]


def linear(n: int = 6, k: int = 4, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(n, k)).to(dtype)


def images(n: int = 5, shape: tuple[int, ...] = (1, 2, 3), k: int = 4, dtype: Any = torch.float64) -> tuple[Any, Any]:
    return torch.rand(n, *shape, dtype=dtype), torch.arange(n) % k


def conv() -> nn.Sequential:
    """Convolution and max pooling, small enough for finite differences."""
    layers = (nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    return nn.Sequential(*layers).double()


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), MLP(4, 36, [8, 8])).double()


def sensitivity(net: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Any:
    x = x.clone().requires_grad_()
    return margin_sensitivity(net(x), x, y, **settings)


def parameter_gradient(net: nn.Module, value: Tensor) -> Tensor:
    found = torch.autograd.grad(value, list(net.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("route", ["full", "two_pass"])
def test_of_a_linear_network(q: Any, batched: bool, route: Route) -> None:
    """max_j ||W_y - W_j||_q wherever x is; its gradient is the subgradient; margins are |f| / ||w||."""
    net = linear()
    weight = net[1].weight
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = images()
        found = sensitivity(net, x, y, q=q, route=route, batched=batched)
        sizes = torch.linalg.vector_norm(weight[y][:, None] - weight, ord=q, dim=2)
        assert torch.allclose(found.value, sizes.amax(1), atol=1e-12)
        assert torch.equal(found.rival, sizes.argmax(1))
        logits = net(x)
        gaps = (logits.gather(1, y[:, None]) - logits).abs() / sizes
        gaps.scatter_(1, y[:, None], torch.inf)
        assert torch.allclose(found.margin, gaps.amin(1))
        expected = torch.zeros_like(weight)
        for i in range(len(y)):
            j = int(found.rival[i])
            d = (weight[y[i]] - weight[j]).detach()
            slope = d.sign() if q == 1 else d / d.norm()
            expected[y[i]] += slope
            expected[j] -= slope
        gradient = parameter_gradient(net, found.value.sum())
        assert torch.allclose(gradient[: weight.numel()], expected.flatten(), atol=1e-12)
        assert not gradient[weight.numel() :].any()  # biases


def test_binary_form_is_the_soft_margin_svm() -> None:
    """Eq. 3.14 of w.x + b, by hand; the geometric margin does not change when (w, b) are scaled."""
    net, x = linear(k=1), torch.rand(7, 1, 2, 3, dtype=torch.float64).requires_grad_()
    y = torch.tensor([1, -1, 1, -1, 1, 1, -1])
    w, b = net[1].weight[0], net[1].bias
    hand = (1 - y * (x.flatten(1) @ w + b)).clamp(min=0).mean()
    for q in (1, 2):
        objective = binary_objective(net(x)[:, 0], x, y, penalty=0.3, q=q)  # type: ignore[arg-type]
        assert torch.allclose(objective, hand + 0.3 * w.norm(q))
        slope = torch.autograd.grad(objective, net[1].weight, retain_graph=True)[0][0]
        hinge = torch.autograd.grad(hand, w, retain_graph=True)[0]
        assert torch.allclose(slope, hinge + 0.3 * (w.sign() if q == 1 else w / w.norm()))  # the penalty is trained on
    two = linear(k=2)
    x2, y2 = images(k=2)
    before = sensitivity(two, x2, y2).margin
    with torch.no_grad():
        for p in two.parameters():
            p.mul_(3.7)
    assert torch.allclose(sensitivity(two, x2, y2).margin, before)


def test_two_logits_are_the_binary_form() -> None:
    """K = 2: one pair; hinge and sensitivity are those of f_1 - f_0."""
    net, (x, y) = linear(k=2), images(k=2)
    x = x.requires_grad_()
    z = net(x)
    module = MarginMaximization(net, penalty=0.2, squared=False)
    loss = module.losses(x, y, None)["loss"]  # type: ignore[arg-type]
    assert torch.allclose(loss, binary_objective(z[:, 1] - z[:, 0], x, 2 * y - 1, penalty=0.2))


@pytest.mark.parametrize(
    "logits,expected",
    [([3.0, 1.0, 2.0], 0.0), ([3.0, 1.0, 2.5], 0.5), ([1.0, 3.0, 0.0], 3.0), ([2.0, 2.0, 2.0], 1.0)],
)
def test_hinge_punishes_errors(logits: list[float], expected: float) -> None:
    """The printed sign of eq. 3.18 would reward them."""
    z = torch.tensor([logits], requires_grad=True)
    loss = multiclass_hinge(z, torch.tensor([0]))
    assert loss.item() == expected
    if expected:
        loss.sum().backward()
        assert z.grad is not None and z.grad[0, 0] < 0  # raising f_y lowers it


# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("make", [conv, dense])
def test_routes_agree_with_a_loop(make: Callable[[], nn.Module], q: Any) -> None:
    net = make()
    x, y = images(shape=(1, 6, 6))
    reference = []
    for i in range(len(x)):  # one sample, one class at a time
        one = x[i : i + 1].clone().requires_grad_()
        z = net(one)[0]
        others = [j for j in range(4) if j != y[i]]
        slopes = [torch.autograd.grad(z[y[i]] - z[j], one, create_graph=True)[0] for j in others]
        reference.append(torch.stack([s.flatten().norm(q) for s in slopes]).amax())
    expected = torch.stack(reference)
    gradient = parameter_gradient(net, expected.mean())
    for route in ("full", "two_pass", "topk"):
        for batched in (False, True):
            found = sensitivity(net, x, y, q=q, route=route, candidates=3, batched=batched)
            assert torch.allclose(found.value, expected, atol=1e-10)
            assert torch.allclose(parameter_gradient(net, found.value.mean()), gradient, atol=1e-10)
    single = torch.cat([sensitivity(net, x[i : i + 1], y[i : i + 1], q=q).value for i in range(len(x))])
    assert torch.allclose(single, expected)
    order = torch.tensor([2, 0, 3, 1])  # renaming the classes changes nothing

    class Renamed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x)
            return logits[:, order]

    renamed = sensitivity(Renamed(), x, order.argsort()[y], q=q)
    assert torch.allclose(renamed.value, expected)
    alive = expected > 0  # where no unit is active all classes tie
    rivals = sensitivity(net, x, y, q=q).rival
    assert alive.sum() >= 3 and torch.equal(order[renamed.rival][alive], rivals[alive])


def test_penalty_differentiates_like_finite_differences() -> None:
    net, (x, y) = conv(), images(3, (1, 6, 6))
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def penalty(*values: Tensor) -> Tensor:
        z = x.clone().requires_grad_()
        named = dict(zip(parameters, values, strict=True))
        return margin_sensitivity(torch.func.functional_call(net, named, z), z, y).value.square().mean()

    assert torch.autograd.gradcheck(penalty, [p.clone().requires_grad_() for p in parameters.values()])


def test_approximate_routes() -> None:
    """closest is DeepFool's class, not the steepest; topk with one candidate is the runner-up."""
    net = linear(2, 3)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, 10.0]]))
        net[1].bias.copy_(torch.tensor([0.0, -0.5, -9.0]))
    x, y = torch.zeros(1, 1, 1, 2, dtype=torch.float64), torch.tensor([0])
    rivals = {r: sensitivity(net, x, y, route=r, candidates=1 if r == "topk" else 3).rival.item() for r in ROUTES}
    assert rivals == {"full": 2, "two_pass": 2, "topk": 1, "closest": 1}
    assert sensitivity(net, x, y, route="closest").value.item() == pytest.approx(1)
    assert sensitivity(net, x, y).margin.item() == pytest.approx(0.5)
    names = MarginMaximization(net, route="closest").losses(x, y, None)  # type: ignore[arg-type]
    assert "sensitivity_closest" in names and "sensitivity" not in names


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("route", ROUTES)
def test_zero_gradients_and_ties(q: Any, route: Route) -> None:
    """Dead units and equal gradients: penalty 0 and no NaN; the class is the lowest but y; never y itself."""
    net, (x, y) = linear(dtype=torch.float32), images(dtype=torch.float32)
    for weight in (0.0, 1.0):
        torch.nn.init.constant_(net[1].weight, weight)
        found = sensitivity(net, x, y, q=q, route=route)
        assert not found.value.any() and found.margin.isfinite().all() and (found.rival != y).all()
        assert parameter_gradient(net, (found.value + found.value.square()).mean()).isfinite().all()
    if route in ("full", "two_pass"):
        assert torch.equal(found.rival, (y == 0).long())


# --- the module ------------------------------------------------------------------------------------------------------


def test_squared_by_default_for_l2_only() -> None:
    x, y = images()
    net = linear()
    data = MarginMaximization(net, 0.0).losses(x, y, None)["loss"]  # type: ignore[arg-type]
    for q, squared, power in ((2, None, 2), (1, None, 1), (2, False, 1), (1, True, 2)):
        loss = MarginMaximization(net, 0.3, q=q, squared=squared).losses(x, y, None)["loss"]  # type: ignore[arg-type]
        assert torch.allclose(loss - data, 0.3 * sensitivity(net, x, y, q=q).value.pow(power).mean())


def test_without_penalty_it_is_the_data_term_alone(tmp_path: Path) -> None:
    """C = 0 with cross-entropy trains to the bits of Standard, and takes no gradient with respect to the input."""
    trained = []
    for make in (lambda n: MarginMaximization(n, 0.0, loss="ce", optimizer=adam), lambda n: Standard(n, adam)):
        torch.manual_seed(0)
        module = make(Bare())
        trainer(tmp_path, 1).fit(module, digits())
        trained.append(torch.cat([p.detach().flatten() for p in module.network.parameters()]))
    assert torch.equal(*trained)


@pytest.mark.long
def test_a_larger_penalty_moves_the_boundary_away(tmp_path: Path) -> None:
    """Section 10, 11: rho at C = 0.1 above rho at C = 0 with about equal accuracy."""
    rho, accuracy = {}, {}
    x, y, _ = digits().dataset("test").__getitems__(list(range(50)))
    for penalty in (0.0, 0.1):
        torch.manual_seed(0)
        module = MarginMaximization(Bare(), penalty, optimizer=adam)
        run = trainer(tmp_path, 8)
        run.fit(module, digits())
        accuracy[penalty] = float(run.callback_metrics["val/acc"])
        with frozen_eval(module.network):
            r, _ = DeepFool(max_step=0.5, box=False).displacement(module.network, x, y)
            correct = module(x).argmax(1) == y
        rho[penalty] = float(relative_robustness(r, x, correct))
    assert rho[0.1] > 1.1 * rho[0.0] and accuracy[0.1] > accuracy[0.0] - 0.06


def test_batch_norm_is_refused_unless_the_penalty_is_in_eval_mode() -> None:
    x, y = torch.rand(3, 1, 8, 8), torch.arange(3)
    net = BatchNormNet()
    for route in ROUTES:
        with pytest.raises(ValueError, match=r"batch norm \(layers.1\) .*penalty_mode: eval"):
            MarginMaximization(net, route=route).losses(x, y, None)  # type: ignore[arg-type]
    module = MarginMaximization(net, penalty_mode="eval")
    batches = int(net.layers[1].num_batches_tracked)
    value = module.losses(x, y, None)["sensitivity"]  # type: ignore[arg-type]
    assert int(net.layers[1].num_batches_tracked) == batches + 1 and all(m.training for m in net.modules())
    assert torch.allclose(value, sensitivity(net.eval(), x, y).value.mean(), rtol=1e-2)


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4].softmax(1)


@pytest.mark.parametrize(
    "make,says",
    [
        (lambda: MarginMaximization(Bare(), penalty=-1.0), "penalty must be at least 0"),
        (lambda: MarginMaximization(Bare(), penalty=float("nan")), "penalty"),
        (lambda: MarginMaximization(Bare(), q=3), "q must be 1"),  # type: ignore[arg-type]
        (lambda: MarginMaximization(Bare(), candidates=0), "candidates"),
        (lambda: MarginMaximization(linear(k=1)).losses(*images(k=1), None), "K >= 2"),  # type: ignore[arg-type]
        (lambda: MarginMaximization(Softmax()).losses(*images(), None), "probabilities"),  # type: ignore[arg-type]
        (lambda: MarginMaximization(Softmax(), 0.0).losses(*images(), None), "probabilities"),  # type: ignore[arg-type]
        (lambda: MarginMaximization(compiled()).losses(*images(), None), "torch.compile"),  # type: ignore[arg-type]
        (lambda: MarginMaximization(Bare(), loss="hinges"), "loss of MarginMaximization must be hinge or ce"),  # type: ignore[arg-type]
        (lambda: MarginMaximization(Bare(), route="ful"), "route"),  # type: ignore[arg-type]
        (lambda: MarginMaximization(Bare(), penalty_mode="evl"), "penalty_mode"),  # type: ignore[arg-type]
        (lambda: VAT(Softmax()).losses(*images(), Noise.keyed(0, torch.arange(5))), "probabilities"),
        (lambda: VAT(Bare(), eps=0.0), "eps"),
        (lambda: VAT(Bare(), iterations=0), "iterations"),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def compiled() -> nn.Module:
    net = linear()
    net.compile(backend="eager")
    return net


def test_lower_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision 32-true"):
        trainer(tmp_path, precision="bf16-mixed").fit(MarginMaximization(Bare(), optimizer=adam), digits())


def test_a_loss_that_is_no_number_stops_training(tmp_path: Path) -> None:
    net = Bare()
    torch.nn.init.constant_(net.layers[0].weight, torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        trainer(tmp_path, callbacks=[CollapseGuard()]).fit(MarginMaximization(net, optimizer=adam), digits())


def test_gradients_are_taken_for_all_pairs_at_once_or_in_turn() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    pairs = torch.stack([x.square().sum(1), x.prod(1)], 1)
    expected = torch.stack([2 * x, x.prod(1, keepdim=True) / x])
    for batched in (False, True):
        assert torch.allclose(pair_gradients(pairs, x, batched=batched), expected)


# --- VAT -------------------------------------------------------------------------------------------------------------


def test_vat_perturbation() -> None:
    """Length eps; along the steepest direction of a linear network; zero divergence at r = 0, none below."""
    net, (x, _) = linear(k=2), images(k=2)
    p = probabilities(net(x))
    noise = Noise.keyed(0, torch.arange(len(x)))
    r = virtual_perturbation(net, x, p, noise, eps=0.7, xi=0.01, iterations=1)
    assert torch.allclose(NORMS["l2"].distance(r), torch.full((5,), 0.7, dtype=torch.float64)) and not r.requires_grad
    w = net[1].weight[1] - net[1].weight[0]
    cosine = (r.flatten(1) @ w).abs() / (0.7 * w.norm())  # of two classes the Hessian has one direction
    assert (cosine > 0.999).all()
    assert (divergence(net(x + r), p) > 0).all() and torch.allclose(divergence(net(x), p), x.new_zeros(5), atol=1e-15)
    torch.nn.init.zeros_(net[1].weight)  # no gradient: a random direction
    flat = virtual_perturbation(net, x, p, noise, 0.7, 0.01, 2)
    assert torch.allclose(NORMS["l2"].distance(flat), torch.full((5,), 0.7, dtype=torch.float64))


def test_vat_takes_its_gradient_near_the_image() -> None:
    """At distance xi, where the divergence of a curved network still looks like its Hessian; not at eps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        net[1].weight.mul_(3)
    x, noise = torch.rand(8, 1, 2, 3, dtype=torch.float64), Noise.keyed(0, torch.arange(8))
    p = probabilities(net(x))
    start = NORMS["l2"].steepest(noise.normal(x), x)
    found = virtual_perturbation(net, x, p, Noise.keyed(0, torch.arange(8)), 2.0, 0.01, 1)
    for distance, same in ((0.01, True), (2.0, False)):
        d = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(net(x + distance * d), p).sum(), d)
        assert torch.allclose(found, 2.0 * NORMS["l2"].steepest(gradient, x), atol=1e-6) == same


def test_vat_direction_survives_float32() -> None:
    """A confident network: in float32 probabilities the direction would be rounding error."""
    torch.manual_seed(1)
    net = MLP(4, 36, [32])
    with torch.no_grad():
        net.layers[-1].weight.mul_(60)
    x = torch.rand(64, 1, 6, 6)
    index = torch.arange(64)
    start = Noise.keyed(0, index).normal(x)

    class Fixed(Noise):
        def normal(self, like: Tensor) -> Tensor:
            return start.to(like)

    low, high = (
        virtual_perturbation(net.to(kind), x.to(kind), probabilities(net(x.to(kind))), Fixed(index), 1.0, 0.01, 1)
        for kind in (torch.float32, torch.float64)
    )
    assert (low.double() * high).flatten(1).sum(1).mean() > 0.995


def test_vat_is_its_formula() -> None:
    net, (x, y) = linear(), images()
    p, noise = probabilities(net(x)), Noise.keyed(0, torch.arange(5))
    r = virtual_perturbation(net, x, p, noise, 2.0, 0.01, 1)
    q = net(x + r).softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    losses = VAT(net, divergence_weight=0.5).losses(x, y, Noise.keyed(0, torch.arange(5)))
    assert torch.allclose(losses["divergence"], expected)
    assert torch.allclose(losses["loss"], nn.functional.cross_entropy(net(x), y) + 0.5 * expected)
    # The clean probabilities and r are constants: the gradient is that of log q alone.
    gradient = parameter_gradient(net, losses["divergence"])
    by_hand = parameter_gradient(net, -(p.detach() * net(x + r.detach()).log_softmax(1)).sum(1).mean())
    assert torch.allclose(gradient, by_hand)


# --- the sweep over C (Figs. 3.4 and 3.5) ----------------------------------------------------------------------------


@pytest.mark.long
def test_the_sweep_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run for each C and seed, kept as it ends; TensorBoard has its C."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which the sweep changes: put back afterwards
    from adversarial_lightning.reproduce import sweep_margin

    trained: list[tuple[float, int]] = []

    def train(network: nn.Module, penalty: float, *rest: Any) -> None:
        trained.append((penalty, rest[0]))
        if len(trained) == 3:
            raise KeyboardInterrupt
        fit(network, penalty, *rest)

    fit = sweep_margin.train
    monkeypatch.setattr(sweep_margin, "train", train)
    monkeypatch.setattr(sweep_margin, "MNIST", lambda **_: Digits(batch_size=25))
    words = "sweep --hidden 32 --penalties 0.1 1e-4 --seeds 2 --epochs 1 --images 60 --q 1 --output"
    monkeypatch.setattr("sys.argv", [*words.split(), str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        sweep_margin.main()
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 2
    sweep_margin.main()
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [(run["C"], run["seed"]) for run in runs] == [(0.1, 0), (1e-4, 0), (0.1, 1), (1e-4, 1)]
    assert trained == [(0.1, 1), (1e-4, 1), (0.1, 1), (0.1, 1), (1e-4, 1)]
    assert len({run["rho_correct"] for run in runs}) == 4
    assert json.loads((tmp_path / "sweep.json").read_text())["settings"]["q"] == 1
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="other settings"):
        monkeypatch.setattr("sys.argv", [*words.replace("--q 1", "--q 2").split(), str(tmp_path)])
        sweep_margin.main()
    hparams = EventAccumulator(str(tmp_path / "C0.1_seed1")).Reload().Scalars("hparam/rho_correct")
    assert hparams[0].value == pytest.approx(runs[2]["rho_correct"])
