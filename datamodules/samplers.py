"""Samplers whose order is a function of (seed, epoch) only, and a loader that resumes within an epoch."""

import warnings
from collections.abc import Iterator, Sized
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from adversarial_lightning.datamodules.images import DUMMY, Batch

# Both samplers subclass torch's DistributedSampler: Lightning leaves those alone, and replaces (pads) all others.


class EpochShuffle(DistributedSampler[int]):
    """Sampler with a new permutation for every epoch, which is dealt out among `world` processes.

    Place i of the permutation goes to rank i % world, so a step of all processes together sees the images that one
    process with the `world`-fold batch sees. The end is padded from the beginning: all ranks count the same.
    `skip` leaves out the first positions of this rank, for a resumed epoch; the length stays that of the whole epoch.
    """

    def __init__(self, data: Sized, rank: int = 0, world: int = 1, seed: int = 0) -> None:
        super().__init__(data, num_replicas=world, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.count = len(data)
        self.skip = 0

    def order(self) -> Tensor:
        """Positions of all ranks in this epoch, (world * len(self),), with padding."""
        # The stride keeps (seed 0, epoch 1) and (seed 1, epoch 0) apart; torch's CPU generator reads 32 bits.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**32)
        permutation = torch.randperm(self.count, generator=generator)
        return permutation[torch.arange(self.total_size) % self.count]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.rank :: self.num_replicas][self.skip :].tolist())


class Shard(DistributedSampler[int]):
    """Sampler of the positions rank, rank + world, ... without padding: all processes together see every image once.

    An empty shard yields the dummy position: a process without batches would skip the hooks at the end of its loop,
    where the others wait for it.
    """

    def __init__(self, data: Sized, rank: int = 0, world: int = 1) -> None:
        super().__init__(data, num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.positions = list(range(rank, len(data), world)) or [DUMMY]

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)


class ResumableLoader(DataLoader[Batch]):
    """DataLoader over `EpochShuffle` that records its progress in the epoch, and resumes there.

    Lightning saves and restores every loader that has `state_dict`. The state counts the batches that were trained on,
    not those that workers have prefetched; `trainer` knows the difference when a checkpoint is written within a step.
    Without a trainer every batch that was returned counts.
    """

    # Defaults on the class and no __init__: Lightning may rebuild a loader from DataLoader's own arguments.
    trainer: Trainer | None = None
    _epoch: int = 0
    _handed_out: int = 0
    _resume: dict[str, int] | None = None

    # A generator, because Lightning calls iter() before set_epoch(): workers must not start on the order of epoch 0.
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        resume, self._resume = self._resume, None
        self._epoch, self._handed_out = 0, 0
        if isinstance(self.sampler, EpochShuffle):  # Trainer(overfit_batches=...) puts a sequential one in its place
            self._epoch = self.sampler.epoch
            # A state of an earlier epoch is a finished one: Lightning counts epochs, also with limit_train_batches.
            if resume is not None and resume["epoch"] == self._epoch:
                self._check(resume)
                self._handed_out = resume["batches"]
            self.sampler.skip = self._handed_out * (self.batch_size or 1)
            # Images that are augmented where they are decoded, in workers that outlive an epoch, look here for it.
            if (clock := getattr(self.dataset, "clock", None)) is not None:
                clock.copy_(torch.tensor([self.sampler.seed, self._epoch]))
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Progress of training: epoch, batches done in it, and images per batch over all processes."""
        if self._resume is not None:
            return dict(self._resume)
        batches = self._handed_out
        if self.trainer is not None:
            progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
            batches = min(batches, progress.processed)  # type: ignore[attr-defined]
        return {"epoch": self._epoch, "batches": batches, "global_batch": self._global_batch()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state` at the next iteration, if it belongs to the same epoch."""
        self._resume = {name: int(state[name]) for name in ("epoch", "batches", "global_batch")}

    def _global_batch(self) -> int:
        world = self.sampler.num_replicas if isinstance(self.sampler, EpochShuffle) else 1
        return (self.batch_size or 1) * world

    def _check(self, resume: dict[str, int]) -> None:
        if resume["batches"] and resume["global_batch"] != self._global_batch():
            warnings.warn(
                f"this checkpoint was written in the middle of epoch {resume['epoch']} with {resume['global_batch']} "
                f"images per step, and training continues with {self._global_batch()}: the rest of this epoch is not "
                "exactly what the first run would have seen. Keep batch_size x processes to resume exactly.",
                stacklevel=3,
            )
