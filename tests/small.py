"""Small trainings for tests: real digits, few of them, on one process unless said otherwise."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from datamodules import Digits


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
