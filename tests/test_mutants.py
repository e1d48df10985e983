"""Mutants: which are made, which tests run, what is reported and what is not run again."""

import json
from pathlib import Path
from typing import Any

import mutants as program
import mutation_map
import mutation_runs
import pytest
from mutation_choice import Mutant
from mutation_in_place import changed_functions
from mutation_map import current_map, digest

SOURCE = '''"""A module: 1 + 2."""

__all__ = ["larger", "slow"[0:4]]
LIMIT = 10


def larger(a: int | float, b: int) -> int | float:
    if a < 0:
        raise ValueError(f"{a + 1} is negative")
    return a if a > b else b


def unseen(a: int) -> int:
    return a + LIMIT
'''
TESTS = """from planted_room.sizes import larger
def test_larger(): assert larger(2, 1) == 2
def test_smaller(): assert larger(1, 2) == 2
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "planted_room").mkdir()
    (tmp_path / "planted_room" / "sizes.py").write_text(SOURCE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_sizes.py").write_text(TESTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mutation_runs, "LONGEST", 5)
    return tmp_path


def changed(old: str, new: str, first: int, last: int) -> Mutant:
    assert SOURCE.count(old) == 1
    return Mutant(f"{old} -> {new}", SOURCE.replace(old, new), ((first, last),))


ROOT = Path(__file__).resolve().parents[1]
KILLED = changed("a > b", "a < b", 10, 10)
SURVIVING = changed("a > b", "a >= b", 10, 10)
ENDLESS_LIMIT = changed("LIMIT = 10", "while True: LIMIT = 10", 4, 4)
ENDLESS = changed("    if a < 0", "    while a < 5: a -= 1\n    if a < -9", 8, 8)


def run(root: Path, monkeypatch: pytest.MonkeyPatch, made: list[Mutant], **options: Any) -> dict[str, Any]:
    """A run with these mutants and a map in which the tests reach `larger`, a map that needs no other library."""
    seconds = {"tests/test_sizes.py::test_larger": 0.01, "tests/test_sizes.py::test_smaller": 0.02}
    files = {f: digest(root / f) for f in ("tests/test_sizes.py", "planted_room/sizes.py")}
    reached = {"planted_room/sizes.py": {"8": [0, 1], "10": [0, 1]}}
    known = {"tests": [list(s) for s in seconds.items()], "lines": reached, "files": files}
    known["imported"] = {"planted_room/sizes.py": [4, 7, 13]}
    (root / "build/mutants").mkdir(parents=True, exist_ok=True)
    (root / "build/mutants/test_sizes.json").write_text(json.dumps(known))
    monkeypatch.setattr(program, "mutants", lambda *_: made)
    held = program.run(root, ["planted_room"], package="", **options)
    assert json.loads((root / program.RESULTS).read_text()) == held
    assert (root / "planted_room/sizes.py").read_text() == SOURCE
    return {m["name"]: m for m in held["files"]["planted_room/sizes.py"]["mutants"]}


def test_a_mutant_that_a_test_notices_is_killed_and_another_is_reported(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(project, monkeypatch, [KILLED, SURVIVING])
    said = capsys.readouterr().out
    assert found[KILLED.name]["outcome"] == "killed" and found[KILLED.name]["by"].endswith("::test_larger")
    assert found[SURVIVING.name]["outcome"] == "survived" and found[SURVIVING.name]["tests"] == 2
    assert "survived" in said and SURVIVING.name in said
    assert program.score(found.values()) == (1, 2)


def test_an_equivalent_mutant_does_not_count(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "both are the larger one where they are equal"
    judged = project / program.EQUIVALENT
    judged.write_text(json.dumps({"planted_room/sizes.py": {SURVIVING.name: reason, "gone": "before"}}))
    found = run(project, monkeypatch, [KILLED, SURVIVING])
    assert found[SURVIVING.name] == {"name": SURVIVING.name, "outcome": "equivalent", "reason": reason}
    assert program.score(found.values()) == (1, 1) and "not tested (any more): planted_room" in capsys.readouterr().out
    judged.unlink()  # a judgement that was taken back
    assert run(project, monkeypatch, [KILLED, SURVIVING])[SURVIVING.name]["outcome"] == "survived"


def test_the_recorded_outcomes_reach_the_limits() -> None:
    recorded = json.loads((ROOT / program.RESULTS).read_text())["files"]
    scores = {file: program.score(entry["mutants"]) for file, entry in recorded.items()}
    assert [file for file, (noticed, counted) in scores.items() if noticed < program.IN_A_FILE * counted] == []
    assert sum(k for k, _ in scores.values()) >= program.IN_ALL * sum(n for _, n in scores.values())
    reasons = {
        file: {m["name"]: m["reason"] for m in entry["mutants"] if m["outcome"] == "equivalent"}
        for file, entry in recorded.items()
    }
    assert {file: names for file, names in reasons.items() if names} == program.equivalent(ROOT)


def test_a_second_run_tests_what_has_changed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(project, monkeypatch, [KILLED, SURVIVING])
    capsys.readouterr()
    assert run(project, monkeypatch, [KILLED, SURVIVING]) == first and capsys.readouterr().out == ""
    (project / "tests/test_sizes.py").write_text(TESTS + "# another text\n")
    run(project, monkeypatch, [KILLED, SURVIVING])  # a test may have been added that notices the second
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["survived"]
    run(project, monkeypatch, [KILLED, SURVIVING], again=True)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["survived"]
    run(project, monkeypatch, [KILLED], seed=1)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["killed"]


def test_a_run_goes_on_where_it_was_interrupted(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object, mutant: Mutant, *__: object) -> dict[str, Any]:
        if mutant is SURVIVING:
            raise KeyboardInterrupt
        return {"name": mutant.name, "outcome": "killed", "by": "before", "tests": 1, "seconds": 0.0}

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(program.Tester, "outcome", interrupted)
        run(project, patched, [KILLED, SURVIVING])
    capsys.readouterr()
    found = run(project, monkeypatch, [KILLED, SURVIVING])
    assert [found[m.name]["by"] for m in (KILLED, SURVIVING)] == ["before", ""]
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("mutant", [ENDLESS, ENDLESS_LIMIT], ids=["function", "module"])
def test_a_mutant_without_end_is_stopped(mutant: Mutant, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "LIMITS", (0.5, 0, 60.0, 0))
    found = run(project, monkeypatch, [mutant])[mutant.name]
    assert found["outcome"] == "timeout" and 0.5 < found["seconds"] < 5


def test_what_an_import_reaches_is_imported_anew(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant and a default: functions that are changed after the import would not show them."""
    limit = changed("LIMIT = 10", "LIMIT = 1 / 0", 4, 4)
    default = changed("b: int)", "b: int = larger)", 7, 7)
    found = run(project, monkeypatch, [limit, default])
    assert found[limit.name]["by"] == "tests/test_sizes.py (import)"
    assert found[default.name]["outcome"] == "killed" and "import" in found[default.name]["by"]


