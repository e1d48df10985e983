"""What sets have in common that are published as one archive of small images: found, fetched, decoded once."""

import pickle
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torchvision.datasets.utils import check_integrity

from adversarial_lightning.datamodules.archive import SUFFIXES, unpacked
from adversarial_lightning.datamodules.base import ImageData
from adversarial_lightning.datamodules.cache import Pixels, cached, facts
from adversarial_lightning.datamodules.download import digest, fetch
from adversarial_lightning.datamodules.synthetic_copies import synthetic_copy
from adversarial_lightning.errors import UserError

Part = Literal["train", "test"]


class ArchiveDataset(ImageData):
    """Abstract: a data set that its makers publish as the archive `archive`, which unpacks to the folder `inside`.

    A leaf names these with `md5` and `urls`, states which `files` make up a part, and decodes them in `read`; its
    `source` builds on `decoded`. Training images are moved by up to `margin` pixels and mirrored if `augment`.

    root: folder that holds (or shall hold) the archive or `inside`, or the archive itself. download: fetch the archive
    if it is missing. synthetic: a tiny generated twin instead (`synthetic_copies.py`), nothing is read at root.
    Raises FileNotFoundError that names what is missing and where to put it, ValueError for files that are damaged.
    """

    archive: str
    inside: str
    md5: str
    urls: tuple[str, ...]
    margin: int
    write_synthetic: Callable[[Path], None]

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        augment: bool = True,
        synthetic: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        val_size: int = 1000,
        split_seed: int = 0,
        train_limit: int | None = None,
        test_limit: int | None = None,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, val_size, split_seed, train_limit, test_limit, workers, pin_memory
        )
        self.root = root
        self.download = download
        self.augment = augment
        self.padding = self.margin if augment else 0
        self.synthetic = synthetic

    @abstractmethod
    def files(self, folder: Path, part: Part) -> dict[Path, str | None]:
        """The files of a part, `folder` being what holds `inside`, with the md5 of those where it is published."""

    @abstractmethod
    def read(self, folder: Path, part: Part) -> Pixels:
        """Pixels (N, C, H, W), uint8, and labels (N,) of a part, decoded from its files."""

    def prepare_data(self) -> None:
        """Download and decode on one process only; Lightning calls this before all others read."""
        for part in ("train", "test"):
            self.decoded(part)

    def decoded(self, part: Part) -> Pixels:
        """Pixels and labels of a part, mapped from the file that the first call writes."""
        folder, name = self._folder(), type(self).__name__
        try:
            files = self.files(folder, part)
        except FileNotFoundError as error:
            raise self._missing(folder, [Path(error.filename)]) from error
        if missing := [path for path in files if not path.is_file()]:
            raise self._missing(folder, missing)

        def decode() -> Pixels:
            known = {} if self.synthetic else {path: md5 for path, md5 in files.items() if md5}
            if damaged := [path for path, md5 in known.items() if not check_integrity(str(path), md5)]:
                raise UserError(
                    f"{damaged[0]} is damaged, or not the published file of {name} (md5 {digest(damaged[0])}, not "
                    f"{known[damaged[0]]}): remove it and get it again (--data.init_args.download=true)."
                )
            try:
                return self.read(folder, part)
            except (RuntimeError, KeyError, IndexError, TypeError, EOFError, pickle.UnpicklingError) as error:
                raise UserError(
                    f"the {part} files of {name} in {folder / self.inside} cannot be read ({type(error).__name__}: "
                    f"{error}): remove them and get them again (--data.init_args.download=true)."
                ) from error

        return cached(folder / self.inside, f"{name}-{part}", facts(list(files)), decode)

    def _folder(self) -> Path:
        """The folder that holds `inside`."""
        if self.synthetic:
            return synthetic_copy(self.write_synthetic)
        root = Path(self.root).expanduser()
        if root.is_file() and root.name.endswith(SUFFIXES):
            return unpacked(root)
        if root.name == self.inside and root.is_dir():
            return root.parent
        if (root / self.inside).is_dir():
            return root
        if self.download:
            fetch(self.urls, root / self.archive, self.md5)
        return unpacked(root / self.archive) if (root / self.archive).is_file() else root

    def _missing(self, folder: Path, files: list[Path]) -> FileNotFoundError:
        few = ", ".join(str(path.absolute()) for path in files[:3]) + (" ..." if len(files) > 3 else "")
        return FileNotFoundError(
            f"{type(self).__name__} is missing: there is no {few}. Fetch it with --data.init_args.download=true; or "
            f"get {self.archive} (md5 {self.md5}) from {self.urls[0]} and place it in {Path(self.root).absolute()}, "
            "packed or not; or set --data.init_args.root to the folder that holds it, or to the archive."
        )
