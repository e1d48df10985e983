"""Copies of a model that were never asked anything: its answers without a memory."""

import sys
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise

_OTHERS = "torch", "adversarial_lightning", "builtins", "pytorch_lightning", "lightning", "typing", "abc"
_PLAIN = int, float, str, bytes, bool, tuple, type(None)
_HELD = dict, list, set, deque, bytearray, Tensor, np.ndarray

Namespace = Any  # a class or a module
Names = frozenset[str] | None  # None: all


class Untouched:
    """A model as it was before it was asked anything, with the variables of its own classes and modules.

    Make it before the first forward. Raises what `copy.deepcopy` raises where the model cannot be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = _copied(model, shared=[])
        self.before = [(space, names, _deep(held(space, names))) for space, names in namespaces(model).items()]

    def again(self) -> nn.Module:
        """A new copy, which shares only the parameters; in the state of the untouched model."""
        return _copied(self.model, shared=list(self.model.parameters()))

    @contextmanager
    def variables_as_before(self) -> Iterator[None]:
        """Context in which variables of classes and modules have their first values; what is written there is lost."""
        now = [{n: (v, _shallow(v)) for n, v in held(space, names).items()} for space, names, _ in self.before]
        try:
            for space, names, (first, untouchable) in self.before:
                _keep_only(space, names, first.keys() | untouchable)
                for name, value in deepcopy(first).items():
                    _put(space, name, value)
            yield
        finally:
            for (space, names, _), values in zip(self.before, now, strict=True):
                _keep_only(space, names, values.keys())
                for name, (value, content) in values.items():
                    _put(space, name, content, value)


def untouched_copy(model: nn.Module) -> Untouched | None:
    """`Untouched` of a model; None where it cannot be copied, or memory does not suffice."""
    try:
        return Untouched(model)
    except Exception:
        return None


class Forgetful(nn.Module):
    """The model without a memory: every forward, or score of its detector, asks a new copy of the untouched one."""

    def __init__(self, untouched: Untouched) -> None:
        super().__init__()
        self.model, self.untouched = untouched.model, untouched
        if hasattr(self.model, "detector"):
            self.detector = ForgetfulDetector(untouched)

    def forward(self, x: Tensor) -> Tensor:
        with self.untouched.variables_as_before():
            logits: Tensor = self.untouched.again()(x)
        return logits


class ForgetfulDetector(nn.Module):
    """The detector of `Forgetful`."""

    def __init__(self, untouched: Untouched) -> None:
        super().__init__()
        self.untouched, self.inside = untouched, untouched.model.detector

    @property
    def theta(self) -> float | None:
        return self.untouched.model.detector.theta  # type: ignore[union-attr,return-value]

    def score(self, x: Tensor) -> Tensor:
        with self.untouched.variables_as_before():
            scores: Tensor = self.untouched.again().detector.score(x)  # type: ignore[union-attr,operator]
        return scores


def _copied(model: nn.Module, shared: Sequence[Any]) -> nn.Module:
    """Deep copy of `model`, without the `shared` tensors, streams of noise, and tensors that belong to a graph."""
    values = [value for m in model.modules() for value in vars(m).values()]
    apart = [v for v in values if isinstance(v, Noise) or (isinstance(v, Tensor) and not v.is_leaf)]
    return deepcopy(model, {id(value): value for value in [*shared, *apart]})


def namespaces(model: nn.Module) -> dict[Namespace, Names]:
    """Where a model may keep what its copies share: the variables of its own classes, and those of modules.

    Its own are the classes of its parts that are neither torch's nor this project's. Of the modules in which they are
    written those variables count that their methods name, or functions of the module that these call.
    """
    classes = dict.fromkeys(c for m in model.modules() for c in type(m).__mro__)
    found: dict[Namespace, Names] = dict.fromkeys(c for c in classes if c.__module__.partition(".")[0] not in _OTHERS)
    functions = [f for c in found for f in vars(c).values() if isinstance(f, FunctionType)]
    functions += [f for m in model.modules() for f in vars(m).values() if isinstance(f, FunctionType)]
    named: dict[str, set[str]] = {}
    seen: set[FunctionType] = set()
    while functions:
        function = functions.pop()
        if function not in seen and function.__module__.partition(".")[0] not in _OTHERS:
            seen.add(function)
            names = _names(function.__code__)
            named.setdefault(function.__module__, set()).update(names)
            called = [function.__globals__.get(name) for name in names]
            functions += [f for f in called if isinstance(f, FunctionType)]
    return found | {sys.modules[module]: frozenset(names) for module, names in named.items() if module in sys.modules}


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def held(space: Namespace, names: Names) -> dict[str, Any]:
    """Variables of a class or module that may hold a memory: numbers, texts, containers, tensors."""
    own = {n: v for n, v in vars(space).items() if names is None or n in names}
    return {n: v for n, v in own.items() if isinstance(v, _PLAIN + _HELD) and not n.startswith("__")}


def _deep(values: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Deep copies of variables, and the names of those that cannot be copied."""
    found, untouchable = {}, set()
    for name, value in values.items():
        try:
            found[name] = deepcopy(value)
        except Exception:  # it is left as it is
            untouchable.add(name)
    return found, untouchable


def _keep_only(space: Namespace, names: Names, kept: Collection[str]) -> None:
    for name in held(space, names).keys() - set(kept):
        delattr(space, name)


def _shallow(value: Any) -> Any:
    """A copy of a container, whose content is not copied; of a tensor its values."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy(value)


def _put(space: Namespace, name: str, content: Any, into: Any = None) -> None:
    """Give a variable its `content`, in the object that it is if it can be: others may hold that too."""
    into = vars(space).get(name) if into is None else into
    alike = type(into) is type(content) and getattr(into, "shape", None) == getattr(content, "shape", None)
    if alike and isinstance(into, dict | set):
        into.clear()
        into.update(content)
    elif alike and isinstance(into, list | bytearray):
        into[:] = content
    elif alike and isinstance(into, deque):
        into.clear()
        into.extend(content)
    elif alike and isinstance(into, Tensor | np.ndarray):
        (into.detach() if isinstance(into, Tensor) else into)[...] = content
    else:
        into = content
    if vars(space).get(name) is not into:
        setattr(space, name, into)