CODES = """
def f(x):
    y = 3
    return x + y, lambda: x
class A:
    z = 5
    def g(self, a=1):
        return a + 7
h = lambda x: x + 9
"""


@pytest.mark.parametrize(
    "old,new,functions",
    [
        ("y = 3", "y = 4", {"f", "f.<locals>.<lambda>"}),
        ("lambda: x\n", "lambda: -x\n", {"f", "f.<locals>.<lambda>"}),
        ("a + 7", "a + 7.0", {"A.g"}),
        ("x + 9", "x - 9", {"<lambda>"}),
        ("z = 5", "z = 6", None),
        ("a=1", "a=True", None),
        ("y = 3", "y = 3  # that is all", set()),
    ],
)
def test_functions_that_differ(old: str, new: str, functions: set[str] | None) -> None:
    codes = (compile(text, "f.py", "exec") for text in (CODES, CODES.replace(old, new)))
    found = changed_functions(*codes)
    assert (None if found is None else {name for name, _ in found}) == functions


def test_tests_about_the_file_come_first_and_the_budget_ends_the_list() -> None:
    maps = {
        "tests/test_a.py": {
            "tests": [["quick", 0.1], ["near", 0.2], ["long", 9.0], ["elsewhere", 0.1]],
            "lines": {"f.py": {"3": [0, 1, 2], "4": [1], "9": [3]}, "g.py": {str(n): [0] for n in range(50)}},
            "total": {0: 51, 1: 2, 2: 1, 3: 1},
            "text": "",
        },
        "tests/test_b.py": {
            "tests": [["other", 0.1], ["t[Thing]", 0.1]],
            "lines": {},
            "total": {},
            "text": "def f(): assert Thing(1)",
        },
    }
    mutant = Mutant("", "", ((3, 3), (2, 4)))
    assert mutation_map.tests_of(mutant, "f.py", maps) == ["near", "quick", "long"]
    assert mutation_map.tests_of(mutant, "f.py", maps, budget=1.0) == ["near", "quick"]
    assert mutation_map.tests_of(Mutant("", "", ((7, 7), (6, 10))), "f.py", maps) == ["elsewhere"]
    assert set(mutation_map.tests_of(Mutant("", "", ((1, 1),)), "f.py", maps)) == {
        "quick",
        "near",
        "long",
        "elsewhere",
    }
    assert mutation_map.tests_of(mutant, "h.py", maps) == []
    default = Mutant("", "", ((1, 1), (9, 9)), ("Thing",))
    assert mutation_map.tests_of(default, "f.py", maps) == ["elsewhere", "t[Thing]", "other"]


