"""Every YAML file is what it says: fragments instantiate, experiments run one batch; suites are in test_suites.py."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentParser
from small import save_network, with_denoisers
from torch import nn

import defenses
import train
from attacks import Attack
from datamodules.images import TensorImages
from lightning_modules import DenoisingAutoencoder
from networks import MadryCNN

assert defenses  # imported before parsing
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXPERIMENTS = sorted((CONFIGS / "experiments").glob("*.yaml"))
SETS = [p for p in sorted((CONFIGS / "data").glob("*.yaml")) if p.stem != "image_folder"]  # that one needs a folder


@pytest.fixture
def generated_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST without its files: random pixels under the same class."""
    from datamodules import MNIST

    def source(self: Any, part: str) -> TensorImages:
        g = torch.Generator().manual_seed(0)
        return TensorImages(
            torch.randint(0, 256, (1200, 1, 28, 28), generator=g, dtype=torch.uint8), torch.arange(1200) % 10
        )

    monkeypatch.setattr(MNIST, "source", source)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_runs(path: Path, tmp_path: Path, generated_mnist: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of everything: what is tested is that the pieces fit."""
    monkeypatch.setattr(sys, "argv", ["lightning"])  # Lightning warns about two command lines
    small = {"data.init_args.batch_size": 4, "data.init_args.eval_batch_size": 4, "data.init_args.val_size": 4}
    method = path.parent / yaml.safe_load(path.read_text())["model"]
    if "classifier: " in method.read_text():  # an earlier run's
        small["model.init_args.classifier"] = save_network(MadryCNN(), tmp_path / "classifier.ckpt")
    quiet = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
    quiet["trainer.enable_model_summary"] = "false"
    settings = {"trainer.fast_dev_run": "true", "trainer.default_root_dir": tmp_path, **small, **quiet}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    cli = train.main(["fit", "--config", str(path), *words])
    assert cli.trainer.global_step == 1
    assert cli.config.fit.best.monitor in cli.trainer.callback_metrics


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_opens_as_a_document(path: Path) -> None:
    header = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    text = "\n".join(header)
    assert f"lightning fit --config configs/experiments/{path.name}" in text
    assert re.search(r"^cost:", text, re.M) and re.search(r"^expected:", text, re.M)
    own = yaml.safe_load(path.read_text())["trainer"]["default_root_dir"]
    others = [yaml.safe_load(p.read_text())["trainer"]["default_root_dir"] for p in EXPERIMENTS if p != path]
    assert own.startswith("runs/") and own not in others


@pytest.mark.parametrize("path", sorted((CONFIGS / "methods").glob("*.yaml")), ids=lambda p: p.stem)
def test_method_fragment_instantiates(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=pl.LightningModule, sub_configs=True)
    module = parser.instantiate(parser.parse_args(["--model", str(path)])).model
    x = torch.rand(2, 3, 32, 32) if "imagenet" in path.stem else torch.rand(2, 1, 28, 28)
    restores = isinstance(module, DenoisingAutoencoder)
    assert module(x).shape == (x.shape if restores else (2, 10))
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", SETS, ids=lambda p: p.stem)
def test_data_fragment_instantiates(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=pl.LightningDataModule, sub_configs=True)
    assert parser.instantiate(parser.parse_args(["--data", str(path)])).data.num_classes == 10


@pytest.mark.parametrize("path", sorted((CONFIGS / "attacks").glob("*.yaml")), ids=lambda p: p.stem)
def test_attack_fragment_instantiates(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attack", type=Attack, sub_configs=True)
    attack = parser.instantiate(parser.parse_args(["--attack", str(path)])).attack
    assert isinstance(attack, Attack) and path.read_text().startswith("# ")


@pytest.mark.parametrize("path", sorted((CONFIGS / "defenses").glob("*.yaml")), ids=lambda p: p.stem)
def test_defense_file_instantiates(path: Path, tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--defenses", type=list[Callable[[nn.Module], nn.Module]], sub_configs=True)
    model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    path = with_denoisers(path, tmp_path, model)
    for wrap in parser.instantiate(parser.parse_args(["--defenses", str(path)])).defenses:
        model = wrap(model)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
