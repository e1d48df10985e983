"""Small trainings for tests: real digits, few of them, on one process unless said otherwise."""

import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from torch import nn

from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.datamodules import Digits
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
        return self.layers(x)


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
    """`module` with manual optimisation, able to do its training step without a Trainer; its optimizers."""

    class Alone:
        strategy, current_epoch, global_rank = None, 0, 0

    optimizers = [found["optimizer"] for found in module.configure_optimizers()]  # type: ignore[union-attr,index]
    module._trainer = Alone()  # type: ignore[assignment]
    module.optimizers = lambda: optimizers  # type: ignore[assignment,method-assign]
    module.lr_schedulers = lambda: []  # type: ignore[assignment,method-assign]
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[assignment,method-assign]
    module.log_dict = lambda values: None  # type: ignore[assignment,method-assign]
    return optimizers
