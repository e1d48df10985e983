"""ImageNet (ILSVRC 2012), its subsets, and the NIPS 2017 development set."""

import csv
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS

from adversarial_lightning.datamodules import synthetic_copies
from adversarial_lightning.datamodules.archive import SUFFIXES, unpacked
from adversarial_lightning.datamodules.base import ImageData
from adversarial_lightning.datamodules.files import FileImages
from adversarial_lightning.datamodules.images import IndexedImages
from adversarial_lightning.datamodules.synthetic_copies import synthetic_copy
from adversarial_lightning.errors import UserError

Part = Literal["train", "test"]
OFFICIAL = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}


@dataclass(eq=False, repr=False)
class ImageNet(ImageData):
    """ImageNet: 1,281,167 images to train and hold out, the 50,000 validation images to test, 1,000 classes.

    Images become `image_size` x `image_size`: shorter side to `resized`, centre crop; in training, if `augment`, random
    parts and mirrors (`FileImages`). Labels are the official ones, by WordNet id, also where only some classes are
    there. `index` counts in turns: the first image of every class, then the second ...

    root: a folder with `train/WNID/*` and `val/WNID/*` (one of them is enough for its part), a tar or zip archive of
    one, or a folder with the official archives ILSVRC2012_img_{train,val}.tar and ILSVRC2012_devkit_t12.tar.gz, which
    torchvision then unpacks. test_per_class: only so many test images of each class, chosen at random by `subset_seed`
    (2: the 2,000 images of RIDE). subset: a text file with the indices of the test images, one a line. Raises
    FileNotFoundError for what is missing, ValueError for folders that are no classes and for nonsense in `subset`.
    """

    num_classes = 1000

    root: str = "data/imagenet"
    image_size: int = 224
    resized: int = 256
    augment: bool = True
    test_per_class: int | None = None
    subset_seed: int = 0
    subset: str | None = None
    synthetic: bool = False
    _: KW_ONLY
    batch_size: int = 256
    val_size: int = 10_000
    workers: int = 8
    pin_memory: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subset is not None and self.test_per_class is not None:
            raise UserError("subset and test_per_class both choose test images: give one of them (--data.init_args).")
        self.check_at_least(1, "image_size", "test_per_class")
        self.check_at_least(self.image_size, "resized")
        self.check_at_least(0, "subset_seed")
        self.image_shape = (3, self.image_size, self.image_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """First word of every synset."""
        return words()

    def source(self, part: Part) -> IndexedImages:
        paths, labels = _in_turns(self._part(part))
        indices = None
        if part == "test" and self.test_per_class is not None:
            indices = some_of_each(labels, self.test_per_class, self.subset_seed)
        elif part == "test" and self.subset is not None:
            indices = _listed(Path(self.subset), len(paths))
        crops = self.augment and part == "train"
        return FileImages(paths, labels, self.image_size, 3, self.resized, crops, indices)

    def _part(self, part: Part) -> Path:
        """Folder of the class folders of one part."""
        root = synthetic_copy(synthetic_copies.imagenet) if self.synthetic else Path(self.root).expanduser()
        if root.is_file() and root.name.endswith(SUFFIXES):
            root = unpacked(root)
        name = "train" if part == "train" else "val"
        inside = [folder for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
        for folder in (root / name, *(f / name for f in inside if len(inside) == 1)):
            if folder.is_dir():
                return folder
        if (root / OFFICIAL[name]).is_file():
            try:
                return Path(datasets.ImageNet(str(root), split=name).split_folder)
            except (RuntimeError, OSError) as error:  # torchvision's words name the archive
                raise UserError(f"the official archives in {root} cannot be unpacked: {error}") from error
        raise FileNotFoundError(
            f"ImageNet's {name} images are missing: there is neither {root.absolute() / name} with a folder for every "
            f"class nor {OFFICIAL[name]} (with ILSVRC2012_devkit_t12.tar.gz beside it). ImageNet is given out by "
            "image-net.org only; set --data.init_args.root to where it lies."
        )


@dataclass(eq=False, repr=False)
class NIPS2017(ImageData):
    """Development set of the NIPS 2017 competition on adversarial attacks: 1,000 test images like ImageNet's.

    `root` holds `images/ID.png` (299x299) and `images.csv` or `dev_dataset.csv` with the columns ImageId and TrueLabel.
    The file counts classes from 1; labels here are the usual ones, from 0. `index` is the line in that file. Images are
    enlarged or shrunk to `image_size`. Raises FileNotFoundError for what is missing, ValueError for a broken table.
    """

    num_classes = 1000

    root: str = "data/nips2017"
    image_size: int = 299
    synthetic: bool = False
    _: KW_ONLY
    eval_batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "image_size")
        self.image_shape = (3, self.image_size, self.image_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """First word of every synset."""
        return words()

    def source(self, part: Part) -> IndexedImages:
        if part == "train":
            raise UserError("NIPS2017 is a test set: it has no training images. Use ImageNet for training.")
        root = synthetic_copy(synthetic_copies.nips2017) if self.synthetic else Path(self.root).expanduser()
        tables = [root / name for name in ("images.csv", "dev_dataset.csv") if (root / name).is_file()]
        if not tables:
            raise FileNotFoundError(
                f"the NIPS 2017 development set is missing: there is no {root.absolute() / 'images.csv'}. Place its "
                "images.csv (or dev_dataset.csv) and its folder images/ there, or set --data.init_args.root."
            )
        paths, labels = [], []
        with open(tables[0], newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                identity, label = row.get("ImageId"), row.get("TrueLabel") or ""
                if not identity or not label.isdigit() or not 1 <= int(label) <= 1000:
                    raise UserError(f"{tables[0]}, line {number}: ImageId and a TrueLabel in 1 .. 1000 are needed.")
                paths.append(root / "images" / f"{Path(identity).name}.png")
                labels.append(int(label) - 1)
        if missing := [path for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"{len(missing)} images of {tables[0]} are missing, the first is {missing[0]}.")
        return FileImages([str(path) for path in paths], torch.tensor(labels), self.image_size, 3)


def wnids() -> list[str]:
    """WordNet ids of ImageNet's 1,000 classes, in the order of their labels."""
    from timm.data import ImageNetInfo  # seconds to import, and no other data set needs it

    names: list[str] = ImageNetInfo().label_names()
    return names


def words() -> tuple[str, ...]:
    """First word of the synset of each of ImageNet's 1,000 classes, in the order of their labels."""
    from timm.data import ImageNetInfo

    return distinct([description.split(",")[0] for description in ImageNetInfo().label_descriptions()], wnids())


def distinct(names: Sequence[str], ids: Sequence[str]) -> tuple[str, ...]:
    """`names` of classes, with the id behind a name that several of them have (``crane``, bird and machine)."""
    return tuple(f"{n} ({i})" if names.count(n) > 1 else n for n, i in zip(names, ids, strict=True))


def some_of_each(labels: Tensor, count: int, seed: int) -> Tensor:
    """Ascending positions of `count` random entries of every label in `labels` (N,), or all if there are fewer."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    ranked = order[labels[order].sort(stable=True).indices]  # grouped by label, at random within
    sizes = torch.unique_consecutive(labels[ranked], return_counts=True)[1]
    place = torch.cat([torch.arange(int(size)) for size in sizes])
    return ranked[place < count].sort().values


def _in_turns(folder: Path) -> tuple[list[str], Tensor]:
    """Images below the class folders, the first of every class, then the second ..., and their labels."""
    known = {wnid: label for label, wnid in enumerate(wnids())}
    turns = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.name not in known:
            raise UserError(
                f"{entry} is no class of ImageNet: below {folder} belong folders named by WordNet ids (n01440764 ...). "
                "The validation images need sorting into them, with the devkit's labels; for other folders of images "
                "use datamodules.ImageFolder."
            )
        files = sorted(str(p) for p in entry.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise UserError(f"{entry} holds no image files: fill or remove that class folder.")
        turns += [(turn, known[entry.name], path) for turn, path in enumerate(files)]
    turns.sort()
    return [path for _, _, path in turns], torch.tensor([label for _, label, _ in turns])


def _listed(path: Path, count: int) -> Tensor:
    """Indices in a text file, ascending."""
    try:
        numbers = sorted({int(word) for word in path.read_text().split()})
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no list of indices, one a line ({error}): see --data.init_args.subset.") from error
    if not numbers or numbers[0] < 0 or numbers[-1] >= count:
        raise UserError(f"{path} must list indices in 0 .. {count - 1}, one a line (--data.init_args.subset).")
    return torch.tensor(numbers)
