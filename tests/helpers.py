"""Helpers shared by tests: small networks and trainings, attacks with known results, campaigns, processes."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from adversarial_lightning import networks
from adversarial_lightning.attacks import FGSM, PGD, Attack, GaussianNoise, Noise, Restarts
from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.detectors import (
    Detector,
)
from adversarial_lightning.evaluation import Campaign
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.report import write_report
from adversarial_lightning.networks import ConvAutoencoder, Denoiser


class Bare(nn.Module):
    """A small convolutional net without randomness: dropout would draw other masks on other processes."""

    def __init__(self, num_classes: int = 10, batch_norm: bool = False) -> None:
        super().__init__()
        self.num_classes, self.batch_norm = num_classes, batch_norm
        norm: nn.Module = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 8, 5, stride=3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, num_classes))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


class Coded(nn.Module):
    """A small encoder and a classifier of its codes, as methods that regularise an embedding want them."""

    def __init__(self, embedding: int = 32, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes, self.embedding, self.batch_norm, self.dropout = 10, embedding, batch_norm, dropout
        norm: nn.Module = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.encoder = nn.Sequential(
            *(nn.Dropout(dropout), nn.Conv2d(1, 8, 5, stride=3), norm, nn.ReLU(), nn.Flatten()),
            nn.Linear(512, embedding),
        )
        self.classifier = nn.Linear(embedding, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.encoder(x))
        return logits


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)


def digits(**settings: Any) -> Digits:
    return Digits(**{"batch_size": 32, "val_size": 50, "train_limit": 200, "test_limit": 50, **settings})


def save_network(network: nn.Module, path: Path) -> Path:
    """A checkpoint of a network as training writes it."""
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": weights, "catalogue": {"network": describe(network), "data": None}}, path)
    return path


def with_denoisers(config: Path, folder: Path, classifier: nn.Module) -> Path:
    """A copy of `config` whose denoisers are small ones in `folder`: sDAEs for `classifier`, or DAEs, by name.

    Networks fitted to images (RIDE) take two stages of one step.
    """
    torch.manual_seed(0)
    text = config.read_text()
    for name in set(re.findall(r"denoiser: (\S*\.ckpt)", text)):
        trained_for = digest_weights(classifier) if "sdae" in name else None
        denoiser = Denoiser(ConvAutoencoder(width=2), 0.15, trained_for)
        text = text.replace(name, str(save_network(denoiser, folder / name.replace("/", "_"))))
    entries = yaml.safe_load(text)
    for purifier in (entry["init_args"].get("purifier", {}) for entry in entries):
        if purifier.get("class_path") == "RIDE":
            purifier["init_args"] |= {"steps": 1, "stages": 2, "estimates": 1}
    path = folder / config.name
    path.write_text(yaml.safe_dump(entries))
    return path


def trainer(folder: Path, epochs: int = 2, **settings: Any) -> pl.Trainer:
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    return pl.Trainer(
        **{
            **quiet,
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": epochs,
            "default_root_dir": folder,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )


def alone(module: pl.LightningModule) -> list[Any]:
    """Make `module` (manual optimisation) do its training step without a Trainer; returns its optimizers.

    A training step asks Lightning for five things, which are answered here in the plainest way: optimizers, schedulers
    (none), the backward pass, logging (nowhere), and facts of the trainer (one process, epoch 0).
    """

    class Alone:
        strategy, current_epoch, global_rank = None, 0, 0

    anything: Any = module
    optimizers = [found["optimizer"] for found in anything.configure_optimizers()]
    anything._trainer = Alone()
    anything.optimizers = lambda: optimizers
    anything.lr_schedulers = lambda: []
    anything.manual_backward = lambda loss: loss.backward()
    anything.log_dict = lambda values: None
    return optimizers


SUITE: dict[str, Attack] = {
    "fgsm": FGSM(eps=0.05),
    "pgd": Restarts(PGD(eps=0.05, steps=4), n=3),
    "small": PGD(eps=0.02, steps=3),
    "gaussian": GaussianNoise(0.1),
}


@cache
def trained() -> nn.Module:
    """A small net that knows the digits a little."""
    torch.manual_seed(0)
    net = networks.MLP(10, 64, [32])
    x, y, _ = Digits(size=8).dataset("train").__getitems__(list(range(800)))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


def save(path: Path, **changes: Any) -> Path:
    """A checkpoint as training writes it, with some entries replaced."""
    weights = {f"network.{name}": tensor for name, tensor in trained().state_dict().items()}
    recorded = {"network": describe(trained()), "data": describe(Digits(size=8))}
    torch.save({"state_dict": weights, "catalogue": recorded, **changes}, path)
    return path


def campaign(folder: Path, n: int = 40, suite: dict[str, Attack] = SUITE, seed: int = 0) -> Campaign:
    return Campaign(suite, Digits(size=8).dataset("test"), n, seed, folder, "test")


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """The results without what they cost."""
    attacks = [{k: v for k, v in attack.items() if k != "seconds"} for attack in results["attacks"]]
    return {**results, "attacks": attacks, "cost": None}


class Threshold(nn.Module):
    """Class 1 where the mean pixel exceeds 1/2; logits NaN where it exceeds `broken_above`."""

    def __init__(self, broken_above: float = 2.0) -> None:
        super().__init__()
        self.broken_above = broken_above
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        m = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-m, m], 1).masked_fill((m > self.broken_above - 0.5)[:, None], torch.nan)


@dataclass(frozen=True)
class Shift(Attack):
    """x + by, whatever the model says; claims the ball of `eps`, but does not keep to it as our attacks do."""

    by: float = 0.0
    eps: float = 0.1
    norm: str = "linf"

    def images(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return self.perturb(model, x, y, noise).clamp(0, 1)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return x + self.by


@dataclass(frozen=True)
class Unbounded(Attack):
    """A minimum-norm attack without a radius of its own: x + by."""

    kind: ClassVar[Literal["budget", "minimum-norm", "corruption"]] = "minimum-norm"
    by: float = 0.0
    norm: str = "linf"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        return x + self.by


def finish(c: Campaign, **obliged: bool) -> tuple[dict[str, Any], str]:
    facts: dict[str, Any] = {
        "checkpoint": {"path": "a.ckpt", "sha256": "0"},
        "data": {"class_path": "Digits", "init_args": {}},
    }
    results = write_report(
        c, merge(c), **facts, defenses=[], required_adaptations=obliged, command="lightning evaluate"
    )
    assert json.loads((c.folder / "results.json").read_text()) == results
    return results, (c.folder / "report.md").read_text()


class Bomb:
    """Pickled as a call."""

    def __reduce__(self) -> Any:
        return os.system, ("touch imported",)


MLP = {"class_path": "networks.MLP", "init_args": {"num_classes": 10, "features": 64, "hidden": [32]}}


def changed(**init_args: Any) -> dict[str, Any]:
    return {**MLP, "init_args": {**MLP["init_args"], **init_args}}  # type: ignore[dict-item]


PLANTED: dict[str, Any] = {
    "class": {"class_path": "planted_module.Net"},
    "nested class": changed(hidden={"class_path": "planted_module.Net"}),
    "class in a list": changed(hidden=[{"class_path": "planted_module.Net", "init_args": {}}]),
    "bare string": "planted_module.Net",
    "string for a list": changed(hidden="planted_module.Net"),
    "string in a list": changed(hidden=["planted_module.Net"]),
    "string for a number": changed(num_classes="planted_module.Net"),
    "callable": {"class_path": "os.system", "init_args": {"command": "touch imported"}},
    "module attribute": {"class_path": "networks.mnist.nn.Sequential"},
    "name outside the catalogue": {"class_path": "networks.mnist.Normalize.__init__"},
    "yaml path": "planted.yaml",
    "yaml path as class": {"class_path": "planted.yaml"},
    "yaml path as value": changed(hidden="planted.yaml"),
    "extra key": {**MLP, "dict_kwargs": {"x": "planted_module.Net"}},
    "extra argument": changed(activation="planted_module.Net"),
    "no name": {"class_path": ["networks.MLP"]},
    "nothing": None,
    "does not fit": changed(num_classes=True),
    "absurd": changed(num_classes=10**15),
    "data class": {"class_path": "datamodules.Digits"},
}


ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(*words: str, ok: bool = True, **settings: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=300, **settings)
    assert (done.returncode == 0) == ok, done.stdout[-3000:] + done.stderr[-3000:]
    return done


class Brightness(Detector):
    """The mean pixel; not a number above `broken_above`."""

    def __init__(self, classifier: nn.Module | None = None, broken_above: float = 2.0) -> None:
        super().__init__()
        self.broken_above = broken_above

    def score(self, x: Tensor) -> Tensor:
        s = x.flatten(1).mean(1)
        return s.masked_fill(s > self.broken_above, torch.nan)
