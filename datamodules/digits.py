"""Handwritten digits of scikit-learn: 1,797 real images that come with the library, no download."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adversarial_lightning.datamodules.base import ImageData
from adversarial_lightning.datamodules.images import IndexedImages, TensorImages
from adversarial_lightning.errors import UserError

TEST_SIZE = 360


@dataclass(eq=False, repr=False)
class Digits(ImageData):
    """scikit-learn's 8x8 digits, bilinearly enlarged to `size` x `size`: 1,437 to train and hold out, 360 to test.

    Pixels 0 .. 16 become [0, 1]. The test set is fixed, whatever the split seed. `index` is the number in
    scikit-learn's order, for all splits. Raises ValueError for a size below 8.
    """

    num_classes = 10
    classes = tuple("0123456789")

    size: int = 28
    _: KW_ONLY
    val_size: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 8:
            raise UserError(f"size={self.size} would shrink the 8x8 digits: set 8 or more (--data.init_args.size).")
        self.image_shape = (1, self.size, self.size)

    def source(self, part: Literal["train", "test"]) -> IndexedImages:
        pixels, labels = _load(self.size)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        chosen = order[:TEST_SIZE] if part == "test" else order[TEST_SIZE:]
        return TensorImages(pixels, labels, chosen.sort().values)


def _load(size: int) -> tuple[Tensor, Tensor]:
    """Images (1797, 1, size, size) in [0, 1] and labels (1797,)."""
    from sklearn.datasets import load_digits  # seconds to import, and no other data set needs it

    digits = load_digits()
    images = torch.from_numpy(np.asarray(digits.images, dtype=np.float32)).div(16).unsqueeze(1)
    enlarged = interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return enlarged.clamp_(0, 1), torch.from_numpy(np.asarray(digits.target, dtype=np.int64))
