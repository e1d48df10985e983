"""Tests of changed functions in forks of a process that has imported the project and collected all tests.

Importing and collecting take seconds, most tests milliseconds. Where a mutant changes the body of functions alone, the
functions of such a fork get the changed code; any other mutant (a default, a constant, a decorator) needs a new import.
"""

import gc
import multiprocessing.connection
import os
import sys
from collections.abc import Sequence
from functools import partial
from inspect import CO_NEWLOCALS
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from mutation_runs import Ended, FirstFailure, in_fork, run_pytest

Codes = dict[tuple[str, int], CodeType]  # by name and first line
Functions = dict[tuple[str, str, int], list[FunctionType]]


def _inner(code: CodeType) -> list[CodeType]:
    return [c for c in code.co_consts if isinstance(c, CodeType)]


def _own(code: CodeType) -> tuple[Any, ...]:
    """What the code does itself, without the functions that it makes; constants by type too, as 1 == 1.0 == True."""
    constants = [(type(c), repr(c)) for c in code.co_consts if not isinstance(c, CodeType)]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars


def _all(code: CodeType) -> Codes:
    return {(code.co_qualname, code.co_firstlineno): code, **{k: c for i in _inner(code) for k, c in _all(i).items()}}


def changed_functions(before: CodeType, after: CodeType) -> Codes | None:
    """The new code of the functions in which two modules differ; None where they differ elsewhere too."""
    pairs = list(zip(_inner(before), _inner(after), strict=False))
    differs = _own(before) != _own(after) or len(_inner(before)) != len(_inner(after))
    if before.co_flags & CO_NEWLOCALS:  # a function, neither the module nor the body of a class
        inside = differs or any(changed_functions(*pair) != {} for pair in pairs)
        same = _all(before).keys() == _all(after).keys() and before.co_freevars == after.co_freevars
        return ({} if not inside else _all(after)) if same else None
    found: Codes = {}
    for pair in pairs:
        one = changed_functions(*pair)
        if one is None:
            return None
        found |= one
    return None if differs else found


def living_functions(root: Path) -> Functions:
    """The functions of the project by file, name and first line."""
    found: Functions = {}
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename.startswith(str(root)):
            code = function.__code__
            found.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(function)
    return found


def put_in_place(path: Path, before: str, after: str, living: Functions) -> bool:
    """Give the living functions of the file the code of the text `after`; False where that is not all it takes."""
    old, new = (compile(text, str(path), "exec", dont_inherit=True) for text in (before, after))
    codes = changed_functions(old, new) or {}
    pairs = [(f, code) for where, code in codes.items() for f in living.get((str(path), *where), [])]
    if any(function.__code__.co_freevars != code.co_freevars for function, code in pairs):
        return False
    for function, code in pairs:
        function.__code__ = code
    return bool(pairs)


class _Server(FirstFailure):
    """A plugin that, in the place of the tests, answers requests: each runs some tests in a fork."""

    def __init__(self, root: Path, requests: Any) -> None:
        super().__init__([])
        self.root, self.requests = root, requests

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        pass

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        living = living_functions(self.root)  # here and not in a fork: it would copy what it looks at
        gc.freeze()  # so that collecting garbage does not look at it
        self.requests.send(len(items))
        while (asked := self.requests.recv()) is not None:
            path, before, after, names, cpu, wall = asked
            work = partial(self.answer, items, living, Path(path), before, after, names)
            ended = in_fork(work, self.root, cpu, wall)
            self.requests.send((ended.value, ended.seconds, ended.timeout))
        return True

    def answer(
        self, items: dict[str, pytest.Item], living: Functions, path: Path, before: str, after: str, names: list[str]
    ) -> dict[str, Any]:
        if not put_in_place(path, before, after, living):
            return {"by": None, "run": 0}
        for name, following in zip(names, [*names[1:], None], strict=True):
            item, next_ = items[name], items[following] if following else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=next_)
            if self.failed:
                break
        return {"by": self.failed, "run": self.run}


class Collected:
    """A process that has collected the tests of `test_files`."""

    def __init__(self, root: Path, test_files: Sequence[str]) -> None:
        self.requests, theirs = multiprocessing.connection.Pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                self.requests.close()
                os.chdir(root)
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1), os.dup2(null, 2)
                run_pytest(test_files, _Server(root, theirs), "-s")
            finally:
                os._exit(0)
        theirs.close()
        self.tests = self.requests.recv()  # EOFError where a file cannot be collected

    def notice(self, path: Path, before: str, after: str, names: Sequence[str], cpu: float, wall: float) -> Ended:
        """The first of `names` that fails with the changed functions: `{"by": name, "" or, not possible, None}`."""
        self.requests.send((str(path), before, after, list(names), cpu, wall))
        return Ended(*self.requests.recv())

    def close(self) -> None:
        self.requests.send(None)
        os.waitpid(self.pid, 0)
