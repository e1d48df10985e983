"""Networks: parameter counts of the papers, shapes, and what a checkpoint must know about them."""

import pytest
import torch
from torch import nn

import networks
from evaluation.checkpoint import build, catalogue, describe
from networks import MLP, MadryCNN, Normalize, SmallCNN

COUNTS = [(SmallCNN(), 312_202), (MadryCNN(), 3_274_634), (MLP(), 79_510), (MLP(features=48, hidden=[5, 6]), 351)]


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


@pytest.mark.parametrize("cls", [c for c in catalogue(networks) if c is not Normalize])
def test_description_rebuilds_the_network(cls: type) -> None:
    network = cls(num_classes=4)
    again = build(describe(network), catalogue(networks))
    assert describe(again) == describe(network)
    again.load_state_dict(network.state_dict())
