"""Images that are decoded from their files at every fetch, for data sets too large to keep decoded."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
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

    All become 8 bits (`eight_bit`). As in torchvision, an EXIF orientation is not applied, of several frames the first
    is taken, and colour profiles are ignored.

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
                return eight_bit(image, "L" if self.channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self.paths[index]} is not a readable image ({error}): replace, convert or remove the file."
            ) from error

    def _centre(self, image: Image.Image) -> Image.Image:
        # PIL's own resize averages over all source pixels (antialias), which interpolation of tensors does not.
        part: Image.Image = center_crop(resize(image, [self.resized]), [self.image_size, self.image_size])
        return part


def eight_bit(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Convert an image of any of Pillow's modes to 8 bits, black at 0 and white at 255; grey is ITU-R 601's luma.

    16-bit integers are scaled by 65535 (12-bit TIFF by 4095), floats are those of [0, 1]. Raises ValueError where the
    range is not known (32-bit integers, floats outside [0, 1]), where a pixel is transparent, because its colour would
    depend on a background, and where white is zero in more than 8 bits.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(image).convert(mode)
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            raise UserError("it is transparent in places")
    return image.convert(mode) if image.mode == mode else image.convert("RGB").convert(mode)


def _scaled(image: Image.Image) -> Image.Image:
    """8-bit grey image of one with integers of more than 8 bits, or floats."""
    pixels, tags = np.asarray(image).astype(np.float64), getattr(image, "tag_v2", {})
    bits, white_is_zero = tags.get(258, (16,))[0], tags.get(262) == 0
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # of these two, Pillow's I has 16 bits
        raise UserError("it has 32-bit integers, whose range is not known")
    top = 1 if image.mode == "F" else 2 ** min(bits, 16) - 1
    if white_is_zero:
        raise UserError("it says that white is zero")
    if (pixels == image.info.get("transparency", np.nan)).any():
        raise UserError("it is transparent in places")
    if not ((pixels >= 0) & (pixels <= top)).all():
        raise UserError(
            f"its values lie in [{pixels.min():.4g}, {pixels.max():.4g}], and those of [0, {top}] are known"
        )
    return Image.fromarray(np.round(pixels * (255 / top)).astype(np.uint8))
