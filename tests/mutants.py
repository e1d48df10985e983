"""Change the project's files one small change at a time and see whether a test notices: ``make mutants``.

Outcomes are kept in results/mutants.json by the digest of the file: a second run tests only mutants of files that have
changed since, and those that no test noticed, once a test file that reaches their file has changed. A mutant that
changes nothing that anybody can see is named, with the reason, in tests/equivalent_mutants.yaml and does not count.

python tests/mutants.py [PATH ...]         files whose paths begin so; all without
python tests/mutants.py --again [PATH ...] as well those that no test noticed, whatever changed
"""

import argparse
import json
import os
import re
import resource
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from mutation_choice import Mutant, key, mutants
from mutation_in_place import Collected
from mutation_map import Map, digest, loaded_maps, tests_of
from mutation_runs import Ended, in_fork, notice, preload

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["lightning_modules", "attacks", "defenses", "detectors", "evaluation/outcomes"]
ROOMS += ["evaluation/campaign/sample_status.py", "evaluation/audit"]
RESULTS, EQUIVALENT = "results/mutants.json", "tests/equivalent_mutants.yaml"
LIMITS = (20.0, 4, 300.0, 40)  # CPU seconds, and times those of the tests; the same of the time that passes
IN_ALL, IN_A_FILE = 0.9, 0.75  # the share of mutants that a test must notice


def source_files(root: Path, rooms: Iterable[str] = ROOMS) -> list[str]:
    paths = (p for room in rooms for p in ([root / room] if room.endswith(".py") else sorted((root / room).rglob("*"))))
    return [str(p.relative_to(root)) for p in paths if p.suffix == ".py"]


class Tester:
    """Runs tests against mutants of the project at `root`, whose files are modules of `package`."""

    def __init__(self, root: Path, maps: dict[str, Map], package: str) -> None:
        self.root, self.maps, self.package = root, maps, package
        self.collected: Collected | None = None

    def tests(self, file: str) -> str:
        """A digest of the test files that reach the file, or name what is in it."""
        names = re.findall(r"^(?:class|def) (\w+)", (self.root / file).read_text(encoding="utf-8"), re.M)
        named = re.compile(rf"\b({'|'.join(names) or 'a^'})\b")
        about = [f for f, m in sorted(self.maps.items()) if file in m["lines"] or named.search(m["text"])]
        return key([(f, self.maps[f]["files"].get(f), len(self.maps[f]["tests"])) for f in about])[:16]

    def outcome(self, mutant: Mutant, file: str, text: str) -> dict[str, Any]:
        """Whether a test notices the mutant: `outcome` killed (and by which), timeout or survived."""
        names = tests_of(mutant, file, self.maps)
        expected = sum(self.maps[name.partition("::")[0]]["seconds"][name] for name in names)
        cpu, times, wall, wall_times = LIMITS
        limits = {"cpu": cpu + times * expected, "wall": wall + wall_times * expected}
        ended = Ended({"by": "", "run": 0}, 0.0, False)
        if names and not self.imported(mutant, file):
            test_files = [f for f, known in self.maps.items() if known["lines"]]
            self.collected = self.collected or Collected(self.root, test_files)
            ended = self.collected.notice(self.root / file, text, mutant.source, names, **limits)
        if names and (self.imported(mutant, file) or (ended.value and ended.value["by"] is None)):
            module = self.package + str(Path(file).with_suffix("")).replace("/", ".")
            ended = in_fork(partial(notice, module, self.root / file, mutant.source, names), self.root, **limits)
        said = ended.value or {"by": "" if ended.timeout else "the process died", "run": 0}
        end = "timeout" if ended.timeout else "killed" if said["by"] else "survived"
        found = {"name": mutant.name, "outcome": end, "by": said["by"], "tests": said["run"]}
        return {**found, "seconds": round(ended.seconds, 1)}

    def imported(self, mutant: Mutant, file: str) -> bool:
        """Whether the statement is reached by an import already: functions changed later would not show it."""
        first, last = mutant.scopes[0]
        return any(first <= line <= last for known in self.maps.values() for line in known["imported"].get(file, []))

    def close(self) -> None:
        if self.collected:
            self.collected.close()


