"""Runs of tests in forked processes: which test reaches which line, and whether a test notices a changed file.

The parent has imported the libraries that take seconds, and nothing of the project: a fork imports the project anew,
with one file changed, and nothing is written into the working tree.
"""

import importlib
import importlib.util
import json
import multiprocessing.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn

import pytest

LONGEST = 4  # CPU seconds: a test that takes longer is no test of a mutant
LIBRARIES = [
    *("torch", "torch.func", "torch.distributed", "torch.utils.checkpoint", "torch.utils.tensorboard", "torchmetrics"),
    *("torchvision.transforms.v2", "pytorch_lightning.cli", "timm", "safetensors.torch", "jsonargparse", "jinja2"),
    *("scipy.stats", "scipy.optimize", "sklearn.neighbors", "sklearn.linear_model", "sklearn.metrics", "filelock"),
    *(
        "skimage.restoration",
        "matplotlib.pyplot",
        "rich.progress",
        "pooch",
        "PIL.Image",
        "multiprocessing.pool",
        "yaml",
    ),
]


def preload() -> None:
    """Import what the project imports, on one thread: a process with threads must not fork."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)


@dataclass(frozen=True)
class Ended:
    """How a fork ended: what it returned (None: it was stopped or died), CPU seconds, whether its time was over."""

    value: Any
    seconds: float
    timeout: bool


def in_fork(work: Callable[[], Any], root: Path, cpu: float, wall: float, log: Path | None = None) -> Ended:
    """`work()` in a fork that stops after `cpu` seconds of computing or `wall` seconds of waiting."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        sys.stdout.flush(), sys.stderr.flush()
        pid = os.fork()
        if not pid:
            _child(work, root, cpu, answer, log)
        until, ended = time.monotonic() + wall, 0
        while not ended and time.monotonic() < until:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            time.sleep(0 if ended else 0.02)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
        over = not ended or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
        value = json.loads(answer.read_text()) if not over and answer.exists() else None
        shutil.rmtree(Path(folder), ignore_errors=True)
        return Ended(value, usage.ru_utime + usage.ru_stime, over)


def _child(work: Callable[[], Any], root: Path, cpu: float, answer: Path, log: Path | None) -> NoReturn:
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1, resource.RLIM_INFINITY))
        output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        os.chdir(root)
        os.environ["TMPDIR"] = tempfile.tempdir = str(answer.parent)
        subprocess.Popen.__init__ = _refuse  # type: ignore[method-assign]
        multiprocessing.util.spawnv_passfds = _refuse
        answer.write_text(json.dumps(work()))
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(0)


def _refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a test that starts a process runs the unchanged files")


def run_pytest(paths: Sequence[str], plugin: object, *options: str) -> int:
    """pytest.main without the project's options, with a plugin of ours."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they are imported already, which is a warning
    fixed = ["-q", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider"]
    return int(pytest.main([*fixed, *options, *paths], plugins=[plugin]))


class _TooLong(Exception):
    pass


class Recorder:
    """A plugin that notes what every test that passes took, and tells `switch` when one begins and ends."""

    def __init__(self, switch: Callable[[str], object]) -> None:
        self.switch, self.seconds, self.failed = switch, dict[str, float](), set[str]()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        def stop(*_: object) -> NoReturn:
            raise _TooLong

        self.switch(item.nodeid)
        began = time.process_time()
        signal.signal(signal.SIGPROF, stop)  # counts the time of computing, on a machine that others use
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.seconds[item.nodeid] = round(time.process_time() - began, 3)
            self.switch("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)


def record(test_file: str, root: Path, files: Sequence[str]) -> dict[str, Any]:
    """The tests of a file that pass: seconds of each, and for each line of `files` the tests that reach it.

    `{"tests": [[name, seconds], ...], "lines": {file: {line: [numbers of tests]}},
    "imported": {file: [lines reached while the tests were collected]}}`
    """
    import coverage

    measured = coverage.Coverage(data_file=None, config_file=False, include=[str(root / f) for f in files])
    measured.start()
    recorder = Recorder(measured.switch_context)
    run_pytest([test_file], recorder)
    measured.stop()
    names = [name for name in recorder.seconds if name not in recorder.failed]
    number, data = {name: i for i, name in enumerate(names)}, measured.get_data()
    lines, imported = {}, {}
    for file in data.measured_files():
        contexts = data.contexts_by_lineno(file)
        imported[str(Path(file).relative_to(root))] = sorted(line for line, names in contexts.items() if "" in names)
        found = {line: sorted(number[n] for n in names if n in number) for line, names in contexts.items()}
        if found := {line: tests for line, tests in found.items() if tests}:
            lines[str(Path(file).relative_to(root))] = found
    return {"tests": [[name, recorder.seconds[name]] for name in names], "lines": lines, "imported": imported}


class Finder:
    """An import hook that puts `source` in the place of the file at `path`."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        self.module, self.path, self.source = module, path, source

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        text = self.source

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> Any:
                return compile(text, self.path, "exec", dont_inherit=True)

        folder = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        loader = Loader(name, str(self.path))
        return importlib.util.spec_from_file_location(name, self.path, loader=loader, submodule_search_locations=folder)


class FirstFailure:
    """A plugin that runs the tests `names` in their order and keeps the name of the one that fails."""

    def __init__(self, names: Sequence[str]) -> None:
        self.rank, self.failed = {name: i for i, name in enumerate(names)}, ""
        self.run = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.run += report.when == "call"
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (import)"


def notice(module: str, path: Path, source: str, names: Sequence[str]) -> dict[str, Any]:
    """The first of the tests `names` that fails where the module has the text `source`: `{"by": name or ""}`."""
    sys.meta_path.insert(0, Finder(module, path, source))
    plugin = FirstFailure(names)
    code = run_pytest(list(dict.fromkeys(name.partition("::")[0] for name in names)), plugin, "-x")
    return {"by": plugin.failed or (f"pytest ended with {code}" if code else ""), "run": plugin.run}
