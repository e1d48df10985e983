"""Networks: parameter counts of the papers, shapes, and what a checkpoint must know about them."""

import pytest
import torch
from torch import nn

import networks
from attacks import Noise, drawing
from evaluation.checkpoint import build, catalogue, describe
from networks import MLP, NIN, Critic, LeNet5, MadryCNN, Normalize, SmallCNN, Whiten

COUNTS: list[tuple[nn.Module, int]] = [
    (SmallCNN(), 312_202),
    (MadryCNN(), 3_274_634),
    (LeNet5(), 582_026),
    (NIN(), 966_986),
    (MLP(), 79_510),
    (MLP(features=48, hidden=[5, 6]), 351),
    (MLP(hidden=[1000] * 3), 2_797_010),
    (MLP(hidden=[1200] * 3), 3_836_410),
    (Critic(), 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10),
    (Critic(label="layers"), 794 * 1200 + 1200 + 1210 * 1200 + 1200 + 1210 + 1),
]


@pytest.mark.parametrize(
    "network,count", COUNTS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v)
)
def test_parameter_counts(network: nn.Module, count: int) -> None:
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("cls", [SmallCNN, MadryCNN])
def test_shapes_and_normalisation(cls: type) -> None:
    x = torch.rand(2, 3, 28, 28)
    raw, normalised = cls(num_classes=7, channels=3), cls(num_classes=7, channels=3, mean=[0.1] * 3, std=[0.5] * 3)
    assert raw(x).shape == (2, 7)
    normalised.load_state_dict(raw.state_dict(), strict=False)
    assert torch.allclose(normalised.eval()(x), raw.eval()((x - 0.1) / 0.5), atol=1e-5)


def test_small_cnn_starts_at_zero_logits() -> None:
    assert not SmallCNN().eval()(torch.rand(2, 1, 28, 28)).any()


def test_normalize_refuses_nonsense() -> None:
    for mean, std in (([0.5], [0.0]), ([0.5, 0.5], [1.0])):
        with pytest.raises(ValueError, match="std"):
            Normalize(mean, std)


@pytest.mark.parametrize("cls", [c for c in catalogue(networks) if c not in (Normalize, Whiten)])
def test_description_rebuilds_the_network(cls: type) -> None:
    network = cls(num_classes=4)
    again = build(describe(network), catalogue(networks))
    assert describe(again) == describe(network)
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize("cls", [LeNet5, MLP])
def test_first_weights_and_dropout(cls: type) -> None:
    x = torch.rand(2, 1, 28, 28)
    for init in ("glorot", "he"):
        net = cls(init=init)
        for m in net.modules():
            if isinstance(m, nn.Linear | nn.Conv2d):
                fan_in, fan_out = m.weight[0].numel(), m.weight.numel() / m.weight.shape[1]
                std = (2 / fan_in) ** 0.5 if init == "he" else (2 / (fan_in + fan_out)) ** 0.5
                assert m.bias is not None and not m.bias.any()
                assert float(m.weight.detach().std()) == pytest.approx(std, rel=0.15)
                assert (m.weight.abs().max() <= 3**0.5 * std * 1.001) == (init == "glorot")  # uniform, or a tail
    with pytest.raises(ValueError, match="init is one of"):
        cls(init="xavier")
    net = cls(dropout=0.5)
    assert not torch.equal(net(x), net(x)) and torch.equal(net.eval()(x), net(x))
    assert sum(isinstance(m, nn.Dropout) for m in net.modules()) == (2 if cls is LeNet5 else 1)
    net.load_state_dict(cls().state_dict(), strict=cls is LeNet5)


@pytest.mark.parametrize("label", ["head", "layers"])
def test_critic_reads_the_class_and_draws_noise_by_sample(label: str) -> None:
    critic = Critic(4, 64, [16, 16], label)  # type: ignore[arg-type]
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 4
    quiet = Critic(4, 64, [16, 16], label, input_noise=0, hidden_noise=0)  # type: ignore[arg-type]
    quiet.load_state_dict(critic.state_dict())
    assert quiet(x, y).shape == (6,) and torch.equal(quiet(x, y), quiet(x, y))
    assert not torch.allclose(quiet(x, y), quiet(x, (y + 1) % 4))
    assert not torch.equal(critic(x, y), critic(x, y)) and not torch.equal(critic.eval()(x, y), critic(x, y))
    index = torch.arange(6)
    with drawing(critic, Noise.keyed(0, index)):
        whole = critic(x, y)
    with drawing(critic, Noise.keyed(0, index[4:])):
        assert torch.allclose(critic(x[4:], y[4:]), whole[4:], atol=1e-6)
    with pytest.raises(ValueError, match="num_classes"):
        Critic(1)


def test_whitening() -> None:
    """Fitted on training images: covariance eigenvalues s / (s + 0.1); images of one colour stay finite; reloads."""
    torch.manual_seed(0)
    mix = torch.rand(1, 12, 12)
    x = (torch.rand(4000, 1, 12) @ mix / 8).clamp(0, 1).view(-1, 3, 2, 2)
    layer = Whiten(12)
    assert torch.allclose(layer(x).flatten(1), layer.contrast(x))
    u = layer.contrast(x).double()
    s = torch.linalg.eigvalsh(torch.cov(u.T, correction=0)).clamp_min(0)
    layer.fit(x)
    z = layer(x).flatten(1).double()
    assert z.mean(0).abs().max() < 1e-5
    found = torch.linalg.eigvalsh(torch.cov(z.T, correction=0))
    assert torch.allclose(found, s / (s + 0.1), atol=1e-4)
    again = Whiten(12)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x[:5]), layer(x[:5])) and again.fitted
    flat = torch.full((1, 3, 2, 2), 0.4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(flat).sum(), flat)
    assert gradient.isfinite().all() and layer(flat).isfinite().all()
    with pytest.raises(ValueError, match="at least 2"):
        layer.fit(x[:1])
    assert NIN(num_classes=4, whiten=True, size=8)(torch.rand(2, 3, 8, 8)).shape == (2, 4)
