"""Error messages as users see them: one paragraph with setting and remedy; bugs keep their traceback."""

import difflib
import inspect
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path

from adversarial_lightning.checkpoints import old_names
from adversarial_lightning.errors import UserError

# Lines of jsonargparse that say nothing about the cause.
_NOISE = re.compile(
    r"(- )?(Does not validate against|Subtypes: |Errors:$|Given value|Expected a <class 'NoneType'>"
    r"|Not a valid subclass of|Subclass types expect|a class path \(str\)|a dict with"
    r"|Expected a path but .* either not accessible)"
)


def exits(main: Callable[[], object]) -> int:
    """Run `main` and return its exit status, or 2 after a paragraph on stderr for an error meant for the user."""
    try:
        status = main()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        paragraph = friendly(error)
        if paragraph is None:
            raise
        print(f"error: {paragraph}", file=sys.stderr)
        return 2


def friendly(error: BaseException) -> str | None:
    """One paragraph for an error that tells the user something, None for a bug.

    Meant for users: what jsonargparse says about options and files (its true cause first), `UserError`, Lightning's
    word for a mistake in the settings, and what the operating system refuses.
    """
    # A constructor's error inside a Union comes back wrapped by jsonargparse.
    if isinstance(error, ArgumentError) or "Does not validate against any of the Union subtypes" in str(error):
        return shorten(str(error))
    if isinstance(error, UserError | OSError) or type(error).__name__ == "MisconfigurationException":
        return " ".join(str(error).split()) or None
    return None


def shorten(message: str) -> str:
    """Shorten jsonargparse's report of several lines to one paragraph: the true cause first, then where.

    The report is an indented tree; of a Union it lists the complaint of every member. The deepest complaint is that of
    the member that was meant.
    """
    path: list[tuple[int, str, str]] = []  # (indentation, kind, name) of the ancestors of the current line
    best: tuple[int, str, list[tuple[int, str, str]]] = (-1, "", [])
    for line in message.splitlines():
        text = line.strip()
        if not text or _NOISE.match(text):
            continue
        depth = len(line) - len(line.lstrip())
        path = [step for step in path if step[0] < depth]
        while step := re.match(r"(?:- )?(Parser key|Problem with given class_path) ['\"]([^'\"]+)['\"]:\s*", text):
            path.append((depth, "key" if step[1] == "Parser key" else "class", step[2]))
            text = text[step.end() :]
        text = re.sub(r"^- ", "", text)
        if text and depth > best[0]:
            best = (depth, text, list(path))
    _, cause, where = best
    if not cause:
        return " ".join(message.split())
    cause = re.sub(r"Got value: (.{200}).*", r"Got value: \1...", cause, flags=re.S)
    given = re.search(r"^\s*Given value: (.{1,80})$", message, re.M)
    if cause.startswith("Expected a <class") and "value" not in cause and given:
        cause += f", not {given[1].strip()}"
    owner = next((name for _, kind, name in reversed(where) if kind == "class"), "")
    keys = ".".join(name for _, kind, name in where if kind == "key")
    text = _plainer(cause, owner)
    place = [f"in {keys}"] * bool(keys) + [f"of {owner}"] * (bool(owner) and owner not in text)
    return (text + (f" ({', '.join(place)})" if place else "")).replace("adversarial_lightning.", "")


def _plainer(cause: str, owner: str) -> str:
    if owner.endswith((".yaml", ".yml")):  # taken for a class, because there is no such file
        return f"{owner}: no such file"
    if found := re.match(r"(?:Expected a dot import path string|Unexpected import path format): (\S+?)(\.? |$)", cause):
        name = found[1]
        kind = "no such file" if name.endswith((".yaml", ".yml", ".json")) else "no such class"
        return f"{name}: {kind}{_meant(name, _catalogue())}"
    if found := re.match(r"Option '([^']+)' is not accepted", cause):
        renamed = old_names.argument(owner, found[1])
        if renamed and renamed.partition(".")[0] in _parameters(owner):
            return f"{found[0]}: it is called {renamed} now"
        return f"{found[0]}{_meant(found[1], _parameters(owner))}"
    if found := re.match(r"Expected a <class '\w+'>.*[:,] (?:not )?(\S+\.ya?ml)$", cause):
        return f"{found[1]}: " + ("its content does not fit here" if Path(found[1]).exists() else "no such file")
    return cause


def _meant(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name.rpartition(".")[2], candidates, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _catalogue() -> list[str]:
    """Names that the imported rooms list."""
    rooms = [m for name, m in sys.modules.items() if re.fullmatch(r"adversarial_lightning\.\w+", name)]
    return sorted({name for room in rooms for name in getattr(room, "__all__", [])})


def _parameters(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(cls).parameters) if inspect.isclass(cls) else []
