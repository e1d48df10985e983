"""Robust accuracy during training, by the same per-sample evaluation as in evaluate.py, on any number of processes."""

from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from adversarial_lightning.attacks import Attack, expanded, threat
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.outcome import Outcome, evaluate_batch, robust
from adversarial_lightning.lightning_modules.base import Classifier
from adversarial_lightning.lightning_modules.training_method import Batch
from adversarial_lightning.seed import global_seed


def gather(outcomes: list[Outcome]) -> list[Outcome]:
    """Gather the outcomes of all processes, sorted by sample. Raises ValueError if a sample occurs twice."""
    if dist.is_available() and dist.is_initialized():
        parts: list[list[Outcome]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, outcomes)
        outcomes = [outcome for part in parts for outcome in part]
    outcomes = sorted(outcomes, key=lambda o: o.index)
    indices = [o.index for o in outcomes]
    if len(set(indices)) != len(indices):
        twice = sorted({i for i in indices if indices.count(i) > 1})[:5]
        raise UserError(f"samples {twice} were evaluated more than once: the sampler must not pad (datamodules do not)")
    return outcomes


class AttackEvaluation(pl.Callback):
    """Attacks the first `limit` samples of the validation or test set and logs ``val/robust_acc/<name>``.

    Noise is keyed by sample, so values are comparable between epochs and independent of batch size and number of
    processes. In epochs without an evaluation the last value is logged again, because ModelCheckpoint needs one.

    Args:
        attacks: attacks by name; a `Sweep` is expanded.
        every_n_epochs: number of epochs between two evaluations in training; the first and the last are always
            evaluated.
        limit: attack only the first samples of the set; none for all.
    """

    def __init__(self, attacks: dict[str, Attack], every_n_epochs: int = 1, limit: int | None = None) -> None:
        if not attacks:
            raise UserError("attacks must name at least one attack")
        if every_n_epochs < 1 or (limit is not None and limit < 1):
            raise UserError(f"every_n_epochs ({every_n_epochs}) and limit ({limit}) must be at least 1")
        self.attacks, self.every_n_epochs, self.limit = expanded(attacks), every_n_epochs, limit
        self.outcomes: dict[str, list[Outcome]] = {}
        self.results: dict[str, dict[str, float]] = {"val": {}, "test": {}}
        self._position = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in pl_module.parameters()):
            raise UserError("attacks are evaluated in float32: use --trainer.precision bf16-mixed, not a half network")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start()

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        if self._due(trainer):
            self._attack(trainer, pl_module, batch)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        self._attack(trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._due(trainer):
            self._finish("val")
        self._log("val", pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish("test")
        self._log("test", pl_module)

    @property
    def state_key(self) -> str:
        """Key with the attacks' names, so that a Trainer may have several of these callbacks."""
        return f"AttackEvaluation[{', '.join(sorted(self.attacks))}]"

    def state_dict(self) -> dict[str, Any]:
        return {"val": self.results["val"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.results["val"] = {k: v for k, v in state_dict["val"].items() if k in self.attacks}

    def _start(self) -> None:
        self.outcomes = {name: [] for name in self.attacks}
        self._position = 0

    def _due(self, trainer: pl.Trainer) -> bool:
        if trainer.state.fn != "fit":
            return True
        epoch, first = trainer.current_epoch + 1, not self.results["val"]
        return first or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def _attack(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch) -> None:
        x, y, index = batch
        # Row k of this process is sample rank + k * world_size of the set.
        mine = None if self.limit is None else len(range(trainer.global_rank, self.limit, trainer.world_size))
        left = len(x) if mine is None else mine - self._position
        self._position += len(x)
        if left <= 0:
            return
        x, y, index = x[:left], y[:left], index[:left]
        network = cast(Classifier, pl_module).network
        for name, attack in self.attacks.items():
            outcomes, _ = evaluate_batch(network, attack, x, y, index, seed=global_seed(), name=name)
            self.outcomes[name] += outcomes

    def _finish(self, stage: Literal["val", "test"]) -> None:
        for name, attack in self.attacks.items():
            outcomes = gather(self.outcomes[name])
            right = [robust(o, *threat(attack), attack.kind) for o in outcomes]
            self.results[stage][name] = sum(right) / len(right) if right else 0.0

    def _log(self, stage: Literal["val", "test"], pl_module: pl.LightningModule) -> None:
        for name, value in self.results[stage].items():
            pl_module.log(f"{stage}/robust_acc/{name}", value, prog_bar=True, sync_dist=True)  # equal on all processes
