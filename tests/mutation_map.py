"""Which tests reach which line, kept in build/mutants until the test file or what it reaches changes."""

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from mutation_choice import Mutant
from mutation_runs import in_fork, record

BUDGET = 12.0  # CPU seconds of tests, as they take them with the unchanged file, for a mutant
Map = dict[str, Any]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def current_map(test_file: str, root: Path, files: Sequence[str], kept: Path) -> Map:
    """Which line each test of a file reaches, from `kept` where neither the tests nor what they reach has changed."""
    path = kept / f"{Path(test_file).stem}.json"
    if path.exists():
        known: Map = json.loads(path.read_text())
        now = {f: digest(root / f) if (root / f).exists() else "" for f in known["files"]}
        if now == known["files"]:
            return known
    ended = in_fork(partial(record, test_file, root, files), root, cpu=1800, wall=7200)
    if ended.value is None:
        raise SystemExit(f"error: the tests of {test_file} did not end; run them with pytest")
    found: Map = ended.value
    print(f"mapped {test_file}: {len(found['tests'])} tests, {ended.seconds:.0f} s", flush=True)
    found["files"] = {f: digest(root / f) for f in (test_file, *found["lines"])}
    kept.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def tests_of(mutant: Mutant, file: str, maps: dict[str, Map], budget: float = BUDGET) -> list[str]:
    """The tests that reach the mutant, as many as the budget holds: quick ones that are about this file first."""
    reached: dict[str, tuple[float, float]] = {}  # what is the smaller, the sooner a test runs; and its seconds
    for scope in (*mutant.scopes, (1, sys.maxsize)):
        for known in maps.values():
            lines = known["lines"].get(file, {})
            inside = Counter(t for tests in lines.values() for t in tests)
            for t in {t for line, tests in lines.items() if scope[0] <= int(line) <= scope[1] for t in tests}:
                name, seconds = known["tests"][t]
                reached[name] = ((seconds + 0.02) * known["total"][t] / inside[t], seconds)
        if reached:
            break
    for name in mutant.names:
        for known in (known for known in maps.values() if re.search(rf"\b{name}\b", known["text"])):
            for test, seconds in known["tests"]:
                weight = 1 if re.search(rf"\[{name}\b", test) else 50
                reached[test] = min(reached.get(test, (inf, 0)), ((seconds + 0.02) * weight, seconds))
    chosen, spent = list[str](), 0.0
    for name, (_, seconds) in sorted(reached.items(), key=lambda item: item[1]):
        if not chosen or spent + seconds <= budget:
            chosen.append(name)
            spent += seconds
    return chosen


def loaded_maps(root: Path, files: Sequence[str], kept: Path) -> dict[str, Map]:
    test_files = sorted(str(p.relative_to(root)) for p in (root / "tests").glob("test_*.py"))
    maps = {f: current_map(f, root, files, kept) for f in test_files}
    for file, known in maps.items():
        known["text"] = "\n".join([(root / file).read_text(encoding="utf-8"), *(name for name, _ in known["tests"])])
        known["seconds"] = dict(known["tests"])
        known["total"] = Counter(t for lines in known["lines"].values() for tests in lines.values() for t in tests)
    return maps
