"""Files of weights as others save them: what fits is found, what differs is asked for, what is left out is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adversarial_lightning.networks import MLP, TorchvisionClassifier
from adversarial_lightning.networks.foreign_weights import load_weights

State = dict[str, Tensor]


def net() -> nn.Module:
    return MLP(features=4, hidden=[3])


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


EXTRA = {"criterion.weight": torch.ones(2)}
# name -> what is in the file beside (raw weights, others), arguments, which weights are taken, words of the report
FITS: dict[str, tuple[Callable[[State, State], Any], dict[str, Any], str, list[str]]] = {
    "plain": (lambda a, b: a, {}, "a", []),
    "DataParallel": (lambda a, b: {"net": under("module", a)}, {}, "a", []),
    "compiled": (lambda a, b: under("_orig_mod", a), {}, "a", []),
    "AveragedModel": (lambda a, b: {**under("module", a), "n_averaged": torch.tensor(3)}, {}, "a", ["n_averaged"]),
    "loss": (lambda a, b: {**a, **EXTRA}, {}, "a", ["criterion.weight", "no tensor of the network needs it"]),
    "Lightning": (
        lambda a, b: {"state_dict": {**under("model", a), **EXTRA}, "optimizer_states": [], "epoch": 3},
        {},
        "a",
        ["criterion.weight", "outside of model", "optimizer_states", "epoch"],
    ),
    "equal": (lambda a, b: {"model": a, "model_ema": a}, {}, "a", ["model_ema: it fits too", "equal"]),
    "equal prefixes": (lambda a, b: {**under("p", a), **under("q", a)}, {}, "a", ["equal to what was taken, under q"]),
    "key": (lambda a, b: {"model": a, "model_ema": b}, {"key": "model_ema"}, "b", ["model: it fits too, with other"]),
    "nested key": (lambda a, b: {"ema": {"net": b}, "raw": {"net": a}}, {"key": "ema.net"}, "b", ["raw.net"]),
    "prefix": (lambda a, b: {**under("s", a), **under("t", b)}, {"prefix": "t."}, "b", ["outside of t"]),
    "ignore": (lambda a, b: {**a, "layers.9.weight": b["layers.1.weight"]}, {"ignore": ["*.9.*"]}, "a", ["told to"]),
    "one that fits": (lambda a, b: {"model": a, "head": {"w": torch.ones(1)}}, {}, "a", ["head", "do not fit"]),
}


@pytest.mark.parametrize("case", FITS)
def test_what_is_taken_and_what_is_not(case: str, tmp_path: Path) -> None:
    content, options, taken, words = FITS[case]
    a, b, network = net(), net(), net()
    torch.save(content(a.state_dict(), b.state_dict()), tmp_path / "file.pt")
    report = load_weights(network, tmp_path / "file.pt", **options)
    for name, tensor in (a if taken == "a" else b).state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
    said = " ".join(report.lines())
    assert report.fits and all(word in said for word in words), said


DOUBTS: dict[str, tuple[Callable[[State, State], Any], dict[str, Any], str]] = {
    "two keys": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, {}, "state_dict; state_dict_ema.*--weights_key"),
    "two prefixes": (lambda a, b: {**under("s", a), **under("t", b)}, {}, "names in s.*names in t.*--weights_prefix"),
    "no such key": (lambda a, b: {"model": a}, {"key": "ema"}, "no state dict 'ema'.*it has .*'model'"),
    "no such prefix": (lambda a, b: a, {"prefix": "model"}, "no names .* begin with 'model'"),
    "no such name": (lambda a, b: a, {"ignore": ["loss.*"]}, r"no tensor .* is called 'loss\.\*'"),
    "deeper": (lambda a, b: {**a, "layers.9.weight": torch.ones(1)}, {}, "unexpected .*layers.9.weight"),
    "normalised": (lambda a, b: {**a, "mean": torch.ones(1), "std": torch.ones(1)}, {}, "unexpected .*mean, std"),
    "too much is ignored": (lambda a, b: a, {"ignore": ["layers.1.*"]}, "missing .*layers.1.weight"),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_doubts_are_asked(case: str, tmp_path: Path) -> None:
    content, options, message = DOUBTS[case]
    torch.save(content(net().state_dict(), net().state_dict()), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(net(), tmp_path / "file.pt", **options)


@pytest.mark.parametrize("twin", ["equal", "another mean", "other weights"])
def test_checkpoints_of_madrylab(twin: str, tmp_path: Path) -> None:
    """Two copies of the network, and mean and std beside each: the normalisation reaches the network's."""
    theirs = TorchvisionClassifier("resnet18", num_classes=10).eval()
    state = theirs.model.state_dict()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    attacker = {name: t + 1 if twin == "other weights" and "fc" in name else t for name, t in state.items()}
    content = under("module.model", state) | under("module.attacker.model", attacker)
    for place, shift in (("normalizer", 0.0), ("attacker.normalize", 0.1 * (twin == "another mean"))):
        content[f"module.{place}.new_mean"] = (mean + shift).view(3, 1, 1)
        content[f"module.{place}.new_std"] = std.view(3, 1, 1)
    torch.save({"model": content, "epoch": 150}, tmp_path / "file.pt")
    network = TorchvisionClassifier("resnet18", num_classes=10)
    if twin == "another mean":
        with pytest.raises(ValueError, match=r"several that differ \(module.normalizer.new_mean, module.attacker"):
            load_weights(network, tmp_path / "file.pt")
        options: dict[str, Any] = {"ignore": ["*attacker*"]}
    elif twin == "other weights":
        with pytest.raises(ValueError, match=r"names in module; .*names in module.attacker.*_prefix"):
            load_weights(network, tmp_path / "file.pt")
        options = {"prefix": "module.model"}
    else:
        options = {}
    said = " ".join(load_weights(network, tmp_path / "file.pt", **options).lines())
    assert "module.attacker.model.conv1.weight" in said
    x = torch.rand(2, 3, 32, 32)
    right = theirs.model((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    assert torch.allclose(network.eval()(x), right, atol=1e-5)
