"""Images that are decoded from their files at every fetch, for data sets too large to keep decoded."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from adversarial_lightning.datamodules.augment import random_bits
from adversarial_lightning.datamodules.images import IndexedImages
from adversarial_lightning.errors import UserError


class FileImages(IndexedImages):
    """Images decoded from files: shorter side to `resized`, centre crop of `image_size`, grey (1 channel) or RGB (3).

    `resized` defaults to `image_size`. With `random_crops` the training copy `augmented()` takes a random part of each
    image instead (8 to 100 % of the area, sides 3:4 to 4:3) and mirrors half of them, by torchvision's transforms. The
    draws are a function of (seed, epoch, index): `clock` holds seed and epoch, in memory that loader processes share.
    Raises ValueError naming a file that cannot be decoded.
    """

    def __init__(
        self,
        paths: list[str],
        all_labels: Tensor,
        image_size: int,
        channels: int,
        resized: int | None = None,
        random_crops: bool = False,
        indices: Tensor | None = None,
    ) -> None:
        super().__init__(all_labels, torch.arange(len(paths)) if indices is None else indices)
        self.paths = paths
        self.image_size = image_size
        self.channels = channels
        self.resized = image_size if resized is None else resized
        self.clock = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.random: v2.Transform | None = None
        if random_crops:
            self.random = v2.Compose([v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()])
        self._augments = False

    def augmented(self) -> "FileImages":
        """Copy for training, with random crops if there are any."""
        again = copy.copy(self)
        again._augments = self.random is not None
        return again

    def fetch(self, indices: Tensor) -> Tensor:
        if not self._augments:
            return torch.stack([pil_to_tensor(self._centre(self._open(index))) for index in indices.tolist()])
        assert self.random is not None
        seed, epoch = self.clock.tolist()
        keys = random_bits(seed, epoch, indices).tolist()
        before = torch.get_rng_state()  # torchvision's transforms know no other generator than the global one
        try:
            parts = []
            for index, key in zip(indices.tolist(), keys, strict=True):
                torch.default_generator.manual_seed(key)
                parts.append(pil_to_tensor(self.random(self._open(index))))
            return torch.stack(parts)
        finally:
            torch.set_rng_state(before)

    def source_bytes(self, positions: Tensor) -> Iterator[bytes]:
        """The files, not decoded: that is some hundred times as fast, and the settings say how they are decoded."""
        for index in self.indices[positions].tolist():
            yield Path(self.paths[index]).read_bytes()

    def _open(self, index: int) -> Image.Image:
        try:
            with Image.open(self.paths[index]) as image:
                return image.convert("L" if self.channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self.paths[index]} is not a readable image ({error}): replace or remove the file."
            ) from error

    def _centre(self, image: Image.Image) -> Image.Image:
        # PIL's own resize averages over all source pixels (antialias), which interpolation of tensors does not.
        part: Image.Image = center_crop(resize(image, [self.resized]), [self.image_size, self.image_size])
        return part
