"""``lightning paper``: make the tables of a paper, and the page that says what of it was confirmed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import yaml
from filelock import FileLock
from jsonargparse import ArgumentParser

from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.cli.messages import exits
from adversarial_lightning.errors import UserError
from adversarial_lightning.reproduce.papers import page
from adversarial_lightning.reproduce.papers.paper import PAPERS, load, names
from adversarial_lightning.reproduce.papers.plan import Places, Plan
from adversarial_lightning.reproduce.papers.work import Work

_ABOUT = (
    "Make the tables of a paper: fit what is not fitted, evaluate, write the page with a verdict a cell. The same "
    "command again goes on; any number of processes and machines with the same folders can work at once. "
    "Without a paper, lists those that there are. Exit status: 0 done, 1 a fit or an evaluation failed, 2 an error of "
    "yours."
)


def options() -> ArgumentParser:
    """The options of ``lightning paper``."""
    parser = ArgumentParser(prog="lightning paper", description=_ABOUT, exit_on_error=False)
    add = parser.add_argument
    add("paper", nargs="?", type=str | None, help="name, or a file of your own")
    add("--table", type=list[str], default=[], help="only these tables or figures: --table 2, or '[2, 3]'")
    add("--only", type=list[str], default=[], help="only these rows: --only ATENT, or '[ATENT, PGD-AT]'")
    add("--scale", type=Literal["paper", "cores"], default="cores", help="the paper's, or recipes for 2 cores")
    add("--dry-run", type=bool, nargs="?", const=True, default=False, help="only say what is missing and what it costs")
    add("--jobs", type=int, default=1, help="fits and evaluations at once")
    add("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    add("--data-root", type=Path | None, help="folder of the data; default: that of the experiments")
    add("--output", type=Path, default=Path("results/papers"), help="folder of the records and pages")
    return parser


def paper(argv: list[str], tell: Callable[[str], None] = print) -> int:
    """Make a paper's tables, or say what that takes."""
    given = options().parse_args([_listed(word, argv[i - 1] if i else "") for i, word in enumerate(argv)])
    if given.paper is None:
        for name in names():
            about = load(name)
            tell(f"{name}: {about.title} ({about.authors}, {about.year}); {len(about.tables)} tables and figures")
        return 0
    if given.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {given.jobs}")
    found = load(given.paper)
    papers = Path(given.paper).parent if given.paper.endswith((".yaml", ".yml")) else PAPERS
    runs, output = given.runs.absolute(), given.output.absolute()
    places = Places(runs, output, given.data_root and given.data_root.absolute(), papers.absolute())
    plan = Plan(found, places, given.scale, given.table, given.only)
    for line in told(plan):
        tell(line)
    if given.dry_run:
        return 0
    failures = Work(plan, given.jobs, tell).run()
    (output / "records").mkdir(parents=True, exist_ok=True)
    with FileLock(output / "records" / f"{found.name}.lock"):  # of several processes the last one sees all records
        for ending, made in (("md", page.text), ("html", page.html)):
            write_whole(output / f"{found.name}.{ending}", made(found, places))
    tell(f"page: {os.path.relpath(output / found.name)}.md, .html")
    return 1 if failures else 0


def told(plan: Plan) -> list[str]:
    """What there is, what is missing, and what that costs, in lines."""
    evaluations = plan.evaluations
    done = sum(e.state == "done" for e in evaluations)
    lines = [f"{len(plan.cells)} cells at scale {plan.scale}: {done} of {len(evaluations)} evaluations are recorded"]
    lines += [f"  {t.state:6} {_minutes(t.minutes):>7} min  {t.title}" for t in plan.tasks if t.state != "done"]
    lines += ["forecast: " + (f"{_minutes(plan.missing)} CPU-minutes on one core" if plan.missing else "nothing to do")]
    return lines


def _minutes(minutes: float) -> str:
    return f"{minutes:,.0f}" if minutes >= 10 else f"{minutes:.1f}"


def _listed(word: str, option: str) -> str:
    """Names as the list that an option takes: 2 and [2, 3.1a] as texts; one name may hold commas."""
    if option in ("--table", "--only"):
        bracketed = word.startswith("[") and word.endswith("]")
        names = yaml.safe_load(word) if bracketed else [word]
        return json.dumps([str(name) for name in names])
    for name in ("--table=", "--only="):
        if word.startswith(name):
            return name + _listed(word.removeprefix(name), name.removesuffix("="))
    return word


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 1 a task failed, 2 an error of the user's, 143 after SIGTERM."""
    return exits(lambda: paper(argv))
