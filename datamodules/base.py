"""Base of all data modules: splits, limits and loaders."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from adversarial_lightning.datamodules.augment import crop_and_flip
from adversarial_lightning.datamodules.files import FileImages
from adversarial_lightning.datamodules.images import Batch, IndexedImages, as_float
from adversarial_lightning.datamodules.samplers import EpochShuffle, ResumableLoader, Shard
from adversarial_lightning.errors import UserError
from adversarial_lightning.seed import global_seed

Split = Literal["train", "val", "test"]


class LabelledImages(LightningDataModule, ABC):
    """Description that every data module gives of its images.

    num_classes: number of classes; image_shape: (C, H, W). classes: their names by label, None where they have none.
    synthetic: read a few generated images in the format of the data set (`synthetic_copies.py`).
    padding: in training, move images by up to so many pixels and mirror half of them (`augment.py`); 0: do not.
    """

    # Attributes of a plain class, not fields of the data classes below: a leaf states them, or computes them.
    num_classes: int
    image_shape: tuple[int, int, int]
    synthetic: bool = False
    padding: int = 0

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by label, None where they have none; fewer than `num_classes` if some have no image."""
        return None


@dataclass(eq=False, repr=False)
class ImageData(LabelledImages):
    """Labelled images in [0, 1], split into train, val (held-out training images) and test.

    A leaf is a data class: it adds its own arguments, and repeats one of those below only to change its default. It
    states `num_classes` and `image_shape` (C, H, W), names its `classes` where they have names, and reads its two
    sources in `source`. Batches are
    `(x (B, C, H, W) float32 in [0, 1], y (B,) int64, index (B,) int64)`; `index` is the image's number in its source
    (the training file for train and val, the test file for test), so it names the same image whatever the settings.
    Networks normalise in their first layer; data modules do not. Every constructor argument is a plain value and stays
    an attribute of the same name.

    Under a Trainer, loaders hand out pixels as they are stored (uint8), and `on_after_batch_transfer` makes them floats
    on the device, where it also augments training images if `padding` is set. Loaders of a data module without a
    Trainer give floats, not augmented. Of a synthetic copy at most half is held out.

    batch_size, eval_batch_size: images per process and step, in training and in evaluation.
    val_size: number of training images held out; split_seed: which ones.
    train_limit, test_limit: only so many images, a random subset (the smaller lies in the larger); of the training
        images as `split_seed` says, of the test images always the same one.
    workers: loader processes (0: the training process itself); pin_memory: page-locked batches, for a GPU.

    Raises ValueError for settings that make no sense or leave a split empty, and for labels outside num_classes.
    """

    _: KW_ONLY
    batch_size: int = 128
    eval_batch_size: int = 256
    val_size: int = 1000
    split_seed: int = 0
    train_limit: int | None = None
    test_limit: int | None = None
    workers: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.check_at_least(1, "batch_size", "eval_batch_size", "val_size", "train_limit", "test_limit")
        self.check_at_least(0, "split_seed", "workers")
        self._sources: dict[str, IndexedImages] = {}

    def check_at_least(self, minimum: int, *names: str) -> None:
        """Raise ValueError where one of these arguments is given and below `minimum`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(
                    f"{name}={value} makes no sense: set it to {minimum} or more (--data.init_args.{name})."
                )

    @abstractmethod
    def source(self, part: Literal["train", "test"]) -> IndexedImages:
        """Read all training images (held-out ones included) or all test images."""

    def dataset(self, split: Split) -> IndexedImages:
        """Images of one split, sorted by index; needs no Trainer and no setup."""
        if split == "test":
            return self._limited(self._source("test"))
        if split not in ("train", "val"):
            raise UserError(f"split is one of train, val, test; not {split!r}.")
        images = self._source("train")
        held_out = min(self.val_size, len(images) // 2) if self.synthetic else self.val_size
        if held_out >= len(images):
            raise UserError(
                f"val_size={self.val_size} holds out all of the {len(images)} training images of "
                f"{type(self).__name__}: set it below {len(images)} (--data.init_args.val_size)."
            )
        order = _shuffled(len(images), self.split_seed)
        if split == "val":
            return images.select(order[:held_out].sort().values)
        return images.select(order[held_out:][: self.train_limit].sort().values)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Convert a batch to floats and augment training images, by (seed, epoch, index), on the batch's device."""
        x, y, index = batch
        if self.padding and self.trainer is not None and self.trainer.training:
            x = crop_and_flip(x, index, self.padding, global_seed(), self.trainer.current_epoch)
        return as_float(x), y, index

    def train_dataloader(self) -> DataLoader[Batch]:
        data, (rank, world) = self._handed_out(self.dataset("train")), self._place()
        if isinstance(data, FileImages):
            data = data.augmented()
        # An order of its own, not the global generator's: the same images again after a resume, and on any rank.
        sampler = EpochShuffle(data, rank, world, seed=global_seed())
        loader = ResumableLoader(
            data,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=default_convert,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self._pinned(),
        )
        loader.trainer = self.trainer
        _silence_worker_advice()
        return loader

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def _eval_loader(self, split: Split) -> DataLoader[Batch]:
        data, (rank, world) = self._handed_out(self.dataset(split)), self._place()
        _silence_worker_advice()
        return DataLoader(
            data,
            batch_size=self.eval_batch_size,
            sampler=Shard(data, rank, world),
            collate_fn=default_convert,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self._pinned(),
        )

    def _source(self, part: Literal["train", "test"]) -> IndexedImages:
        """Source of one part, read once and checked."""
        if part not in self._sources:
            images = self.source(part)
            if not len(images):
                raise UserError(f"{type(self).__name__} has no {part} images: the source is empty.")
            low, high = int(images.labels.min()), int(images.labels.max())
            if low < 0 or high >= self.num_classes:
                raise UserError(
                    f"{type(self).__name__} has {part} labels {low} .. {high}, but num_classes={self.num_classes} "
                    f"allows 0 .. {self.num_classes - 1}: mend the labels or num_classes."
                )
            self._sources[part] = images
        return self._sources[part]

    def _limited(self, images: IndexedImages) -> IndexedImages:
        """At most `test_limit` of the test images: a random subset, because the order of a data set is not random."""
        if self.test_limit is None or self.test_limit >= len(images):
            return images.select(torch.arange(len(images)))
        chosen = images.select(_shuffled(len(images), 0)[: self.test_limit].sort().values)
        chosen.drawn_from = len(images)
        return chosen

    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _handed_out(self, images: IndexedImages) -> IndexedImages:
        """Images as uint8 under a Trainer, which converts them on the device; as floats otherwise."""
        return images if self.trainer is None else images.stored()

    def _pinned(self) -> bool:
        return self.pin_memory and torch.cuda.is_available()  # torch warns where there is nothing to pin for


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _silence_worker_advice() -> None:
    """Silence Lightning's advice to use more workers: images in memory are loaded fastest without any."""
    warnings.filterwarnings("ignore", message=r".*does not have many workers which may be a bottleneck")
