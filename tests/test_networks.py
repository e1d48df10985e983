"""Networks: parameter counts of the papers, shapes, and what a checkpoint must know about them."""

import pytest
import torch
from torch import nn

import networks
from evaluation.checkpoint import build, catalogue, describe
from networks import MLP, ConvAutoencoder, Denoiser, FCDenseNet, MadryCNN, MagnetAutoencoder, Normalize, SmallCNN

COUNTS = [
    *((SmallCNN(), 312_202), (MadryCNN(), 3_274_634), (MLP(), 79_510), (MLP(features=48, hidden=[5, 6]), 351)),
    *((ConvAutoencoder(), 117_505), (MagnetAutoencoder(), 310), (MagnetAutoencoder(pooled=False), 142)),
    *((FCDenseNet(), 1_375_251), (FCDenseNet(variant=67), 3_460_931), (FCDenseNet(variant=103), 9_320_035)),
]
RESTORERS = [ConvAutoencoder(width=3), MagnetAutoencoder(pooled=False), FCDenseNet(dropout=0.1)]  # images -> images


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


CLASSIFIERS = [SmallCNN(4), MadryCNN(4), MLP(4)]


def test_the_tables_hold_every_network() -> None:
    listed = {type(n) for n in [*CLASSIFIERS, *RESTORERS]} | {Normalize, Denoiser}
    assert listed == set(catalogue(networks))


@pytest.mark.parametrize("network", RESTORERS, ids=lambda n: type(n).__name__)
def test_restorers_return_images_in_eval_mode_one_by_one(network: nn.Module) -> None:
    x = torch.rand(2, network.channels, 32, 32)
    r = network.eval()(x)
    assert r.shape == x.shape and torch.allclose(network(x[:1]), r[:1], atol=1e-5)


@pytest.mark.parametrize(
    "network", [*CLASSIFIERS, *RESTORERS, Denoiser(RESTORERS[0], 0.1, "digest")], ids=lambda n: type(n).__name__
)
def test_description_rebuilds_the_network(network: nn.Module) -> None:
    again = build(describe(network), catalogue(networks))
    assert describe(again) == describe(network)
    again.load_state_dict(network.state_dict())
