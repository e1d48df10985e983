"""Digests of what a recorded number depends on: the settings as they were asked for, and the code that computed it."""

import ast
import functools
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from adversarial_lightning.checkpoints.spec import PACKAGE

ROOMS = ("attacks", "callbacks", "datamodules", "defenses", "detectors", "lightning_modules", "networks")
_PROGRAM = f"{PACKAGE}.reproduce.papers"  # asks for numbers and writes them down, computes none
# What judges every outcome, whatever the attack.
JUDGES = ("evaluation.outcomes.outcome", "evaluation.campaign.sample_status", "attacks.core.base")


def settings(*parts: Any) -> str:
    """Digest of settings in plain types."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def written(path: Path) -> Any:
    """Content of a YAML file, with the content of the YAML files that its values name."""
    return _followed(yaml.safe_load(path.read_text(encoding="utf-8")), path.parent)


def _followed(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {name: _followed(entry, folder) for name, entry in value.items()}
    if isinstance(value, list):
        return [_followed(entry, folder) for entry in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (folder / value).is_file():
        return written((folder / value).resolve())
    return value


Code = Mapping[str, str]  # module -> digest


def code(content: Any, measure: str | None = None) -> Code:
    """Digests of the modules of all classes that `content` names by class_path, of what they import, of the judges.

    `measure` is the import path below reproduce of a function that counts too. Comments, docstrings and the layout of
    the text do not count; installed packages do not either.
    """
    roots = {module for path in _class_paths(content) if (module := _module_of(path))}
    roots |= {f"{PACKAGE}.reproduce.{measure.rpartition('.')[0]}"} if measure else set()
    reached = sorted(_reached(roots | {f"{PACKAGE}.{name}" for name in JUDGES}))
    return {
        module.removeprefix(f"{PACKAGE}."): hashlib.sha256(_text(module).encode()).hexdigest()[:8] for module in reached
    }


def same_version(one: Code, other: Code) -> bool:
    """Whether all modules that two numbers have in common are the same; other methods have other modules besides."""
    return all(one[module] == other[module] for module in one.keys() & other.keys())


def _class_paths(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        if isinstance(path := content.get("class_path"), str):
            yield path
        for value in content.values():
            yield from _class_paths(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _class_paths(value)
    elif isinstance(content, str) and content.isidentifier() and content[0].isupper():
        yield content  # network: SmallCNN
    elif isinstance(content, str) and content.startswith(("[", "{")) and "class_path" in content:
        yield from _class_paths(yaml.safe_load(content))  # a word of the command line


def _module_of(path: str) -> str | None:
    """Module of ours that defines a class, named with or without its room; None of what is not ours."""
    name = path.rpartition(".")[2]
    for room in ROOMS:
        found = getattr(import_module(f"{PACKAGE}.{room}"), name, None)
        if inspect.isclass(found) and found.__module__.startswith(PACKAGE):
            return found.__module__
    return None


def _reached(roots: Iterable[str]) -> set[str]:
    """Modules of ours that these import, directly or not; of a catalogue only what defines the name asked for."""
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module not in seen and not module.startswith(_PROGRAM):
            seen.add(module)
            waiting += _imported(module)
    return seen


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    found = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            for alias in node.names:
                found.append(_defining(str(node.module), alias.name))
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith(f"{PACKAGE}.")]
    return tuple(found)


def _defining(module: str, name: str) -> str:
    try:
        if find_spec(f"{module}.{name}"):
            return f"{module}.{name}"
    except ModuleNotFoundError:  # `module` is a file, not a folder
        pass
    owner = getattr(getattr(import_module(module), name, None), "__module__", module)
    return owner if str(owner).startswith(PACKAGE) else module


@functools.cache
def _tree(module: str) -> ast.Module:
    spec = find_spec(module)
    tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return tree


@functools.cache
def _text(module: str) -> str:
    return ast.dump(_tree(module))
