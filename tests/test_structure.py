"""The house: who may import whom beyond what import-linter checks, and how much PGD takes to read."""

import ast
import importlib.util
import re
import subprocess
from pathlib import Path

import pgd_reach
import pytest

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


# One rule, one place: what is written here may occur in these files only.
ONCE = {
    "the slack of a ball": (r"1e-6 \+ 1e-7|\(1 \+ 1e-[56]\)", ["attacks/core/norms.py"]),
    "rows that are probabilities": (r"sum\(-?1\) - 1\)\.abs\(\) <", ["networks/eval_mode.py"]),
    "the device of a model": (r"next\(\(t\.device for", ["networks/eval_mode.py"]),
    "the seed of seed_everything": (r"PL_GLOBAL_SEED", ["adversarial_lightning/seed.py"]),
    "sha256 of a file": (r"file\.read\(1 << 20\)|file_digest\(", ["checkpoints/files.py"]),
    "images of sample numbers": (
        r"enumerate\((self|campaign|c|self\.campaign)\.samples\)|zip\(numbers\[at\]",
        ["evaluation/campaign/plan.py"],
    ),
    "a time in words": (r"def duration\b", ["evaluation/report/formatting.py"]),
    "errors that users see": (r"co_code|(raise|return) ValueError\(", []),
    "a collate function": (r"def (ready|collate)\(batch", []),
    "the side of a threshold": (r"def (flagged|evades)\(", ["attacks/core/threshold.py"]),
}
ROOMS = "attacks callbacks checkpoints configs datamodules defenses detectors evaluation lightning_modules networks"
SOURCES = sorted(p for r in (*ROOMS.split(), "reproduce", "adversarial_lightning") for p in (ROOT / r).rglob("*.py"))


@pytest.mark.parametrize("rule", ONCE)
def test_one_rule_has_one_place(rule: str) -> None:
    pattern, places = ONCE[rule]
    found = [str(p.relative_to(ROOT)) for p in SOURCES if re.search(pattern, p.read_text())]
    assert found == places, (rule, found)


OLD_WORDS = r"\b(fell(s|ed)?|fallen|standing|withstood|fates?|foret(ell|old)\w*|hast(e|en\w*|y)|opponents|slope_\w+)\b"
NAMED_ON_PURPOSE = {"CHANGELOG.md", "checkpoints/old_names.py", "tests/test_structure.py"}


@pytest.mark.long
def test_old_words_are_gone() -> None:
    """Code, docs, configurations, templates and generated pages; recorded configurations are what was run."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    kinds = (".py", ".md", ".yaml", ".html", ".css", ".cfg", ".toml")
    names = [n for n in listed.stdout.split() if n.endswith(kinds) and n not in NAMED_ON_PURPOSE]
    names = [
        n for n in names if not re.match(r"results/.*config\.yaml|tests/fixtures/made_by", n) and (ROOT / n).is_file()
    ]
    on_purpose = re.compile(r"<!-- names on disk -->.*?<!-- end -->", re.S)
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in names
        for number, line in enumerate(on_purpose.sub("", (ROOT / name).read_text()).splitlines(), 1)
        if re.search(OLD_WORDS, line, re.I)
    ]
    assert len(names) > 300 and not found, "\n".join(found[:40])


PEERS = ("adv_lib", "torchattacks", "foolbox")  # compared with where they are installed


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_what_benchmarks_import_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("adversarial_lightning"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.ImportFrom) and (name := str(node.module).partition(".")[0]) not in PEERS:
            assert (path.parent / f"{name}.py").is_file() or importlib.util.find_spec(name)
