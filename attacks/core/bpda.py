"""BPDA for any module, and look-up of the parts of a defended model by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from adversarial_lightning.attacks.core.half_precision import SeenInFloat32
from adversarial_lightning.errors import UserError


def find_attribute(model: nn.Module, name: str) -> Any:
    """Attribute `name`, such as ``purifier`` or ``detector``, of the outermost module inside `model` that has it.

    Raises UserError if no module has it, as an attack made for a defense must not run silently without it, and for
    images in half precision: the attack computes in float32 with parts that do not.
    """
    if isinstance(model, SeenInFloat32):
        raise UserError(
            f"this attack computes with the {name} itself, so not in {str(model.dtype)[6:]}: "
            "give it model.float() and images in float32"
        )
    for module in model.modules():
        if getattr(module, name, None) is not None:
            return getattr(module, name)
    raise UserError(
        f"this attack needs a model with the attribute {name!r}, which {type(model).__name__} does not have: "
        f"put the defense that provides it in front of the classifier, or use PGD"
    )


def purifiers(model: nn.Module) -> list[nn.Module]:
    """All attributes ``purifier`` of modules inside `model`, the outermost first."""
    found = (getattr(m, "purifier", None) for m in model.modules())
    return [purifier for purifier in found if isinstance(purifier, nn.Module)]


@contextmanager
def straight_through(module: Any, surrogate: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
    """Context with BPDA (Athalye et al. 2018a): `module` runs unchanged forwards, `surrogate` gives its gradient.

    Without a surrogate the gradient is that of the identity. Nothing inside `module` is differentiated, so an unrolled
    chain keeps no activations. A purifier with ``differentiable = False`` already has BPDA around it
    (`defenses.Purified`), through a surrogate of its own; that surrogate is replaced.
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
