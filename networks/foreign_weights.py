"""Weights from elsewhere: read without running code, and matched to a network's names, tensor by tensor."""

import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.normalize import Normalize

# Under these names a training script's checkpoint keeps the state dict.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "ema_state_dict")
# Synonyms in the names of tensors: names are compared after replacing the first by the second.
SYNONYMS = {"downsample": "shortcut", "linear": "fc", "mu": "mean", "sigma": "std"}
SECOND_HEADS = {"AuxLogits", "aux1", "aux2"}


@dataclass(frozen=True)
class Report:
    """Report of which tensor of a file went where.

    `mapped`: name in the network -> name in the file. `kept`: tensors of the network that a file need not hold
    (counters of BN, a normalisation that the configuration states). `ignored`: name in the file -> reason why it is
    left out. `missing` and `unexpected` have no partner; `misshapen` have one of another shape. `sha256` is that of the
    file, if it was computed.
    """

    file: str
    sha256: str = ""
    mapped: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True if every tensor of the network and of the file has its partner, or a reason to have none."""
        return bool(self.mapped) and not (self.missing or self.unexpected or self.misshapen)

    def lines(self) -> list[str]:
        """Lines of the report for its readers."""
        renamed = sum(ours != theirs for ours, theirs in self.mapped.items())
        lines = [f"{self.file} (sha256 {self.sha256}): {len(self.mapped)} tensors mapped, {renamed} of them renamed"]
        own = [name for name in self.kept if not name.endswith("num_batches_tracked")]
        lines += [f"kept from the configuration: {', '.join(own)}"] if own else []
        reasons = Counter(self.ignored.values())
        lines += [f"left out: {count} tensors, {why}" for why, count in reasons.items()]
        return lines + self.problems()

    def problems(self) -> list[str]:
        """Reasons why the file does not fit the network."""
        groups = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        return [
            f"{word} ({len(names)}): {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for word, names in groups.items()
            if names
        ]


def load_weights(network: nn.Module, path: str | Path) -> Report:
    """Load the tensors of a file (.safetensors; .pt, .pth, .ckpt and the like) into `network`, all or none.

    Names may have prefixes on either side (`module.`, `model.`, a Sequential's `1.`), and differ by `SYNONYMS`. The
    TRADES repository's unused `sub_block1` is left out. A file with mean and std of a normalisation needs a network
    with that layer. Only tensors are read, and nothing in the file can run. Raises FileNotFoundError, and ValueError
    with the report if a tensor has no partner.
    """
    tensors = read(path)
    report = match(network.state_dict(), tensors, normalisers(network), Path(path).name)
    if not report.complete:
        raise UserError(
            f"{path} does not fit {type(network).__name__}: {'; '.join(report.problems())}. "
            "Describe the network in the YAML file as it was trained (depth, width, num_classes, mean and std)."
        )
    own = network.state_dict()
    with torch.no_grad():
        for ours, theirs in report.mapped.items():
            own[ours].copy_(tensors[theirs].reshape(own[ours].shape))
    return report


def read(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name. Raises FileNotFoundError, ValueError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}: give a .safetensors, .pt or .pth file")
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start[:1] == b"<":
        raise UserError(f"{path} is a web page, not weights: the download asked for a confirmation; get it again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)  # explicit: wins over the environment
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        unsafe = "Unsupported" in str(error) or "GLOBAL" in str(error)
        reason = (
            "it holds objects besides tensors, whose loading can run code" if unsafe else "it is damaged or no weights"
        )
        raise UserError(f"{path} was not loaded: {reason} ({' '.join(str(error).split())[:160]})") from error
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        inner = [content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)]
        if not inner:
            tensors = {str(name): t for name, t in content.items() if isinstance(t, Tensor)}
            if tensors:
                return tensors
            break
        content = inner[0]
    raise UserError(f"{path} holds no state dict: names and tensors, alone or under {', '.join(CONTAINERS)}")


def normalisers(network: nn.Module) -> set[str]:
    """Names of the buffers of a network's `Normalize` layers."""
    layers = [name for name, module in network.named_modules() if isinstance(module, Normalize)]
    return {f"{name}.{value}" if name else value for name in layers for value in ("mean", "std")}


def match(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], normalisers: set[str], file: str) -> Report:
    """Match the names of a network with those of a file, without loading anything."""
    pairs = _pairs([name for name in ours if name not in normalisers], list(theirs))
    report = Report(file)
    for name in normalisers:  # under any name in the file: `mu`, `0.mean`, `normalize.std`
        same = [n for n in theirs if _canonical(n)[-1] == name.rpartition(".")[2] and n not in pairs.values()]
        same = [n for n in same if theirs[n].numel() == ours[name].numel()]
        if len(same) == 1:
            pairs[name] = same[0]
    taken = set(pairs.values())
    for name, tensor in ours.items():
        if name not in pairs:
            counter = name.endswith("num_batches_tracked")
            (report.kept if counter or name in normalisers else report.missing).append(name)
        elif tensor.shape == theirs[pairs[name]].shape or (
            name in normalisers and tensor.numel() == theirs[pairs[name]].numel()
        ):
            report.mapped[name] = pairs[name]
        else:
            shapes = f"{tuple(theirs[pairs[name]].shape)}, the network {tuple(tensor.shape)}"
            report.misshapen.append(f"{name}: the file has {shapes}")
    for name in theirs:
        if name not in taken:
            if "sub_block1" in name.split("."):
                report.ignored[name] = "the unused copy of the first group in the TRADES class"
            elif name.endswith("num_batches_tracked"):
                report.ignored[name] = "counters of BN"
            elif SECOND_HEADS & set(name.split(".")):
                report.ignored[name] = "the heads of Inception and GoogLeNet that only their training needs"
            else:
                report.unexpected.append(name)
    return report


def _pairs(ours: list[str], theirs: list[str]) -> dict[str, str]:
    """Largest matching by equal names, after removing one prefix on each side."""
    canonical = {name: _canonical(name) for name in (*ours, *theirs)}
    best: dict[str, str] = {}
    for mine in _prefixes([canonical[n] for n in ours]):
        for other in _prefixes([canonical[n] for n in theirs]):
            by_rest = {canonical[n][len(other) :]: n for n in theirs if canonical[n][: len(other)] == other}
            rests = {n: canonical[n][len(mine) :] for n in ours if canonical[n][: len(mine)] == mine}
            pairs = {n: by_rest[rest] for n, rest in rests.items() if rest in by_rest}
            if len(pairs) > len(best):
                best = pairs
    return best


def _canonical(name: str) -> tuple[str, ...]:
    return tuple(SYNONYMS.get(part, part) for part in name.split("."))


def _prefixes(names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Prefixes of at least half of the names, shortest first."""
    starts = Counter(name[:length] for name in names for length in range(len(name)))
    return sorted((start for start, count in starts.items() if 2 * count >= len(names)), key=len)
