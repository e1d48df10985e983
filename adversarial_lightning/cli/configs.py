"""Packaged configurations: found by name, listed with title, cost and expected numbers."""

import difflib
import re
import sys
from pathlib import Path

from adversarial_lightning.configs import FOLDER
from adversarial_lightning.errors import UserError

# Where the value of an option is looked up, in this order.
_FOLDERS = {
    "--config": ("experiments", "trainer"),
    "--suite": ("suites",),
    "--data": ("data",),
    "--network": ("networks",),
    "--defenses": ("defenses",),
    "--detector": ("detectors",),
    "--attack": ("attacks",),
}
_CLASSES = ("--data", "--network", "--detector", "--attack")  # a value may also be the name of a class


def resolved(argv: list[str]) -> list[str]:
    """`argv` with the names of packaged configurations replaced by their paths; a file that exists comes first.

    Raises UserError for a name that is neither a file nor packaged.
    """
    found, option = [], ""
    for word in argv:
        if option:
            found.append(find(option, word))
            option = ""
            continue
        name, equals, value = word.partition("=")
        if name in _FOLDERS and equals:
            found.append(f"{name}={find(name, value)}")
            continue
        option = word if word in _FOLDERS else ""
        found.append(word)
    return found


def find(option: str, value: str) -> str:
    """Path of the file that `value` of `option` names; `value` itself where it is a class or written-out YAML."""
    if value in ("null", "None") or not re.fullmatch(r"[\w./+-]+", value) or Path(value).exists():
        return value
    name = re.sub(r"\.ya?ml$", "", value)
    inside = re.sub(r"^(\./)?configs/", "", name)
    if (path := FOLDER / f"{inside}.yaml").is_file():
        return str(path)
    for folder in _FOLDERS[option]:
        for path in sorted((FOLDER / folder).rglob("*.yaml")):  # also in folders inside: experiments/small
            if str(path).endswith(f"/{name}.yaml"):
                return str(path)
    if option in _CLASSES and re.fullmatch(r"(\w+\.)*[A-Z]\w*", value):
        return value
    known = [path.stem for folder in _FOLDERS[option] for path in sorted((FOLDER / folder).rglob("*.yaml"))]
    close = difflib.get_close_matches(Path(name).name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{value}: no such file{hint} ({option} takes a path or the name of a packaged configuration; "
        "`lightning configs` lists them)"
    )


def title(path: Path) -> str:
    """First sentence of a file's header, over as many lines as it has."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or re.match(r"# [a-z]+(, [^:]*)?:", line):  # command:, cost:, expected, ...:
            break
        lines.append(line[2:].strip())
    return re.split(r"(?<=[\w%)]\.) (?=[A-Z\"])(?<!al\. )(?<!Eq\. )", " ".join(lines))[0]


def entry(path: Path, key: str) -> str:
    """Text of a file's header under `key` (command, cost, expected); empty where there is none."""
    header = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
    found = re.search(rf"^# {key}:\s*(.*(?:\n#   .*)*)", header[0] if header else "", re.M)
    return " ".join(line.lstrip("# ").strip() for line in found[1].splitlines()) if found else ""


def main(argv: list[str]) -> int:
    """``lightning configs [NAME or FOLDER ...]``: list all, the files of a folder, or print one file."""
    if argv[:1] in (["-h"], ["--help"]):
        folders = ", ".join(sorted(p.name for p in FOLDER.iterdir() if p.is_dir() and p.name[0] not in "_."))
        print(f"usage: lightning configs [NAME ...]\n\nFolders: {folders}. The name of a file prints it.")
        return 0
    for name in argv or ["experiments", "suites"]:
        if (FOLDER / name).is_dir():
            _list(FOLDER / name)
            continue
        bare = re.sub(r"\.ya?ml$", "", Path(name).name)  # no stem: er_table1_0.03
        files = sorted(FOLDER.rglob(f"{bare}.yaml"))
        if not files:
            close = difflib.get_close_matches(name, [p.stem for p in FOLDER.rglob("*.yaml")], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            print(f"error: there is no packaged configuration {name!r}{hint}", file=sys.stderr)
            return 2
        for path in files:
            print(f"# {path}\n{path.read_text(encoding='utf-8')}", end="")
    return 0


def _list(folder: Path) -> None:
    print(f"{folder.name}:")
    for path in sorted(folder.rglob("*.yaml")):
        print(f"  {path.stem}: {title(path)}")
        for key in ("cost", "expected"):
            if text := entry(path, key):
                print(f"      {key}: {text}")
