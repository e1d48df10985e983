"""Digests of files and weights, and files that are written whole."""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn


def digest_file(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_weights(network: nn.Module) -> str:
    """sha256 of a network's parameters and buffers: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Context that explains the operating system's refusals to write into `folder`. Raises OSError."""
    try:
        yield
    except OSError as error:
        if isinstance(error.__cause__, OSError):
            raise  # explained already
        raise OSError(
            f"nothing can be written into {folder} ({error}): free the space, mend the permissions, or choose another "
            "--output; what is recorded is safe, the same command goes on"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step, so that no process sees half of it. Raises OSError and then keeps the old file."""
    half = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # several processes may write the same report
    with writing(path.parent):
        try:
            half.write_text(text, encoding="utf-8")
            half.replace(path)
        finally:
            half.unlink(missing_ok=True)
