"""STL-10, the labelled part."""

from pathlib import Path

import torch
from torchvision import datasets

from adversarial_lightning.datamodules import synthetic_copies
from adversarial_lightning.datamodules.archive_dataset import ArchiveDataset, Part
from adversarial_lightning.datamodules.cache import Pixels
from adversarial_lightning.datamodules.images import IndexedImages, TensorImages
from adversarial_lightning.errors import UserError


class STL10(ArchiveDataset):
    """STL-10's labelled images: 5,000 to train and hold out, 8,000 to test, 96x96 RGB, 10 classes.

    `fold` 0 .. 9 trains on one of the ten folds of 1,000 images that its makers defined, as their protocol asks.
    `index` is the number in `train_X.bin` or `test_X.bin`. In training a crop of 96 out of 104 and a mirror, as in the
    ER-Classifier paper.
    """

    num_classes = 10
    image_shape = (3, 96, 96)
    archive, inside, md5 = datasets.STL10.filename, datasets.STL10.base_folder, datasets.STL10.tgz_md5
    urls = (datasets.STL10.url, "https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz")
    margin = 4
    write_synthetic = staticmethod(synthetic_copies.stl10)

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        fold: int | None = None,
        augment: bool = True,
        synthetic: bool = False,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        val_size: int = 500,
        split_seed: int = 0,
        train_limit: int | None = None,
        test_limit: int | None = None,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            *(root, download, augment, synthetic, batch_size, eval_batch_size, val_size, split_seed),
            *(train_limit, test_limit, workers, pin_memory),
        )
        if fold is not None and not 0 <= fold <= 9:
            raise UserError(f"fold={fold}: STL-10 has the folds 0 .. 9; leave it out for all (--data.init_args.fold).")
        self.fold = fold

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
        """The hashes are checked by now; torchvision would ask for the 2.6 GB without labels too."""
        labelled = {"train_list": [(n, None) for n, _ in datasets.STL10.train_list[:2]], "test_list": []}
        if part == "test":
            labelled["test_list"] = [(n, None) for n, _ in datasets.STL10.test_list]
            labelled["train_list"] = []
        raw = type("STL10", (datasets.STL10,), labelled)(str(folder), split=part)
        return torch.from_numpy(raw.data), torch.from_numpy(raw.labels).long()
