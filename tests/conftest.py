"""Shared fixtures: every test starts from the same global seed, on one thread."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "2")  # else scikit-learn starts a process to count cores
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = (
    "off"  # LightningCLI 2.6 calls a method that jsonargparse 4.49 renamed
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module on the path that leaves a mark when it is imported; the test fails where it does."""
    mark = tmp_path / "imported"
    (tmp_path / "planted_module.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nimport torch\nclass Net(torch.nn.Module): pass\n"
    )
    (tmp_path / "planted.yaml").write_text("class_path: planted_module.Net\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not mark.exists() and "planted_module" not in sys.modules


@pytest.fixture(autouse=True)
def _no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the quick subset (``-m "not slow and not long"``) a test that starts a process fails."""
    if "not long" in request.config.getoption("markexpr"):

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("this test starts a process: mark it @pytest.mark.long")

        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
