"""STL-10, its labelled images."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torchvision import datasets

from adversarial_lightning.datamodules import synthetic_copies
from adversarial_lightning.datamodules.archive_dataset import ArchiveDataset, Part
from adversarial_lightning.datamodules.cache import Pixels
from adversarial_lightning.datamodules.images import IndexedImages, TensorImages
from adversarial_lightning.errors import UserError


@dataclass(eq=False, repr=False)
class STL10(ArchiveDataset):
    """STL-10's labelled images: 5,000 to train and hold out, 8,000 to test, 96x96 RGB, 10 classes.

    `fold` 0 .. 9 trains on one of the ten folds of 1,000 images that its makers defined, as their protocol asks.
    `index` is the number in `train_X.bin` or `test_X.bin`. In training a crop of 96 out of 104 and a mirror, as in the
    ER-Classifier paper.
    """

    num_classes = 10
    classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    image_shape = (3, 96, 96)
    archive, inside, md5 = datasets.STL10.filename, datasets.STL10.base_folder, datasets.STL10.tgz_md5
    urls = (datasets.STL10.url, "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz")
    margin = 4
    write_synthetic = staticmethod(synthetic_copies.stl10)

    fold: int | None = None
    _: KW_ONLY
    batch_size: int = 64
    val_size: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fold is not None and not 0 <= self.fold <= 9:
            raise UserError(
                f"fold={self.fold}: STL-10 has the folds 0 .. 9; leave it out for all (--data.init_args.fold)."
            )

    def source(self, part: Part) -> IndexedImages:
        pixels, labels = self.decoded(part)
        if part == "test" or self.fold is None:
            return TensorImages(pixels, labels)
        listing = self._folder() / self.inside / datasets.STL10.folds_list_file
        lines = listing.read_text().splitlines() if listing.is_file() else []
        if len(lines) <= self.fold:
            raise UserError(f"{listing} does not list fold {self.fold}: get STL-10 again, or leave out fold.")
        return TensorImages(
            pixels, labels, torch.tensor([int(word) for word in lines[self.fold].split()]).sort().values
        )

    def files(self, folder: Path, part: Part) -> dict[Path, str | None]:
        listed = datasets.STL10.train_list[:2] if part == "train" else datasets.STL10.test_list
        return {folder / self.inside / name: md5 for name, md5 in listed}

    def read(self, folder: Path, part: Part) -> Pixels:
        """Decode one part by torchvision, which would otherwise ask for the 2.6 GB of unlabelled images too."""
        labelled = {"train_list": [(n, None) for n, _ in datasets.STL10.train_list[:2]], "test_list": []}
        if part == "test":
            labelled["test_list"] = [(n, None) for n, _ in datasets.STL10.test_list]
            labelled["train_list"] = []
        raw = type("STL10", (datasets.STL10,), labelled)(str(folder), split=part)
        return torch.from_numpy(raw.data), torch.from_numpy(raw.labels).long()
