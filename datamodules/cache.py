"""Cache of decoded images as a memory-mapped file: no start-up time, and one copy in memory for all processes."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from pytorch_lightning.utilities import rank_zero_info
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adversarial_lightning.errors import UserError

Pixels = tuple[Tensor, Tensor]


def places(beside: Path) -> list[Path]:
    """Folders for files derived from `beside`, best first: next to it, and the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adversarial-lightning"
    return [beside.absolute().parent, user]


def facts(paths: list[Path]) -> str:
    """Key that changes whenever one of the files does: hash of names below their common folder, sizes and times."""
    digest, common = hashlib.sha256(), os.path.commonpath(paths)
    for path in paths:
        stat = path.stat()
        digest.update(f"{str(path)[len(common) :]}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def cached(beside: Path, name: str, key: str, decode: Callable[[], Pixels]) -> Pixels:
    """Result of `decode()`, uint8 pixels (N, C, H, W) and int64 labels (N,), from a file that the first call writes.

    The file `.NAME.KEY.safetensors` lies in the folder of `beside` or, if that is read-only, in the user's cache
    folder; `key` must change with the source. It is written in one step, and of several processes one decodes. Raises
    ValueError, naming both folders, if neither can be written, and whatever `decode` raises.
    """
    file = f".{name}.{key}.safetensors"
    refused: list[str] = []
    for folder in places(beside):
        if (folder / file).is_file():
            try:
                return _mapped(folder / file)
            except SafetensorError:  # cut short by a copy or a full disk: made anew
                pass
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # os.access() does not always know a read-only place
                pass
        except OSError as error:
            refused.append(f"{folder} ({error.strerror or error})")
            continue
        with FileLock(folder / f"{file}.lock"):
            if not _whole(folder / file):
                rank_zero_info(f"decoding {name} once, into {folder / file}")
                pixels, labels = decode()
                _write(folder / file, {"pixels": pixels.contiguous(), "labels": labels.contiguous()})
        return _mapped(folder / file)
    raise UserError(
        f"the decoded images of {name} can be written neither to {' nor to '.join(refused)}: make one of these places "
        "writable, or set the environment variable XDG_CACHE_HOME to a folder that is."
    )


def _mapped(path: Path) -> Pixels:
    with safe_open(path, framework="pt") as file:  # maps the file; pages come as they are read
        return file.get_tensor("pixels"), file.get_tensor("labels")


def _whole(path: Path) -> bool:
    try:
        return path.is_file() and _mapped(path) is not None
    except SafetensorError:
        return False


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    size, free = sum(t.nbytes for t in tensors.values()), shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(f"{path} needs {size / 2**20:.0f} MB, and {path.parent} has {free / 2**20:.0f} MB left.")
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, half)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def stacked(count: int, fetch: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """Fetch images 0 .. count - 1, a few at a time, into one uint8 tensor (count, *shape)."""
    pixels = torch.empty(count, *shape, dtype=torch.uint8)
    for start in range(0, count, 256):
        numbers = torch.arange(start, min(start + 256, count))
        pixels[start : start + len(numbers)] = fetch(numbers)
    return pixels
