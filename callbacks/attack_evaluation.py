"""Robust accuracy during training, by the same per-sample evaluation as in evaluate.py, on any number of processes."""

from collections.abc import Sized
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import Subset

from adversarial_lightning.attacks import Attack, expanded, threat
from adversarial_lightning.callbacks.attacked_model import attacked_model
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.outcome import Outcome, evaluate_batch, robust
from adversarial_lightning.evaluation.outcomes.subset import random_subset
from adversarial_lightning.lightning_modules.training_method import Batch
from adversarial_lightning.seed import global_seed


def gather(outcomes: list[Outcome]) -> list[Outcome]:
    """Gather the outcomes of all processes, sorted by sample, each sample once.

    Lightning's sampler pads: on W processes up to W - 1 samples come twice, to two processes, and one outcome of each
    is dropped. Raises ValueError where a sample number names several samples.
    """
    parts = [outcomes]
    if dist.is_available() and dist.is_initialized():
        parts = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, outcomes)
    found: dict[int, Outcome] = {}
    twice: list[int] = []
    allowed = len(parts) - 1
    for part in parts:
        before = dict(found)
        for o in part:
            if o.index in found:
                twice.append(o.index)
                known = before.get(o.index)
                if known is None or (known.label, known.clean) != (o.label, o.clean):
                    allowed = 0  # the same process again, or another sample: no padding
            found.setdefault(o.index, o)
    if len(twice) > allowed:
        raise UserError(
            f"samples {sorted(set(twice))[:5]} were evaluated more than once: the third entry of a batch (x, y, index) "
            "must be a number of its own for each sample of the set"
        )
    return [found[i] for i in sorted(found)]


def sample_numbers(data: object) -> Tensor:
    """Numbers (N,) of a data set's samples: its `indices`, those of the set that it is a `Subset` of, or 0 .. N - 1."""
    if isinstance(data, Subset):
        return sample_numbers(data.dataset)[torch.as_tensor(data.indices)]
    if not isinstance(data, Sized):
        raise UserError(f"limit chooses among all samples, and {type(data).__name__} does not know its length: drop it")
    indices = getattr(data, "indices", None)
    return torch.arange(len(data)) if indices is None else torch.as_tensor(indices)