def test_mutants_are_the_same_again_and_spare_texts() -> None:
    pytest.importorskip("cosmic_ray", reason="install the extra `mutants`")
    from mutation_choice import mutants

    made = mutants(SOURCE, "sizes.py", number=6)
    assert made == mutants(SOURCE, "sizes.py", number=6) != mutants(SOURCE, "sizes.py", number=6, seed=1)
    assert [m.name.partition(":")[0] for m in made[:3]].count("larger") == 1  # functions take turns
    names = {m.name.partition(":")[0]: m.names for m in mutants(SOURCE, "sizes.py", number=99)}
    assert names == {"larger": (), "unseen": (), "module": ("LIMIT",)}
    everything = {m.name for m in mutants(SOURCE, "sizes.py", number=99)}
    assert "module: LIMIT = 10 -> LIMIT = 11" in everything or "module: LIMIT = 10 -> LIMIT = 9" in everything
    assert not [name for name in everything if "__all__" in name or "A module" in name or "negative" in name]
    assert not [name for name in everything if "int &" in name]
    edited = mutants(SOURCE.replace('"""A module', '"""Another module') + "\n\nOTHER = None\n", "sizes.py", number=6)
    assert [m.name for m in edited] == [m.name for m in made]


def test_the_map_says_which_test_reaches_a_line(project: Path) -> None:
    pytest.importorskip("coverage", reason="install the extra `mutants`")
    failing = TESTS + "def test_failing(): assert larger(2, 1) == 1\ndef test_other(): pass\n"
    (project / "tests/test_sizes.py").write_text(failing)
    kept = project / "build/mutants"
    found = current_map("tests/test_sizes.py", project, ["planted_room/sizes.py"], kept)
    names = [name.partition("::")[2] for name, _ in found["tests"]]
    assert names == ["test_larger", "test_smaller", "test_other"]
    assert found["lines"] == {"planted_room/sizes.py": {"8": [0, 1], "10": [0, 1]}}
    assert set(found["imported"]["planted_room/sizes.py"]) >= {3, 4, 7, 13}
    (kept / "test_sizes.json").write_text(json.dumps({**found, "tests": []}))
    assert current_map("tests/test_sizes.py", project, [], kept)["tests"] == []  # kept
    (project / "planted_room/sizes.py").write_text(SOURCE + "# changed\n")
    assert current_map("tests/test_sizes.py", project, ["planted_room/sizes.py"], kept) == {
        **found,
        "tests": [[name, pytest.approx(seconds, abs=1)] for name, seconds in found["tests"]],
        "files": {f: digest(project / f) for f in found["files"]},
    }