def score(entries: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """How many mutants a test noticed, and how many count."""
    outcomes = Counter(entry["outcome"] for entry in entries)
    return outcomes["killed"] + outcomes["timeout"], outcomes.total() - outcomes["equivalent"]


def run(
    root: Path = ROOT,
    rooms: Sequence[str] = ROOMS,
    only: Sequence[str] = (),
    again: bool = False,
    number: int = 8,
    seed: int = 0,
    package: str = "adversarial_lightning.",
) -> dict[str, Any]:
    """Test the mutants of the files of `rooms` that must be tested anew and return what results/mutants.json holds."""
    path, judged = root / RESULTS, equivalent(root)
    last = json.loads(path.read_text()) if path.exists() else {}
    kept = last.get("files", {}) if (last.get("seed"), last.get("number")) == (seed, number) else {}
    files = source_files(root, rooms)
    held: dict[str, Any] = {"seed": seed, "number": number, "files": {f: kept[f] for f in files if f in kept}}
    tester = Tester(root, loaded_maps(root, files, root / "build" / "mutants"), package)
    for file in (f for f in files if not only or f.startswith(tuple(only))):
        before, text = held["files"].get(file, {}), (root / file).read_text(encoding="utf-8")
        same, tests, reasons = before.get("digest") == digest(root / file), tester.tests(file), judged.get(file, {})
        old = {m["name"]: m for m in before["mutants"]} if same else {}
        new = not same or before["tests"] != tests or again
        if not new and before["done"] and all(m.get("reason") == reasons.get(name) for name, m in old.items()):
            continue
        entry: dict[str, Any] = {"digest": digest(root / file), "tests": before["tests"] if same else tests}
        made = mutants(text, file, number, seed)
        for mutant in made:
            known = old.get(mutant.name, {"outcome": "equivalent"})
            if mutant.name in reasons:
                found = {"name": mutant.name, "outcome": "equivalent", "reason": reasons[mutant.name]}
            elif known["outcome"] == "equivalent" or (known["outcome"] == "survived" and new):
                found = tester.outcome(mutant, file, text)
                print(f"{found['outcome']:8} {found['seconds']:5.1f} s {file} {mutant.name}", flush=True)
            else:
                continue
            old[mutant.name] = found
            write(path, held, file, {**entry, "done": False, "mutants": list(old.values())})
        for name in reasons.keys() - {mutant.name for mutant in made}:
            print(f"{EQUIVALENT} judges a mutant that is not tested (any more): {file}: {name}")
        entry["tests"], entry["mutants"] = tests, [old[m.name] for m in made]
        write(path, held, file, {**entry, "done": True})
    tester.close()
    return held


def write(path: Path, held: dict[str, Any], file: str, entry: dict[str, Any]) -> None:
    held["files"] = dict(sorted({**held["files"], file: entry}.items()))
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def equivalent(root: Path) -> dict[str, dict[str, str]]:
    """The reasons why mutants are equivalent, by file and by name."""
    path = root / EQUIVALENT
    return (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    preload()
    files = run(only=asked.paths, again=asked.again)["files"]
    scores = {file: score(entry["mutants"]) for file, entry in files.items()}
    noticed, counted = (sum(numbers) for numbers in zip(*scores.values(), strict=True))
    poor = [f"{file}: {k} of {n}" for file, (k, n) in scores.items() if k < IN_A_FILE * n]
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{noticed} of {counted} mutants noticed ({noticed / max(1, counted):.1%})")
    print(f"{(times.ru_utime + times.ru_stime) / 60:.0f} minutes of computing")
    print("".join(f"below {IN_A_FILE:.0%}: {line}\n" for line in poor), end="")
    return int(bool(poor) or noticed < IN_ALL * counted)


if __name__ == "__main__":
    sys.exit(main())