class AttackEvaluation(pl.Callback):
    """Attacks the validation or test set, or a random subset of it, and logs ``val/robust_acc/<name>``.

    Noise is keyed by sample, so values are comparable between epochs and independent of batch size and number of
    processes. In epochs without an evaluation the last value is logged again, because ModelCheckpoint needs one.
    Lightning's sanity check is not evaluated. What is attacked is said by `attacked_model`, in float32, or float64
    where the module has it. Batches are ``(x, y, index)``; the set is one loader.

    Args:
        attacks: attacks by name; a `Sweep` is expanded.
        every_n_epochs: number of epochs between two evaluations in training; the first and the last of `max_epochs`
            are always evaluated.
        limit: attack only so many samples, a random subset (`random_subset`): the same in every epoch, for every model
            and number of processes; none for all.
        sample_seed: seed of the subset.
    """

    def __init__(
        self, attacks: dict[str, Attack], every_n_epochs: int = 1, limit: int | None = None, sample_seed: int = 0
    ) -> None:
        if not attacks:
            raise UserError("attacks must name at least one attack")
        if every_n_epochs < 1 or (limit is not None and limit < 1):
            raise UserError(f"every_n_epochs ({every_n_epochs}) and limit ({limit}) must be at least 1")
        self.attacks, self.every_n_epochs = expanded(attacks), every_n_epochs
        self.limit, self.sample_seed = limit, sample_seed
        self.outcomes: dict[str, list[Outcome]] = {}
        self.results: dict[str, dict[str, float]] = {"val": {}, "test": {}}
        self._model: nn.Module | None = None
        self._chosen: Tensor | None = None
        self._expected: int | None = None
        self._waiting: Batch | None = None
        self._size = 1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._check_precision(trainer, pl_module)
        if stage == "fit":
            self.results["val"] = {}  # what an earlier validate() found is no evaluation of this training

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        if self._due(trainer):
            self._attack(trainer, pl_module, batch, batch_idx)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *_: int
    ) -> None:
        self._attack(trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._due(trainer):
            self._finish("val", trainer)
        if not trainer.sanity_checking:
            self._log("val", pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish("test", trainer)
        self._log("test", pl_module)

    @property
    def state_key(self) -> str:
        """Key with the attacks' names, so that a Trainer may have several of these callbacks."""
        return f"AttackEvaluation[{', '.join(sorted(self.attacks))}]"

    def state_dict(self) -> dict[str, Any]:
        return {"val": self.results["val"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.results["val"] = {k: v for k, v in state_dict["val"].items() if k in self.attacks}

    def _check_precision(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning converts the module after setup, and its own precision is known before.
        half = any(p.dtype in (torch.float16, torch.bfloat16) for p in pl_module.parameters())
        if half or trainer.precision in ("16-true", "bf16-true"):
            raise UserError("attacks are evaluated in float32: use --trainer.precision bf16-mixed, not a half network")

    def _start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_precision(trainer, pl_module)
        if (loaders := len(_loop(trainer).max_batches)) > 1:
            raise UserError(f"AttackEvaluation evaluates one loader, not {loaders}: give it one, or join the data sets")
        self.outcomes = {name: [] for name in self.attacks}
        self._model = self._waiting = None

    def _due(self, trainer: pl.Trainer) -> bool:
        if trainer.state.fn != "fit":
            return True
        epoch, first = trainer.current_epoch + 1, not self.results["val"]
        due = first or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs
        return due and not trainer.sanity_checking

    def _attack(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        x, _, index = batch
        loop = _loop(trainer)
        if self._model is None:
            self._model = attacked_model(pl_module, x, index)
            self._choose(getattr(loop._combined_loader.flattened[0], "dataset", None))
        rows = index >= 0 if self._chosen is None else torch.isin(index, self._chosen.to(index.device))
        # The samples of a small subset wait until they fill a batch; all are attacked before the last batch has ended,
        # while weights that are only validated (an average of several steps) are still in place.
        kept = [t[rows] for t in batch]
        if self._waiting is not None:
            kept = [torch.cat(pair) for pair in zip(self._waiting, kept, strict=True)]
        self._size = max(self._size, len(x))
        more = self.limit is not None and batch_idx + 1 < loop.max_batches[0] < torch.inf
        count = len(kept[0]) // self._size * self._size if more else len(kept[0])
        for start in range(0, count, self._size):
            self._evaluate(*(t[start : min(start + self._size, count)] for t in kept))
        self._waiting = cast(Batch, tuple(t[count:] for t in kept))

    def _choose(self, data: object) -> None:
        """Note which samples are attacked (None: all) and how many there should be (None: not known)."""
        self._chosen, self._expected = None, len(data) if isinstance(data, Sized) else None
        if self.limit is not None:
            numbers = sample_numbers(data)
            self._chosen = numbers[random_subset(numbers, self.limit, self.sample_seed)]
            self._expected = len(self._chosen)

    def _evaluate(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        assert self._model is not None
        for name, attack in self.attacks.items():
            outcomes, _ = evaluate_batch(self._model, attack, x, y, index, seed=global_seed(), name=name)
            self.outcomes[name] += outcomes

    def _finish(self, stage: Literal["val", "test"], trainer: pl.Trainer) -> None:
        self._model = self._waiting = None
        self.results[stage] = {}
        for name, attack in self.attacks.items():
            outcomes = gather(self.outcomes[name])
            if self._expected not in (None, len(outcomes)) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                rank_zero_warn(
                    f"{stage}/robust_acc/{name} is of {len(outcomes)} samples, not of {self._expected}: the loader "
                    f"leaves some out (limit_{stage}_batches, drop_last), or its numbers are not those of its data set"
                )
            if failed := sum(o.attack_failed for o in outcomes):
                rank_zero_warn(
                    f"{stage}/robust_acc/{name}: the attack is broken, its pixels are no numbers for {failed} samples "
                    f"of {len(outcomes)}; these count as not broken by it"
                )
            right = [robust(o, *threat(attack), attack.kind) for o in outcomes]
            if right:
                self.results[stage][name] = sum(right) / len(right)

    def _log(self, stage: Literal["val", "test"], pl_module: pl.LightningModule) -> None:
        for name, value in self.results[stage].items():
            pl_module.log(f"{stage}/robust_acc/{name}", value, prog_bar=True, sync_dist=True)  # equal on all processes


def _loop(trainer: pl.Trainer) -> Any:
    """Lightning's loop that runs: `trainer.val_dataloaders` and its like may be those of an earlier one."""
    others: dict[Any, Any] = {"validate": trainer.validate_loop, "test": trainer.test_loop}
    return others.get(trainer.state.fn, trainer.fit_loop.epoch_loop.val_loop)
