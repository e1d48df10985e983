"""BPDA on demand, and the parts of a defended model found by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from adversarial_lightning.errors import UserError


def find_attribute(model: nn.Module, name: str) -> Any:
    """The attribute `name` of the outermost module inside `model` that has one, such as ``purifier`` or ``detector``.

    Raises ValueError where nothing has it: an attack made for a defense must not run quietly without it.
    """
    for module in model.modules():
        if getattr(module, name, None) is not None:
            return getattr(module, name)
    raise UserError(
        f"this attack needs a model with the attribute {name!r}, which {type(model).__name__} does not have: "
        f"put the defense that provides it in front of the classifier, or use PGD"
    )


def purifiers(model: nn.Module) -> list[nn.Module]:
    """Every ``purifier`` inside `model`, the outermost first."""
    found = (getattr(m, "purifier", None) for m in model.modules())
    return [purifier for purifier in found if isinstance(purifier, nn.Module)]


@contextmanager
def straight_through(module: Any, surrogate: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
    """BPDA on demand (Athalye et al. 2018): in this context `module` is `surrogate` backwards, and itself forwards.

    Without a surrogate it is the identity backwards. Nothing inside `module` is differentiated, so an unrolled chain
    keeps no activations. A purifier that says that it is not differentiable has BPDA around it already
    (`defenses.Purified`), through a surrogate of its own: that one is replaced.
    """
    backwards = (lambda x: x) if surrogate is None else surrogate
    if not getattr(module, "differentiable", True):
        before = vars(module).get("surrogate")
        module.surrogate = backwards
        try:
            yield
        finally:
            if before is None:
                del module.surrogate
            else:
                module.surrogate = before
        return
    inputs: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs.append(args[0])
        return (args[0].detach(), *args[1:])

    def leave(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        s = backwards(inputs.pop())
        return output.detach() + (s - s.detach())

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
