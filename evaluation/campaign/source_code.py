"""Source code of a user's own classes and functions: digests of their modules, and of what those import."""

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import FunctionType
from typing import Any

from jsonargparse import Namespace

from adversarial_lightning.checkpoints.spec import PACKAGE

Digests = dict[str, str]
_INSTALLED = {"site-packages", "dist-packages"}


def code_part(settings: Any) -> dict[str, Digests]:
    """Code behind the classes and functions that `settings` name by their import paths: path -> module -> sha256.

    Counted are the module in which it is written, the module under whose name it is given, and every module that these
    import, directly or not, wherever in the text (modules imported by `importlib` are not seen). Of an installed
    package that a path names, the version counts. This project, the standard library and installed packages that are
    only imported do not. The place of a file does not matter, only the module's name and its text.
    """
    importlib.invalidate_caches()
    found = {path: _digests(modules) for path in _texts(settings) if (modules := _modules_of(path))}
    return {path: digests for path, digests in found.items() if digests}


def changed(before: Mapping[str, Digests], now: Mapping[str, Digests]) -> list[str]:
    """Sentences on the classes whose code is another one, with the modules that changed."""
    return [
        f"the code of {path} has changed since (in {', '.join(modules)})"
        for path in now
        if path in before
        if (modules := [m for m in {**before[path], **now[path]} if before[path].get(m) != now[path].get(m)])
    ]


def named(value: Any) -> Any:
    """Import path of a function or class, as it stands in settings of a Callable type; other values as they are."""
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, FunctionType | type) else value


def _texts(settings: Any) -> Iterator[str]:
    """All strings in settings, and the import paths of all functions."""
    if isinstance(settings := named(settings), str):
        yield settings
    elif isinstance(settings, Namespace | Mapping):
        for value in (vars(settings) if isinstance(settings, Namespace) else settings).values():
            yield from _texts(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _texts(value)


def _modules_of(path: str) -> set[str]:
    """Loaded modules behind an import path, none where it names no class or function."""
    module, _, rest = path.rpartition(".")
    while module and module not in sys.modules:
        module, _, last = module.rpartition(".")
        rest = f"{last}.{rest}"
    found: Any = sys.modules.get(module)
    for name in rest.split(".") if module else ():
        found = getattr(found, name, None)
    return {module, getattr(found, "__module__", None) or module} if callable(found) else set()


def _digests(modules: set[str]) -> Digests:
    found: Digests = {}
    waiting = sorted(modules)
    while waiting:
        name = waiting.pop()
        spec = None if name in found or _of_others(name) else _spec(name)
        if spec is None or not spec.has_location or spec.origin is None:
            continue
        if _INSTALLED & set(Path(spec.origin).parts):
            if name in modules:
                found |= _versions(name.partition(".")[0])
            continue
        text = Path(spec.origin).read_bytes()
        found[name] = hashlib.sha256(text).hexdigest()
        waiting += _imports(text, spec.parent or "") if spec.origin.endswith(".py") else []
    return dict(sorted(found.items()))


def _versions(package: str) -> Digests:
    return {name: version(name) for name in packages_distributions().get(package, [])}


def _of_others(name: str) -> bool:
    top = name.partition(".")[0]
    return top == PACKAGE or top in sys.stdlib_module_names


def _imports(text: bytes, package: str) -> Iterator[str]:
    """Modules that the text of a module in `package` imports, with those around them; some names are no modules."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package.split(".")) * bool(package):
                continue  # beyond the top: an import that fails
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is found; unlike `find_spec` this imports no package on the way."""
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return find_spec(name)
        around = _spec(parent)
        places = around.submodule_search_locations if around else None
        return None if places is None else PathFinder.find_spec(name, list(places))
    except (ImportError, ValueError):
        return None
