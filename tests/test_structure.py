"""The house: who may import whom beyond what import-linter checks, and how much PGD takes to read."""

import re
from pathlib import Path

import pgd_reach

ROOT = Path(__file__).resolve().parent.parent


def test_the_tools_of_attacks_know_no_attack() -> None:
    below = ("attacks.core", "networks", "errors")
    allowed = tuple(f"adversarial_lightning.{room}" for room in below)
    for path in (ROOT / "attacks" / "core").glob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) (adversarial_lightning\S*)", path.read_text(), re.M):
            assert module.startswith(allowed), path


def test_every_file_of_the_evaluation_lies_in_one_of_its_folders() -> None:
    assert [p.name for p in (ROOT / "evaluation").glob("*.py")] == ["__init__.py"]


def test_benchmarks_and_tools_leave_the_path_alone() -> None:
    for path in [p for room in ("benchmarks", "reproduce", "docs") for p in (ROOT / room).rglob("*.py")]:
        assert "sys.path" not in path.read_text() and "noqa: E402" not in path.read_text(), path


def test_linf_pgd_is_read_in_5_files_and_250_lines() -> None:
    counts = pgd_reach.table()
    assert {"attacks/pgd.py", "attacks/core/gradient.py", "attacks/core/norms.py"} < set(counts)
    assert len(counts) <= 5 and sum(counts.values()) <= 250, counts
