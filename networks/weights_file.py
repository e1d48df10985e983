"""Files of weights from elsewhere: read without running code, every state dict in them by its place."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adversarial_lightning.errors import UserError

WHOLE = ""  # place of tensors that lie at the top of a file
_DEPTH = 5  # of state dicts in a file


def read(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Read the state dicts of a file, and the names of its other entries, such as `epoch`.

    A state dict holds tensors by name; its key is the dotted path to it (`state_dict_ema`, `models.teacher`), "" for
    tensors at the top of the file. Only tensors are read, and nothing in the file can run. Raises FileNotFoundError,
    and UserError for files that are damaged, hold other objects, or no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}: give a .safetensors, .pt or .pth file")
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start[:1] == b"<":
        raise UserError(f"{path} is a web page, not weights: the download asked for a confirmation; get it again")
    try:
        if path.suffix == ".safetensors":
            return {WHOLE: load_file(path)}, []
        content = torch.load(path, map_location="cpu", weights_only=True)  # explicit: wins over the environment
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        unsafe = "Unsupported" in str(error) or "GLOBAL" in str(error)
        reason = (
            "it holds objects besides tensors, whose loading can run code" if unsafe else "it is damaged or no weights"
        )
        raise UserError(f"{path} was not loaded: {reason} ({' '.join(str(error).split())[:160]})") from error
    sets = _state_dicts(content, WHOLE, _DEPTH)
    if not sets:
        raise UserError(
            f"{path} holds no state dict: tensors by name, at its top or inside an entry such as state_dict"
        )
    return sets, [str(name) for name, value in content.items() if not _state_dicts({str(name): value}, WHOLE, _DEPTH)]


def _state_dicts(content: Any, key: str, depth: int) -> dict[str, dict[str, Tensor]]:
    """State dicts of a mapping by their dotted paths, the outer ones first; keys that are no text lead to none."""
    if not isinstance(content, Mapping) or not depth:
        return {}
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    found = {key: tensors} if tensors else {}
    for name, value in named.items():
        found |= _state_dicts(value, f"{key}.{name}" if key else name, depth - 1)
    return found
