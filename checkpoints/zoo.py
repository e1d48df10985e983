"""Trained weights that travel with the package: safetensors files that say what they are, by name."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adversarial_lightning.errors import UserError

FOLDER = Path(__file__).resolve().parent / "weights"
PREFIX = "zoo:"
_KEY = "adversarial-lightning"  # of a file's metadata
# Of a checkpoint: how the network is built again, and what provenance reads.
_CONTENT = ("catalogue", "hyper_parameters", "epoch", "global_step")


def names() -> list[str]:
    """Names of the networks that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def located(checkpoint: str | None) -> str | None:
    """Path of a checkpoint that may be ``zoo:NAME``; others as they are. UserError for an unknown name."""
    if checkpoint is None or not checkpoint.startswith(PREFIX):
        return checkpoint
    name = checkpoint.removeprefix(PREFIX)
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
        raise UserError(f"there is no network {checkpoint}{hint} (there are {', '.join(names()) or 'none'})")
    return str(FOLDER / f"{name}.safetensors")


def save(path: Path, checkpoint: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write the network of a checkpoint of this project, with what `about` says of it in plain types.

    The settings of the method are kept as text where they are no plain values.
    """
    tensors = {name: t.contiguous() for name, t in checkpoint["state_dict"].items() if name.startswith("network.")}
    content = {name: checkpoint.get(name) for name in _CONTENT}
    known = dict(checkpoint["catalogue"])
    if known.get("data"):  # where the data lay belongs to the machine
        settings = {name: value for name, value in known["data"]["init_args"].items() if name != "root"}
        known["data"] = {**known["data"], "init_args": settings}
    content["catalogue"] = known
    text = json.dumps({**content, "about": dict(about)}, default=str, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {_KEY: text})


def read(path: str | Path) -> dict[str, Any]:
    """Content of a file of `save` as that of a checkpoint, with "about". UserError for any other file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be loaded: it is truncated or no safetensors file ({error})") from error
    if _KEY not in metadata:
        raise UserError(
            f"{path} does not say which network its tensors belong to: evaluate it with --weights {path} --network FILE"
        )
    return {**json.loads(metadata[_KEY]), "state_dict": tensors}
