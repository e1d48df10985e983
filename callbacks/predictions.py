"""Predictions on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter


class Predictions(BasePredictionWriter):
    """Writes the result of ``lightning predict``, one file a process: ``{"index": (N,), "logits": (N, K)}``.

    Args:
        folder: folder of the files rank0.pt, rank1.pt, ...
    """

    def __init__(self, folder: str = "predictions") -> None:
        super().__init__("epoch")
        self.folder = folder

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        joined = {name: torch.cat([p[name].cpu() for p in predictions]) for name in ("index", "logits")}
        torch.save(joined, Path(self.folder) / f"rank{trainer.global_rank}.pt")
