"""Data set from folders of image files, one folder for each class, packed or not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision import datasets

from adversarial_lightning.datamodules.archive import SUFFIXES, unpacked
from adversarial_lightning.datamodules.base import ImageData
from adversarial_lightning.datamodules.cache import cached, facts, stacked
from adversarial_lightning.datamodules.files import FileImages
from adversarial_lightning.datamodules.images import IndexedImages, TensorImages
from adversarial_lightning.datamodules.synthetic_copies import image_folder, synthetic_copy
from adversarial_lightning.errors import UserError


@dataclass(eq=False, repr=False)
class ImageFolder(ImageData):
    """Folders of images below `root`, one for each class, or an archive of them (.tar, .tar.gz, .tgz, .zip).

    Layouts: `{train,test}/<class>/*` or `{train,val}/<class>/*` (val is then the test set). With only one of these
    folders, or with class folders alone, the share `test_size` becomes a fixed test set that does not depend on the
    split seed. A single folder around them is skipped. Images become `(channels, image_size, image_size)`. An archive
    is unpacked on first use.

    Files are numbered in turns: the first of every class, then the second of every class ... The first N images are
    therefore spread over all classes. `classes` lists the folder names by
    label; `num_classes` may exceed their number (a sample of a larger data set), but not be lower.

    Files of 16 bits and floats in [0, 1] are scaled; transparent ones and those of unknown range are refused by name
    (`files.eight_bit`). EXIF orientations are not applied.

    cache: decode every image once into a file that is then memory-mapped (`cache.py`), for data sets whose pixels fit
    on the disk. augment: in training, random crops with a padding of an eighth of the size, and mirrored images.
    Raises FileNotFoundError if root is missing, ValueError for an unknown archive, an empty class, a corrupt image.
    """

    root: str
    num_classes: int | None = None  # type: ignore[assignment]  # as given; afterwards always a number
    image_size: int = 32
    channels: int = 3
    test_size: float = 0.2
    cache: bool = False
    augment: bool = False
    synthetic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        channels, image_size, test_size, given = self.channels, self.image_size, self.test_size, self.num_classes
        if channels not in (1, 3) or image_size < 1:
            raise UserError(
                f"channels={channels}, image_size={image_size} is no image: set channels to 1 (grey) or 3 (RGB) and "
                "image_size to 1 or more (--data.init_args.channels, --data.init_args.image_size)."
            )
        if not 0 < test_size < 1:
            raise UserError(f"test_size={test_size} is no share: set it between 0 and 1 (--data.init_args.test_size).")
        self.image_shape = (channels, image_size, image_size)
        self.padding = image_size // 8 if self.augment else 0
        if self.synthetic:
            where = synthetic_copy(image_folder, given or 10, image_size)
        else:
            where = Path(self.root).expanduser()
        self.train_root, self.test_root = _parts(where)
        self._classes = tuple(_subfolders(self.train_root))
        if not self.classes:
            raise UserError(f"{self.train_root} holds no class folders: put every class's images in its own folder.")
        self.num_classes = len(self.classes) if given is None else given
        if self.num_classes < len(self.classes):
            raise UserError(
                f"num_classes={given}, but {self.train_root} holds {len(self.classes)} class folders: leave "
                "num_classes out, or set it to their number or more (--data.init_args.num_classes)."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders."""
        return self._classes

    def source(self, part: Literal["train", "test"]) -> IndexedImages:
        if self.test_root is not None:
            return self._images(self.train_root if part == "train" else self.test_root, None)
        paths, _ = self._files(self.train_root)
        count = max(1, round(self.test_size * len(paths)))
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
        chosen = order[:count] if part == "test" else order[count:]
        return self._images(self.train_root, chosen.sort().values)

    def _images(self, folder: Path, indices: Tensor | None) -> IndexedImages:
        paths, labels = self._files(folder)
        files = FileImages(paths, labels, self.image_size, self.channels, indices=indices)
        if not self.cache:
            return files
        # The last figure counts changes of `eight_bit`: what it decoded otherwise before is decoded anew.
        key = facts([Path(path) for path in paths]) + f"-{self.channels}x{self.image_size}-1"
        name = f"{folder.parent.name}-{folder.name}"
        pixels, labels = cached(folder, name, key, lambda: (stacked(len(paths), files.fetch, self.image_shape), labels))
        return TensorImages(pixels, labels, indices)

    def _files(self, folder: Path) -> tuple[list[str], Tensor]:
        """Image files below the class folders, numbered in turns, and their labels (M,) among `classes`."""
        listing = _Listing(folder, allow_empty=True)
        if strangers := sorted(set(listing.classes) - set(self.classes)):
            raise UserError(f"{folder / strangers[0]} is no class of {self.train_root}: rename or remove that folder.")
        groups: dict[str, list[str]] = {name: [] for name in listing.classes}
        for path, label in listing.samples:
            groups[listing.classes[label]].append(path)
        if empty := [name for name, paths in groups.items() if not paths]:
            raise UserError(f"{folder / empty[0]} holds no image files: fill or remove that class folder.")
        turns = sorted(
            (turn, self.classes.index(name), path) for name, paths in groups.items() for turn, path in enumerate(paths)
        )
        return [path for _, _, path in turns], torch.tensor([label for _, label, _ in turns])


class _Listing(datasets.ImageFolder):
    """Listing by torchvision that ignores hidden folders (.ipynb_checkpoints and the like)."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = _subfolders(Path(directory))
        return names, {name: label for label, name in enumerate(names)}


def _parts(root: Path) -> tuple[Path, Path | None]:
    """Folder of the training classes and folder of the test classes, None if there is only one."""
    if not root.exists():
        raise FileNotFoundError(
            f"there is nothing at {root.absolute()}: set --data.init_args.root to a folder of class folders "
            f"(or of train/ and test/ with class folders in them), or to a {', '.join(SUFFIXES)} archive of one."
        )
    if not root.is_dir():
        if not root.name.endswith(SUFFIXES):
            raise UserError(
                f"{root} is neither a folder nor an archive that can be unpacked here ({', '.join(SUFFIXES)}): "
                "unpack it yourself and set --data.init_args.root to the folder."
            )
        root = unpacked(root)
    while True:
        inside = _subfolders(root)
        present = [root / name for name in ("train", "test", "val") if name in inside]
        if present:
            return (present[0], present[1]) if present[0].name == "train" and len(present) > 1 else (present[0], None)
        # One folder around everything is not a class, if it holds folders itself.
        if len(inside) != 1 or not _subfolders(root / inside[0]):
            return root, None
        root = root / inside[0]


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))
