"""The page of a paper, in markdown and HTML: its tables with a verdict a cell, its claims, its symbols."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from adversarial_lightning.evaluation.report.formatting import table as markdown_table
from adversarial_lightning.evaluation.report.html import page
from adversarial_lightning.reproduce.papers import verdict
from adversarial_lightning.reproduce.papers.digests import same_version
from adversarial_lightning.reproduce.papers.judged import Line, TestedClaim, claims, count, lines
from adversarial_lightning.reproduce.papers.paper import Paper, Table
from adversarial_lightning.reproduce.papers.plan import Places

RULE = (
    "Confirmed: the printed number lies in our 95 % interval, half of which is at most 3 points (of a length, 3 %), "
    "and neither the attack nor what was reduced flatters our number. Contradicted: it lies outside, and nothing that "
    "was reduced explains on which side. Else not decided at this scale, or not tried. An order of two rows is tested "
    "in pairs on the same images (McNemar, 5 %, corrected by Holm over the table); none is stated that the test does "
    "not show. Intervals are over images; where n is all test images, the interval is what other images would give."
)
HEADS = ("row", "column", "printed", "ours", "95 % interval", "n", "seeds", "scale", "audit", "verdict")
CLAIM_HEADS = ("claim", "under", "scale", "verdict", "test")
DECISIVE = ("confirmed", "contradicted")


@dataclass(frozen=True)
class Section:
    """One table or figure on the page: paragraphs, rows of text with the word of their verdict, claims, notes."""

    heading: str
    paragraphs: Sequence[str]
    picture: str
    rows: Sequence[tuple[list[str], str]]
    claims: Sequence[tuple[list[str], str]]
    notes: Sequence[str]


def sections(paper: Paper, places: Places) -> list[Section]:
    """All tables and figures. Raises UserError where a record does not hold what a column asks for."""
    return [_section(paper, places, key) for key in paper.tables]


def _section(paper: Paper, places: Places, key: str) -> Section:
    table = paper.tables[key]
    made = lines(paper, places, key)
    paragraphs = [table.note] if table.note else []
    paragraphs += [f"Not made here: {table.reason}"] if table.reason else []
    paragraphs += [f"Drawn by {table.figure}."] if table.figure else []
    notes = sorted({f"{line.row}: {line.note}" for line in made if line.note} | _column_notes(table))
    older = _older(made)
    return Section(
        f"{'' if key[:1].isalpha() else 'Table '}{key}: {table.title}",
        paragraphs,
        table.picture,
        [(_cells(line), line.verdict.word) for line in made],
        [(_claim_cells(tested), tested.verdict.word) for tested in claims(paper, places, key)],
        [*notes, older] if older else notes,
    )


def summary(paper: Paper, places: Places) -> str:
    """How many printed numbers and claims have which verdict, in words."""
    counts = count(paper, places)
    return ", ".join(f"{counts[word]} {word}" for word in get_args(verdict.Word))


def source(paper: Paper) -> str:
    """Authors, year, source and the authors' code."""
    code = f" Authors' code: {paper.code}." if paper.code else ""
    return f"{paper.authors}, {paper.year}. {paper.source}.{code}"


def text(paper: Paper, places: Places) -> str:
    """The page in markdown."""
    parts = [
        f"# {paper.title}",
        source(paper),
        f"`lightning paper {paper.name}` makes this page. Printed numbers and claims: {summary(paper, places)}.",
        RULE,
        *([paper.note] if paper.note else []),
    ]
    for section in sections(paper, places):
        parts += [f"## {section.heading}", *section.paragraphs]
        parts += [f"![{section.heading}]({section.picture})"] if section.picture else []
        for heads, verdicts in ((HEADS, section.rows), (CLAIM_HEADS, section.claims)):
            cells = [_bold(*row) for row in verdicts]
            parts += ["\n".join(markdown_table(list(heads), cells))] if cells else []
        parts += ["\n".join(f"- {note}" for note in section.notes)] if section.notes else []
    if paper.symbols:
        symbols = [[symbol, ours] for symbol, ours in paper.symbols.items()]
        parts += ["## Symbols", "\n".join(markdown_table(["paper", "here"], symbols))]
    return "\n\n".join(parts) + "\n"


def html(paper: Paper, places: Places) -> str:
    """The page as one HTML file."""
    found = sections(paper, places)
    names = {"heads": HEADS, "claim_heads": CLAIM_HEADS, "rule": RULE, "source": source(paper)}
    return page("paper.html", title=paper.title, paper=paper, summary=summary(paper, places), sections=found, **names)


def _bold(cells: list[str], word: str) -> list[str]:
    """Row of a markdown table, with a decisive verdict in bold."""
    if word not in DECISIVE:
        return cells
    return [cell.replace(word, f"**{word}**", 1) if cell.startswith(word) else cell for cell in cells]


def _column_notes(table: Table) -> set[str]:
    return {f"{name}: {column.note}" for name, column in table.columns.items() if column.note}


def _older(made: Sequence[Line]) -> str:
    """Rows that were judged by other code than the newest one, by name."""
    there = [line for line in made if line.number is not None]
    by_column: dict[str, list[Line]] = {}
    for line in there:
        by_column.setdefault(line.column, []).append(line)
    old = []
    for column, same in by_column.items():
        newest = max(same, key=lambda line: line.number.date if line.number else "").number
        old += [
            f"{line.row} ({column})"
            for line in same
            if newest and line.number and not same_version(line.number.code, newest.code)
        ]
    return f"Made by an earlier version of the code than the newest row: {', '.join(old)}." if old else ""


def _claim_cells(tested: TestedClaim) -> list[str]:
    claim, said = tested.claim, tested.verdict
    words = claim.text or f"{claim.better} better than {claim.than}"
    return [words, claim.column, tested.scale, said.word, said.reason]


def _cells(line: Line) -> list[str]:
    said = line.verdict.word + (f": {line.verdict.reason}" if line.verdict.reason else "")
    printed = "" if line.printed is None else str(line.printed)
    number = line.number
    if number is None or number.collapsed or number.value is None:
        return [line.row, line.column, printed, "", "", "", "", line.scale or "", "", said]
    unit = 100 if line.share else 1
    digits = 2 if line.share and number.n >= 5000 else 1 if line.share else 4
    spread = f" ± {unit * number.spread:.{digits}f}" if number.spread is not None else ""
    low, high = number.interval or (0.0, 0.0)
    bounds = f"[{unit * low:.{digits}f}, {unit * high:.{digits}f}]" if number.interval else ""
    n = f"all {number.n:,}" if number.n == number.of else f"{number.n:,}"
    return [
        *(line.row, line.column, printed, f"{unit * number.value:.{digits}f}{spread}", bounds, n),
        *(str(number.seeds), line.scale or "", number.audit, said),
    ]
