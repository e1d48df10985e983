"""Loading of networks from checkpoints: tensors and plain values only, classes of the catalogue only."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adversarial_lightning import networks
from adversarial_lightning.checkpoints import zoo
from adversarial_lightning.checkpoints.files import digest_file, digest_weights
from adversarial_lightning.checkpoints.spec import Spec, brief, build, catalogue
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.networks.foreign_weights import Report, load_weights

EITHER = "give either --checkpoint, of a training run here, or --weights, from elsewhere"


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load the content of a checkpoint, or of ``zoo:NAME``: tensors and plain values only.

    Raises FileNotFoundError if there is no such file, ValueError if it is damaged or holds anything else, such as code.
    """
    path = Path(str(zoo.located(str(path))))
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: give --checkpoint the .ckpt file of a training run")
    if path.suffix == ".safetensors":
        return zoo.read(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # explicit: wins over environment and default
    except Exception as error:  # torch raises half a dozen kinds; all mean that this file cannot be used
        code = isinstance(error, pickle.UnpicklingError) and ("Unsupported" in str(error) or "GLOBAL" in str(error))
        reason = (
            "it holds objects besides tensors and plain values; loading those can run code, so nothing was loaded"
            if code
            else "it is truncated, damaged or no checkpoint at all; copy or train it again"
        )
        raise UserError(f"{path} cannot be loaded: {reason} ({brief(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(
            f"{path} is no Lightning checkpoint: it has no state_dict. Weights from elsewhere are evaluated with "
            "--weights FILE --network FILE"
        )
    return content


def load_network(path: str | Path, network: nn.Module | None = None) -> tuple[nn.Module, Spec | None]:
    """Load the network of a checkpoint, in eval mode, with the spec of its training data (None if not recorded).

    A given `network`, made from a reviewed configuration, receives the tensors of the file, and nothing else is read.
    Raises FileNotFoundError or ValueError, naming the file, for checkpoints that are missing, damaged, unsafe, or that
    name anything outside the catalogue of networks.
    """
    content = load_checkpoint(path)
    prefix = "network."
    tensors = {name[len(prefix) :]: t for name, t in content["state_dict"].items() if str(name).startswith(prefix)}
    if "catalogue" not in content and (network is None or not tensors):
        raise UserError(
            f"{path} is a checkpoint of another project, which does not say how to build its network: describe that in "
            f"a YAML file and take the weights alone, --weights {path} --network FILE"
        )
    recorded = content.get("catalogue") if isinstance(content.get("catalogue"), dict) else {}
    assert isinstance(recorded, dict)
    if network is None:
        try:
            network = build(
                _without_weights(recorded.get("network")), [c for c in catalogue(networks) if issubclass(c, nn.Module)]
            )
        except ValueError as error:
            raise UserError(
                f"{path} does not say how to build its network from the catalogue: {error}. If you trust the file, "
                "describe the network in a YAML file of your own and pass it as --network; only tensors are then taken"
            ) from error
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"the weights in {path} do not fit {type(network).__name__}: {detail[:400]}") from error
    data = recorded.get("data")
    return network.eval(), data if isinstance(data, dict) else None


def _without_weights(spec: Any) -> Any:
    """Copy of `spec` without the weights of pretrained networks: the checkpoint holds all tensors itself."""
    if not isinstance(spec, dict):
        return spec
    return {name: None if name == "weights" else _without_weights(value) for name, value in spec.items()}


def check_fit(network: nn.Module, data: Any) -> None:
    """Raise ValueError unless `network` maps images of `data` (image_shape, num_classes) to one logit a class."""
    name, shape = type(data).__name__, tuple(data.image_shape)
    parameter = next(network.parameters(), torch.zeros(()))
    with frozen_eval(network), torch.no_grad():
        try:
            logits = network(torch.zeros(2, *shape, dtype=parameter.dtype, device=parameter.device))
        except RuntimeError as error:
            raise UserError(
                f"{type(network).__name__} cannot take the images {shape} of {name}: choose a network for that shape "
                f"(--model.init_args.network) or other data ({str(error).splitlines()[0][:150]})"
            ) from error
    if logits.ndim != 2 or logits.shape[1] != data.num_classes:
        raise UserError(
            f"{name} has {data.num_classes} classes, {type(network).__name__} gives {tuple(logits.shape[1:])} logits: "
            f"set model.init_args.network.init_args.num_classes to {data.num_classes}"
        )


def open_network(
    checkpoint: str | None, weights: str | None, network: nn.Module | None, **choice: Any
) -> tuple[nn.Module, Spec | None, Report | None]:
    """Load the network of a `checkpoint` of this project, or foreign `weights` into a given network.

    Returns the network in eval mode, the spec of its data (None if not recorded), and for foreign weights the report of
    which tensor went where. `network`, made from a reviewed configuration, receives the foreign tensors; without any
    file it keeps its own (see `check_own_weights`). `choice` says which tensors of `weights` are meant: key, prefix and
    ignore of `load_weights`. Raises ValueError for both files, for none of the three, for weights without a network, a
    choice without weights, and for tensors without a partner; FileNotFoundError.
    """
    if weights is None and any(choice.values()):
        raise UserError("--weights_key, --weights_prefix and --weights_ignore choose in the file --weights: give it")
    if (checkpoint or weights or network) is None or (checkpoint and weights):
        raise UserError(EITHER)
    if checkpoint is not None:
        return *load_network(checkpoint, network), None
    if network is None:
        raise UserError(f"--weights {weights} says nothing of its network: describe it in a YAML file, --network FILE")
    if weights is None:
        return network.eval(), None, None
    report = replace(load_weights(network, weights, **choice), sha256=digest_file(weights))
    return network.eval(), None, report


def check_own_weights(network: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Raise UserError where `network` is random: where `build()` makes another one from the same configuration."""
    if digest_weights(network) != digest_weights(build()):
        raise UserError(f"{EITHER}: {type(network).__name__} alone is random, another one at every start")
