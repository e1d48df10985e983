"""Data sets of numbered images `(x, y, index)` that fetch whole batches."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from adversarial_lightning.errors import UserError

Batch = tuple[Tensor, Tensor, Tensor]

# Position of the dummy: a process with an empty shard gets one dummy, so that its loop runs like that of the others.
DUMMY = -1


class IndexedImages(Dataset[Batch], ABC):
    """Images of one source (a training file, a test file), each named by its number in that source.

    `all_labels` (M,) are the labels of the whole source, `indices` (N,) the ascending numbers of the images held here.
    Afterwards `indices` and `labels` are int64 tensors (N,), one entry per position.

    `data[position]` is `(x (C, H, W) float32 in [0, 1], y (), index ())`; `data.__getitems__(positions)` is the same as
    one batch with a leading dimension. Position -1 is a dummy, the first image with index -1: consumers of batches drop
    rows with index < 0. Raises IndexError outside -1 .. N-1.
    """

    def __init__(self, all_labels: Tensor, indices: Tensor) -> None:
        self.indices = indices.to(torch.int64)
        self.labels = all_labels.to(torch.int64)[self.indices]

    # Size of the set that these images are a random subset of; None: they are all of it. An interval needs to know.
    drawn_from: int | None = None

    # Set by `stored()`: batches keep the dtype of the source, and uint8 has a quarter of the bytes to move.
    _as_stored = False

    @abstractmethod
    def fetch(self, indices: Tensor) -> Tensor:
        """Images (B, C, H, W) by their numbers (B,) in the source: uint8 in 0 .. 255, or float32 in [0, 1]."""

    def source_bytes(self, positions: Tensor) -> Iterator[bytes]:
        """Bytes of the source that decide the pixels at these positions (N,): here the pixels, as they are stored."""
        for some in self.indices[positions].split(256):
            yield self.fetch(some).contiguous().numpy().tobytes()

    def stored(self) -> "IndexedImages":
        """Copy that returns images in the dtype of their source; the consumer calls `as_float`, on its device."""
        stored = copy.copy(self)
        stored._as_stored = True
        return stored

    def select(self, positions: Tensor) -> "IndexedImages":
        """Subset at these positions; pixels are not copied."""
        selected = copy.copy(self)
        selected.indices, selected.labels = self.indices[positions], self.labels[positions]
        return selected

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Batch:
        x, y, index = self.__getitems__([position])
        return x[0], y[0], index[0]

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        where = torch.as_tensor(positions, dtype=torch.int64)
        # Python's negative positions would quietly name the last images, where the dummy is meant.
        if len(where) and not DUMMY <= int(where.min()) <= int(where.max()) < len(self):
            raise IndexError(f"positions {int(where.min())} .. {int(where.max())} of a data set of {len(self)} images")
        rows = where.clamp(min=0)
        indices = self.indices[rows]
        x = self.fetch(indices)
        x = x if self._as_stored else as_float(x)
        return x, self.labels[rows], indices.masked_fill(where == DUMMY, DUMMY)


class TensorImages(IndexedImages):
    """Images in memory: `pixels` (M, C, H, W) holds the whole source, uint8 in 0 .. 255 or float32 in [0, 1].

    uint8 becomes float batch by batch: a quarter of the memory, and no pass over the data at the start. `pixels` may be
    mapped from a file (`cache.py`): then processes share one copy, and only pages that are read take memory.
    `indices` defaults to all. Raises ValueError if pixels and labels do not have the same length.
    """

    def __init__(self, pixels: Tensor, all_labels: Tensor, indices: Tensor | None = None) -> None:
        if pixels.ndim != 4 or len(pixels) != len(all_labels):
            raise UserError(f"pixels {tuple(pixels.shape)} and labels {tuple(all_labels.shape)} do not fit together")
        super().__init__(all_labels, torch.arange(len(pixels)) if indices is None else indices)
        self.pixels = pixels

    def fetch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


def as_float(x: Tensor) -> Tensor:
    """Convert uint8 pixels in 0 .. 255 to float32 in [0, 1], to the same bits on every device; keep floats."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x
