"""Outputs of a network's layers by name, for detectors, kernel densities and attacks on representations."""

from collections.abc import Sequence

from torch import Tensor, nn

from adversarial_lightning.errors import UserError


def outputs(network: nn.Module, x: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits at `x`, and the outputs of the submodules `names`, from one forward pass.

    Names are those of ``network.named_modules()``: ``features``, ``layer3``, ``block2.layer.0``, or a wrapped model's
    ``model.layer4``. Gradients flow unless autograd is off; of a module that runs several times it is the last output.
    Raises ValueError for a name that the network does not have, or whose module does not run or returns no tensor.
    """
    modules, found = dict(network.named_modules()), {}
    if unknown := [name for name in names if not name or name not in modules]:
        raise UserError(
            f"{type(network).__name__} has no part {', '.join(unknown)}; it has {', '.join(n for n in modules if n)}"
        )

    def keep(name: str) -> "object":
        def hook(_: nn.Module, __: object, output: object) -> None:
            found[name] = output

        return modules[name].register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        logits: Tensor = network(x)
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    if silent := [name for name in names if not isinstance(found.get(name), Tensor)]:
        raise UserError(f"{', '.join(silent)} of {type(network).__name__} gives no tensor in a forward pass")
    return logits, {name: found[name] for name in names}  # type: ignore[misc]


_BENDS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def bends(network: nn.Module, pooling: bool = True) -> list[str]:
    """Names of the activations of `network` and, with `pooling`, of its poolings, in the order of registration."""
    kinds = _BENDS + _POOLS if pooling else _BENDS
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def encoder_of(network: nn.Module) -> str | None:
    """Name of the first submodule of `network` that is called ``encoder``, inside wrappers too; None without one."""
    return next((name for name, _ in network.named_modules() if name.rpartition(".")[2] == "encoder"), None)
