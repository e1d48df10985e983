"""MNIST and Fashion-MNIST, in MNIST's idx files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torchvision import datasets

from adversarial_lightning.datamodules import synthetic_copies
from adversarial_lightning.datamodules.base import ImageData
from adversarial_lightning.datamodules.images import IndexedImages, TensorImages
from adversarial_lightning.datamodules.synthetic_copies import synthetic_copy
from adversarial_lightning.errors import UserError

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


@dataclass(eq=False, repr=False)
class IdxImages(ImageData):
    """Abstract: 60,000 28x28 grey images to train and hold out and 10,000 to test, in MNIST's idx files.

    `root` is torchvision's root: the four uncompressed idx files lie in `root/<name>/raw`; `download` fetches them from
    torchvision's mirrors; `synthetic` reads a synthetic copy instead. The files are not compressed, so there is no
    cache of decoded images. `index` is the number in the training file for train and val, in the test file for test.
    Raises FileNotFoundError if files are missing and ValueError if they cannot be read.
    """

    num_classes = 10
    image_shape = (1, 28, 28)
    reader: ClassVar[Any]

    root: str = "data"
    download: bool = False
    synthetic: bool = False

    def prepare_data(self) -> None:
        """Download on one process only; Lightning calls this before all others read."""
        if self.download:
            self.source("test")

    def source(self, part: Literal["train", "test"]) -> IndexedImages:
        name = type(self).__name__
        root = synthetic_copy(synthetic_copies.idx, name) if self.synthetic else Path(self.root)
        raw_folder = Path(root, name, "raw")
        failure: Exception | None = None
        try:
            raw = self.reader(str(root), train=part == "train", download=self.download and not self.synthetic)
            return TensorImages(raw.data.unsqueeze(1), raw.targets)
        except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            failure = error  # torchvision has no exception of its own: what is on disk tells the two cases apart
        if missing := [file for file in FILES if not (raw_folder / file).is_file()]:
            tried = f" (downloading failed: {' '.join(str(failure).split())})" if self.download else ""
            raise FileNotFoundError(
                f"{name} is missing: {', '.join(missing)} not found in {raw_folder.absolute()}{tried}. Fetch it with "
                "--data.init_args.download=true, or place the uncompressed files there, or set "
                f"--data.init_args.root to the folder that holds {name}/raw."
            ) from failure
        raise UserError(
            f"the {name} files in {raw_folder.absolute()} cannot be read ({type(failure).__name__}: {failure}): "
            "remove them and get them again (--data.init_args.download=true)."
        ) from failure


class MNIST(IdxImages):
    """MNIST: 60,000 images to train and hold out, 10,000 to test, 28x28 grey."""

    classes = tuple("0123456789")
    reader = datasets.MNIST


class FashionMNIST(IdxImages):
    """Fashion-MNIST: 60,000 images of clothes to train and hold out, 10,000 to test, 28x28 grey, 10 classes."""

    classes = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    reader = datasets.FashionMNIST
