"""Base of data sets that are published as one archive of small images: downloaded, unpacked and decoded once."""

import pickle
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pooch

from adversarial_lightning.datamodules.archive import SUFFIXES, unpacked
from adversarial_lightning.datamodules.base import ImageData
from adversarial_lightning.datamodules.cache import Pixels, cached, facts
from adversarial_lightning.datamodules.download import fetch
from adversarial_lightning.datamodules.synthetic_copies import synthetic_copy
from adversarial_lightning.errors import UserError

Part = Literal["train", "test"]


@dataclass(eq=False, repr=False)
class ArchiveDataset(ImageData):
    """Abstract: a data set that its makers publish as one archive, which unpacks to the folder `inside`.

    A leaf names the `archive` with its `md5` and `urls`, lists the `files` of each part and decodes them in `read`; its
    `source` uses `decoded`. With `augment` training images are moved by up to `margin` pixels and mirrored.

    root: folder that holds (or shall hold) the archive or `inside`, or the archive itself. download: download the
    archive if it is missing. synthetic: use a synthetic copy (`synthetic_copies.py`), and read nothing at root.
    Raises FileNotFoundError that names the missing file and its place, ValueError for files that are damaged.
    """

    archive: ClassVar[str]
    inside: ClassVar[str]
    md5: ClassVar[str]
    urls: ClassVar[tuple[str, ...]]
    margin: ClassVar[int]

    root: str = "data"
    download: bool = False
    augment: bool = True
    synthetic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.padding = self.margin if self.augment else 0

    @staticmethod
    @abstractmethod
    def write_synthetic(folder: Path) -> None:
        """Write a synthetic copy of the data set to `folder`."""

    @abstractmethod
    def files(self, folder: Path, part: Part) -> dict[Path, str | None]:
        """Files of a part below `folder`, which holds `inside`, each with its md5 if that is published."""

    @abstractmethod
    def read(self, folder: Path, part: Part) -> Pixels:
        """Decode the files of a part: pixels (N, C, H, W), uint8, and labels (N,)."""

    def prepare_data(self) -> None:
        """Download and decode on one process only; Lightning calls this before all others read."""
        for part in ("train", "test"):
            self.decoded(part)

    def decoded(self, part: Part) -> Pixels:
        """Pixels and labels of a part, memory-mapped from a file that the first call writes."""
        folder, name = self._folder(), type(self).__name__
        try:
            files = self.files(folder, part)
        except FileNotFoundError as error:
            raise self._missing(folder, [Path(error.filename)]) from error
        if missing := [path for path in files if not path.is_file()]:
            raise self._missing(folder, missing)

        def decode() -> Pixels:
            for path, published in files.items():
                if published and not self.synthetic and (md5 := pooch.file_hash(str(path), alg="md5")) != published:
                    raise UserError(
                        f"{path} is damaged, or not the published file of {name} (md5 {md5}, not {published}): remove "
                        "it and get it again (--data.init_args.download=true)."
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
        """Folder that holds `inside`."""
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
