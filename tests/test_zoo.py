"""Networks that travel with the package."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import adversarial_lightning as al
from adversarial_lightning import cli
from adversarial_lightning.attacks import PGD
from adversarial_lightning.checkpoints import load_network, zoo
from adversarial_lightning.checkpoints.provenance import provenance
from adversarial_lightning.datamodules import MNIST
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.subset import random_images
from adversarial_lightning.networks import MLP

MOST = 10, 25e6


def checkpoint(network: nn.Module) -> dict[str, Any]:
    """A checkpoint as a training run writes it."""
    spec = {"class_path": "networks.MLP", "init_args": {"hidden": [8]}}
    data = {"class_path": "datamodules.Digits", "init_args": {}}
    return {
        "state_dict": {f"network.{name}": t for name, t in network.state_dict().items()} | {"teacher": torch.ones(3)},
        "catalogue": {"network": spec, "data": {**data, "init_args": {"root": "/somewhere"}}},
        "hyper_parameters": {"_class_path": "lightning_modules.Standard", "weight": 0.5},
        **{"epoch": 3, "global_step": 40, "callbacks": {}},
    }


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network of the zoo called tiny."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    torch.manual_seed(0)
    network = MLP(hidden=[8]).eval()
    zoo.save(tmp_path / "tiny.safetensors", checkpoint(network), {"training": "x", "figures": []})
    return network


def test_a_network_comes_back_as_it_was(planted: nn.Module) -> None:
    assert al.zoo.names() == ["tiny"]
    network = al.zoo.load("tiny")
    x = torch.rand(4, 1, 28, 28)
    assert torch.equal(network(x), planted(x)) and not network.training
    assert al.zoo.about("tiny") == {"training": "x", "figures": []}
    found = provenance(network, "zoo:tiny")
    assert (found["epoch"], found["steps"]) == (3, 40)
    assert found["method"]["class_path"] == "lightning_modules.Standard"
    assert load_network("zoo:tiny")[1] == {"class_path": "datamodules.Digits", "init_args": {}}  # no root


def test_an_evaluation_takes_a_network_of_the_zoo(planted: nn.Module, tmp_path: Path) -> None:
    words = ["evaluate", "--checkpoint", "zoo:tiny", "--suite", "clean", "--limit", "20", "--audit", "none"]
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.md").exists()


def test_an_unknown_name_lists_the_known_ones(planted: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no network zoo:tinny; did you mean zoo:tiny\? \(there are tiny\)"):
        al.zoo.load("tinny")
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not say which network"):
        load_network(tmp_path / "other.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "tiny.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="truncated"):
        load_network(tmp_path / "half.safetensors")


def test_the_zoo_is_small() -> None:
    files = list(zoo.FOLDER.glob("*.safetensors"))
    assert len(files) <= MOST[0] and sum(file.stat().st_size for file in files) <= MOST[1]


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_loads_and_says_what_it_is(name: str) -> None:
    network, about = al.zoo.load(name), al.zoo.about(name)
    assert network(torch.rand(4, 1, 28, 28)).shape == (4, 10)
    assert {"training", "seed", "commit", "data", "figures", "audit"} <= set(about) and about["figures"]


@pytest.mark.parametrize("name", zoo.names())
def test_its_figures_are_measured_again(name: str) -> None:
    """Clean and PGD-20 accuracy on a seeded subset of 500 lie in the recorded 95 % intervals, widened for that n."""
    mnist = Path(os.environ.get("DATA_ROOT", "data"))
    if not (mnist / "MNIST").is_dir():
        pytest.skip("MNIST is not at hand: set DATA_ROOT to the folder that holds it")
    network, about = al.zoo.load(name), al.zoo.about(name)
    x, y, _ = random_images(MNIST(root=str(mnist), download=False).dataset("test"), 500)
    figures = {figure["what"]: figure for figure in about["figures"]}
    clean = float((network(x).argmax(1) == y).float().mean())
    assert clean == pytest.approx(figures["clean"]["accuracy"], abs=0.02)
    if "pgd20" in figures:
        attack = PGD(norm="linf", eps=figures["pgd20"]["eps"], steps=20, step_size=0.01)
        robust = float((network(attack(network, x, y)).argmax(1) == y).float().mean())
        assert robust == pytest.approx(figures["pgd20"]["accuracy"], abs=0.04)
