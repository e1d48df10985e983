"""Small trainings for tests: real digits, few of them, on one process unless said otherwise."""

import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from torch import nn

from datamodules import Digits
from evaluation.checkpoint import describe
from evaluation.identity import digest_weights
from networks import ConvAutoencoder, Denoiser


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
        return self.layers(x)


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
        if purifier.get("class_path") == "defenses.RIDE":
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
