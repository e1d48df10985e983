"""Tiny ImageNet: 200 classes of 64x64 images."""

from pathlib import Path

import torch

from adversarial_lightning.datamodules import synthetic_copies
from adversarial_lightning.datamodules.archive_dataset import ArchiveDataset, Part
from adversarial_lightning.datamodules.cache import Pixels, stacked
from adversarial_lightning.datamodules.files import FileImages
from adversarial_lightning.datamodules.imagenet import distinct
from adversarial_lightning.datamodules.images import IndexedImages, TensorImages
from adversarial_lightning.errors import UserError


class TinyImageNet(ArchiveDataset):
    """Tiny ImageNet: 100,000 images to train and hold out, 10,000 to test, 64x64 RGB, 200 classes.

    The test set is the official *validation* set, whose labels are in `val_annotations.txt`; the official test set has
    none. Labels are positions in the sorted list of WordNet ids, as in torchvision's ImageFolder. `index` counts
    training images in turns (the first of every class, then the second ...), so that a subset with the first images of
    every class keeps the numbers; the index of a test image is the number in its name. In training a crop of 64 out of
    72 and a mirror. Grey images become RGB.
    """

    num_classes = 200
    image_shape = (3, 64, 64)
    archive, inside = "tiny-imagenet-200.zip", "tiny-imagenet-200"
    md5 = "90528d7ca1a48142e341f4ef8d21d0de"
    urls = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",)
    margin = 4
    write_synthetic = staticmethod(synthetic_copies.tiny_imagenet)

    def source(self, part: Part) -> IndexedImages:
        return TensorImages(*self.decoded(part))

    @property
    def classes(self) -> tuple[str, ...] | None:
        """First word of each synset in words.txt, the WordNet id where it is not listed; None without the data."""
        inside = self._folder() / self.inside
        if not (inside / "wnids.txt").is_file():
            return None
        lines = (inside / "words.txt").read_text().splitlines() if (inside / "words.txt").is_file() else []
        words = {wnid: said.split(",")[0] for wnid, _, said in (line.partition("\t") for line in lines)}
        wnids = sorted((inside / "wnids.txt").read_text().split())
        return distinct([words.get(wnid, wnid) for wnid in wnids], wnids)

    def files(self, folder: Path, part: Part) -> dict[Path, str | None]:
        listing, _ = _listing(folder / self.inside, part)
        return dict.fromkeys([folder / self.inside / "wnids.txt", *listing])

    def read(self, folder: Path, part: Part) -> Pixels:
        listing, labels = _listing(folder / self.inside, part)
        target = torch.tensor(labels)
        files = FileImages([str(path) for path in listing], target, 64, 3)
        return stacked(len(listing), files.fetch, self.image_shape), target


def _listing(inside: Path, part: Part) -> tuple[list[Path], list[int]]:
    """Files and labels, in the order of their index. Raises FileNotFoundError and ValueError that name the file."""
    wnids = sorted((inside / "wnids.txt").read_text().split())
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    if part == "test":
        return _annotated(inside / "val", labels)
    turns = []
    for wnid, label in labels.items():
        folder = inside / "train" / wnid / "images"
        if not folder.is_dir():
            raise UserError(f"{folder} is missing: all {len(wnids)} classes of wnids.txt need one; unpack again.")
        numbers = {path.stem.rpartition("_")[2]: path for path in folder.glob(f"{wnid}_*.JPEG")}
        if not numbers:
            raise UserError(f"{folder} holds no images {wnid}_N.JPEG: unpack the archive again.")
        turns += [(int(number), label, path) for number, path in numbers.items() if number.isdigit()]
    turns.sort(key=lambda entry: entry[:2])
    return [path for _, _, path in turns], [label for _, label, _ in turns]


def _annotated(val: Path, labels: dict[str, int]) -> tuple[list[Path], list[int]]:
    """Validation files in the order of their numbers, with the labels of `val_annotations.txt`."""
    listing = val / "val_annotations.txt"
    entries = []
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        name, wnid = [*line.split("\t"), "", ""][:2]
        digits = name.removeprefix("val_").removesuffix(".JPEG")
        if wnid not in labels or not digits.isdigit():
            raise UserError(f"{listing}, line {number}: expected val_N.JPEG, a tab and a class of wnids.txt: {line!r}.")
        entries.append((int(digits), val / "images" / name, labels[wnid]))
    entries.sort()
    return [path for _, path, _ in entries], [label for _, _, label in entries]
