"""Provenance of a model: network, method, training attacks, epoch, and how its checkpoint was chosen.

All of it is read from the checkpoint's own content, which holds plain values only; what the file does not say is None.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adversarial_lightning.checkpoints.load import load_checkpoint
from adversarial_lightning.checkpoints.spec import Spec, describe, plain
from adversarial_lightning.errors import UserError

_NOT_THE_METHOD = ("network", "optimizer", "schedule")  # hyper-parameters that are shown elsewhere, or not at all


def provenance(network: nn.Module, checkpoint: str | Path | None) -> dict[str, Any]:
    """Entry "model" of results.json.

    `network` (a spec, or its class alone), `parameters` (their number); from the `checkpoint`, None without one:
    `method` (a spec without network, optimizer and schedule), `training_attacks` (list of `attack`, `norm`, `eps`),
    `epoch` (counted from 0, as Lightning does), `steps` (of all optimizers), `choice` (see `choice`).
    """
    found: dict[str, Any] = {"network": _spec(network), "parameters": sum(p.numel() for p in network.parameters())}
    if checkpoint is None:
        return found | dict.fromkeys(("method", "training_attacks", "epoch", "steps", "choice"))
    content = load_checkpoint(checkpoint)
    given = content.get("hyper_parameters")
    settings = {name: _plain(value) for name, value in given.items()} if isinstance(given, Mapping) else {}
    settings = {name: value for name, value in settings.items() if name not in _NOT_THE_METHOD}
    recorded = content.get("catalogue")
    path = settings.get("_class_path") or (recorded.get("method") if isinstance(recorded, Mapping) else None)
    settings = {name: value for name, value in settings.items() if not name.startswith("_")}
    return {
        **found,
        "method": {"class_path": str(path), "init_args": settings} if path else None,
        "training_attacks": list(_attacks(settings)),
        "epoch": _count(content.get("epoch")),
        "steps": _count(content.get("global_step")),
        "choice": choice(content.get("callbacks"), Path(checkpoint).name),
    }


def choice(callbacks: Any, name: str) -> dict[str, Any] | None:
    """How the checkpoint file called `name` was chosen, from the states of ModelCheckpoint that it holds.

    `kind`: "best" or "last" where the file still bears the name that such a callback gave it, else None; `monitor` and
    `mode` (min or max) of the callback that chooses, `value` when last measured, `best_value` so far, `split` that the
    monitor's name begins with. None where no ModelCheckpoint is recorded.
    """
    states = {str(key): state for key, state in callbacks.items()} if isinstance(callbacks, Mapping) else {}
    states = {key: s for key, s in states.items() if isinstance(s, Mapping) and "best_model_path" in s}
    if not states:
        return None
    named = {
        key: {Path(str(s.get(path) or "")).name for path in ("best_model_path", "last_model_path")}
        for key, s in states.items()
    }
    key = next((key for key, s in states.items() if s.get("monitor")), None)
    chooser: Mapping[str, Any] = states[key] if key is not None else {}
    monitor = str(chooser["monitor"]) if chooser else None
    value, best = _number(chooser.get("current_score")), _number(chooser.get("best_model_score"))
    others = [k for k in states if k != key]
    kind = None
    if chooser and value is not None and value == best and name == Path(str(chooser["best_model_path"])).name:
        kind = "best"
    elif any(name in named[k] for k in others) or (chooser and name == Path(str(chooser.get("last_model_path"))).name):
        kind = "last"
    mode = re.search(r"'mode': '(min|max)'", key or "")
    split = re.match(r"(train|val|test)(?=[/_])", monitor or "")
    return {
        **{"kind": kind, "monitor": monitor, "mode": mode[1] if mode and monitor else None},
        **{"value": value, "best_value": best, "split": split[1] if split else None},
    }


def _attacks(settings: Any) -> Iterator[dict[str, Any]]:
    """Attacks that a method trains with: objects that have both a norm and a radius, also inside combinations."""
    if isinstance(settings, Mapping):
        given = settings.get("init_args")
        if isinstance(given, Mapping) and {"norm", "eps"} <= set(given):
            name = str(settings.get("class_path")).rpartition(".")[2]
            yield {"attack": name, "norm": given["norm"], "eps": given["eps"]}
        for value in settings.values():
            yield from _attacks(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _attacks(value)


def _spec(network: nn.Module) -> Spec:
    try:
        return describe(network)
    except UserError:
        return {"class_path": type(network).__name__, "init_args": {}}


def _plain(value: Any) -> Any:
    """Plain value; the class of what is none, which no file of ours holds."""
    try:
        return plain(value)
    except UserError:
        return type(value).__name__


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _number(value: Any) -> float | None:
    found = float(value) if isinstance(value, Tensor | int | float) else math.nan
    return round(found, 6) if math.isfinite(found) else None
