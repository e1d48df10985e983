"""Identity of a campaign: a hash over everything that may change a number."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from adversarial_lightning.attacks import Attack
from adversarial_lightning.checkpoints.files import digest_file, write_whole, writing
from adversarial_lightning.checkpoints.spec import Spec, describe
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.source_code import changed
from adversarial_lightning.evaluation.outcomes import outcome

# Settings of a data module that do not choose test images, or only say where they lie: the fingerprint knows them.
_LOADING = ("batch_size", "eval_batch_size", "workers", "pin_memory", "root", "download", "cache")
_TRAINING = ("val_size", "split_seed", "train_limit", "augment")
_SCHEMA = 4  # of campaign.json and of the parts in it
# What may change an outcome, with outcome.py.
_ROOMS = ("attacks", "checkpoints", "datamodules", "defenses", "detectors", "networks")


def suite_part(suite: Mapping[str, Attack]) -> Spec:
    """Attacks by name, with all their settings, defaults included; files that they name by their bytes."""
    part: Spec = with_files({name: describe(attack) for name, attack in suite.items()})
    return part


def data_part(spec: Spec, images: Any, positions: Iterable[int]) -> Spec:
    """Spec of the data with two digests: of `images` as a set, and of the pixels at the chosen positions."""
    init_args = {name: value for name, value in spec["init_args"].items() if name not in _LOADING + _TRAINING}
    return {"class_path": spec["class_path"], "init_args": init_args, **images_part(images, positions)}


def images_part(images: Any, positions: Iterable[int]) -> dict[str, str]:
    """Digests of a set of images: `fingerprint` of the numbers and labels of all, `pixels` of those at `positions`.

    All pixels count, as they are stored (see `source_bytes`): 0.03 s for MNIST's 10,000 test images, 0.1 s for
    CIFAR-10's. Where every image is a file, the files are read: 10 s for ImageNet's 50,000, if the disk keeps up.
    """
    whole, pixels = hashlib.sha256(), hashlib.sha256()
    for tensor in (images.indices, images.labels):
        whole.update(torch.as_tensor(tensor, dtype=torch.int64).numpy().tobytes())
    for stored in images.source_bytes(torch.tensor(list(positions), dtype=torch.int64)):
        pixels.update(stored)
    return {"fingerprint": whole.hexdigest(), "pixels": pixels.hexdigest()}


def with_files(spec: Any) -> Any:
    """`spec` with every string that names a file replaced by ``{"file": name, "sha256": ...}``."""
    if isinstance(spec, Mapping):
        return {name: with_files(value) for name, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [with_files(value) for value in spec]
    if isinstance(spec, str) and spec and Path(spec).is_file():
        return {"file": Path(spec).name, "sha256": digest_file(spec)}
    return spec


def identify(parts: Mapping[str, Any]) -> str:
    """Identity of the campaign with these parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def code() -> str:
    """Digest of the text of this program that makes outcomes; results say where it was not the same for all of them."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        folder = Path(str(import_module(f"adversarial_lightning.{room}").__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(Path(outcome.__file__).read_bytes())
    return digest.hexdigest()


def claim_folder(folder: Path, parts: Mapping[str, Any]) -> str:
    """Claim `folder` for the campaign with these `parts`, or recognise it; return the campaign's identity.

    The parts (checkpoint, suite, data, samples, defenses, seed ...) are written to ``campaign.json``. Raises
    ValueError, naming the parts, where the folder belongs to another campaign, and OSError where it cannot be written.
    """
    identity = identify(parts)
    parts = json.loads(json.dumps(parts))  # as it will be read back
    path = folder / "campaign.json"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "campaign.lock", timeout=60):
            if path.exists():
                _compare(path, parts)
            else:
                text = json.dumps({"schema": _SCHEMA, "identity": identity, "parts": parts}, indent=2)
                write_whole(path, text + "\n")
    return identity


def _compare(path: Path, parts: Mapping[str, Any]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        schema, before = found["schema"], found["parts"]
        different = (
            [] if schema != _SCHEMA else [name for name in {**before, **parts} if before.get(name) != parts.get(name)]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): choose another --output") from error
    if schema != _SCHEMA:
        raise UserError(
            f"{path.parent} holds an evaluation by another version of this program (schema {schema}, ours "
            f"is {_SCHEMA}), which chose other samples and named its outcomes otherwise: finish it with the version "
            "that began it, or choose another --output"
        )
    if different:
        raise UserError(
            f"{path.parent} holds another evaluation, {_reasons(before, parts, different)}: its outcomes would be "
            "mixed with these. Choose another --output, or repeat the first command to resume that evaluation"
        )


def _reasons(before: Mapping[str, Any], now: Mapping[str, Any], different: list[str]) -> str:
    names = [name.replace("_", " ") for name in different if name != "code"]
    if "data" in different and {**before["data"], "pixels": now["data"]["pixels"]} == now["data"]:
        chosen_otherwise = {"limit", "samples"} & set(different)  # then other pixels say nothing of the data
        names[names.index("data")] = "" if chosen_otherwise else "data (the images have changed)"
    with_other = [f"with other {' and '.join(filter(None, names))}"] if names else []
    return "; ".join([*with_other, *changed(before.get("code", {}), now.get("code", {}))])
