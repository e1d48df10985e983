"""Lines that a reader of linf PGD has to read: ``python tests/pgd_reach.py`` prints them for each file.

Counted are pgd.py whole and, of every other file of ours, what a run of ``PGD(norm="linf", loss="ce")`` reaches: the
functions it calls, with signature and docstring; of their classes, and of the bases, the header, fields and abstract
methods; the module's assignments that these name. Input checks and noise, with all that they call, are not counted.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from adversarial_lightning.attacks import PGD

ROOT = Path(inspect.getfile(PGD)).resolve().parent.parent
WHOLE = ROOT / "attacks" / "pgd.py"
APART = {ROOT / "attacks" / "core" / "checks.py", ROOT / "attacks" / "core" / "noise.py"}

Span = tuple[int, int]  # first and last line


def reached() -> dict[Path, set[int]]:
    """First lines of the functions of ours that the run calls, by file."""
    found: dict[Path, set[int]] = {}

    def record(frame: FrameType, event: str, _: Any) -> None:
        ours = str(frame.f_globals.get("__name__")).startswith("adversarial_lightning.")
        path = _file(frame.f_code)
        if event == "call" and ours and path.is_file() and not any(_file(c) in APART for c in _callers(frame)):
            found.setdefault(path, set()).add(frame.f_code.co_firstlineno)

    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    before = sys.getprofile()
    sys.setprofile(record)
    try:
        PGD(norm="linf", loss="ce", steps=2)(model, x, y)
    finally:
        sys.setprofile(before)
    return found


def _file(code: CodeType) -> Path:
    return Path(code.co_filename).resolve()


def _callers(frame: FrameType | None) -> Iterator[CodeType]:
    """The code of `frame` and of all that called it."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def lines(path: Path, firsts: set[int]) -> set[int]:
    """Numbers of the lines of `path` that explain the functions that begin at the lines `firsts`."""
    text = path.read_text()
    if path == WHOLE:
        return set(range(1, len(text.splitlines()) + 1))
    body = ast.parse(text).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    spans: list[ast.stmt] = [node for node in body if isinstance(node, ast.FunctionDef) and _first(node) in firsts]
    counted: set[int] = set()
    waiting = [c for c in classes.values() if any(_first(f) in firsts for f in c.body)]
    while waiting:
        cls = waiting.pop()
        waiting += [classes[b.id] for b in cls.bases if isinstance(b, ast.Name) and b.id in classes]
        counted |= set(range(_first(cls), cls.body[0].lineno))
        for part in cls.body:
            if not isinstance(part, ast.FunctionDef) or _first(part) in firsts or _abstract(part):
                spans.append(part)
    numbered = text.splitlines()
    counted |= {n for span in spans for n in range(_first(span), (span.end_lineno or 0) + 1)}
    named = {word for n in counted for word in _words(numbered[n - 1])} | _words(WHOLE.read_text())
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and named & {
            w for w in _words(ast.unparse(node).split("=")[0])
        }:
            counted |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return counted


def _first(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _abstract(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(d) == "abstractmethod" for d in node.decorator_list)


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


def table() -> dict[str, int]:
    """Number of lines by file, as described above."""
    counts = {str(path.relative_to(ROOT)): len(lines(path, firsts)) for path, firsts in reached().items()}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    for name, count in table().items():
        print(f"{count:5}  {name}")
    print(f"{sum(table().values()):5}  in {len(table())} files")
