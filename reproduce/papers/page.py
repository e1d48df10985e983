"""The page of a paper: its tables with the printed number, ours, and a verdict a cell; its claims; its symbols."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from adversarial_lightning.evaluation.report.formatting import table as markdown_table
from adversarial_lightning.reproduce.papers import numbers, verdict
from adversarial_lightning.reproduce.papers.numbers import Number
from adversarial_lightning.reproduce.papers.paper import SCALES, Claim, Column, Paper, Scale, Table, trainings
from adversarial_lightning.reproduce.papers.plan import Cell, Places, Plan
from adversarial_lightning.reproduce.papers.verdict import Verdict

_RULE = (
    "Verdicts follow a rule. *Confirmed*: the printed number lies in our 95 % interval, half of which is at most 3 "
    "points (of a length, 3 %), and neither the attack nor what was reduced flatters our number. *Contradicted*: it "
    "lies outside, and nothing that was reduced explains on which side. Else *not decided at this scale*, or *not "
    "tried*. An order of two rows is tested in pairs on the same images (McNemar, 5 %, corrected by Holm over the "
    "table); none is stated that the test does not show. Intervals are over images; where n is all test images, it is "
    "what another test set of that size would give."
)


@dataclass(frozen=True)
class Line:
    """One line of a table on the page: a cell at one scale, its number if it is recorded, and the verdict."""

    row: str
    column: str
    scale: Scale | None
    printed: float | str | None
    number: Number | None
    verdict: Verdict
    share: bool
    note: str = ""


@dataclass(frozen=True)
class TestedClaim:
    """A claim in words at one scale, and its verdict."""

    claim: Claim
    scale: Scale
    verdict: Verdict


def lines(paper: Paper, places: Places, key: str) -> list[Line]:
    """All lines of one table."""
    table, found = paper.tables[key], []
    plans = {scale: Plan(paper, places, scale, [key]) for scale in SCALES}
    cells = {(c.row, c.column, scale): c for scale, plan in plans.items() for c in plan.cells}
    for name, row in table.rows.items():
        for column in table.columns_of(row):
            spec, printed = table.columns[column], row.printed.get(column)
            there = [scale for scale in SCALES if (name, column, scale) in cells]
            recorded = [s for s in there if numbers.of_cell(cells[name, column, s], spec) is not None]
            for scale in recorded:
                cell = cells[name, column, scale]
                found.append(_line(cell, spec, printed, places, note=row.note))
            if not recorded:
                why = row.reason or _cost(cells, name, column, there)
                share = spec.percent
                found.append(Line(name, column, None, printed, None, Verdict("not tried", why), share, row.note))
    return found


def _cost(cells: Mapping[tuple[str, str, Scale], Cell], row: str, column: str, there: Sequence[Scale]) -> str:
    costs = []
    for scale in there:
        evaluations = cells[row, column, scale].evaluations
        fits = {e.fit.run: e.fit.minutes for e in evaluations}
        cost = sum(fits.values()) + sum(e.minutes for e in evaluations)
        costs.append(f"{cost:,.0f} CPU-minutes at scale {scale}")
    return "; ".join(costs) or "there is no experiment for it"


def _line(cell: Cell, column: Column, printed: float | str | None, places: Places, note: str) -> Line:
    number = numbers.of_cell(cell, column)
    assert number is not None
    training = trainings(places.papers)[cell.evaluations[0].fit.name]
    if number.collapsed:
        said = Verdict(verdict.UNDECIDED, "the fit collapsed: no number")
    elif printed is None:
        said = Verdict(verdict.UNDECIDED, "not printed in the paper")
    elif number.interval is None:
        said = Verdict(verdict.UNDECIDED, "there is no interval")
    else:
        unit = 100 if column.percent else 1
        said = verdict.of_number(
            float(printed) / unit,
            number.value,
            number.interval,
            share=column.percent,
            better=column.better,
            attack=column.attack,
            explains=training.explains,
            leaves_out=training.leaves_out,
            rounding=verdict.rounding(printed) / unit,
        )
    return Line(cell.row, cell.column, cell.scale, printed, number, said, column.percent, note)


def claims(paper: Paper, places: Places, key: str) -> list[TestedClaim]:
    """The claims of a table, tested at every scale at which both rows are recorded; p values corrected together."""
    table, found = paper.tables[key], []
    for scale in SCALES:
        cells = {(c.row, c.column): c for c in Plan(paper, places, scale, [key]).cells}
        pairs = []
        for claim in table.claims:
            column = table.columns[claim.column]
            both = [cells.get((row, claim.column)) for row in (claim.better, claim.than)]
            made = [numbers.of_cell(cell, column) for cell in both if cell is not None]
            if len(made) == 2 and made[0] is not None and made[1] is not None:
                pairs.append((claim, made[0], made[1], [c.evaluations[0].fit for c in both if c]))
        tested = [(c, one, other, fits) for c, one, other, fits in pairs if not _unpaired(one, other)]
        ps = verdict.holm([verdict.p_of_order(_flags(one), _flags(other)) for _, one, other, _ in tested])
        for (claim, one, other, fits), p in zip(tested, ps, strict=True):
            known = [trainings(places.papers)[fit.name] for fit in fits]
            alike = known[0].explains == known[1].explains and known[0].leaves_out == known[1].leaves_out
            said = verdict.of_order(_flags(one), _flags(other), p, alike=alike, leaves_out=known[0].leaves_out)
            found.append(TestedClaim(claim, scale, said))
        for claim, one, other, _ in pairs:
            if why := _unpaired(one, other):
                found.append(TestedClaim(claim, scale, Verdict(verdict.UNDECIDED, why)))
    tried = [t.claim for t in found]
    missing = Verdict("not tried", "a row is missing")
    return found + [TestedClaim(claim, "cores", missing) for claim in table.claims if claim not in tried]


def _flags(number: Number) -> numbers.Flags:
    assert number.flags is not None
    return number.flags


def _unpaired(one: Number, other: Number) -> str:
    """Why two numbers cannot be tested in pairs; empty where they can."""
    if one.collapsed or other.collapsed:
        return "the fit of a row collapsed"
    if one.flags is None or other.flags is None:
        return "it is not known of each image"
    if one.test != other.test:
        return "the rows were measured on different images, or by different attacks"
    return "" if one.code == other.code else "the rows were made by different versions of the code"


def count(paper: Paper, places: Places) -> Counter[str]:
    """How many printed numbers and claims of a paper have which verdict."""
    printed = [line for key in paper.tables for line in lines(paper, places, key) if line.printed is not None]
    tested = [tested for key in paper.tables for tested in claims(paper, places, key)]
    return Counter([line.verdict.word for line in printed] + [claim.verdict.word for claim in tested])


def text(paper: Paper, places: Places) -> str:
    """The page in markdown. Raises UserError where a record does not hold what a column asks for."""
    body = [part for key in paper.tables for part in _table(paper, places, key)]
    counts = count(paper, places)
    words = ", ".join(f"{counts[word]} {word}" for word in get_args(verdict.Word))
    code = f" Authors' code: {paper.code}." if paper.code else ""
    head = [
        f"# {paper.title}",
        f"{paper.authors}, {paper.year}. {paper.source}.{code}",
        f"`lightning paper {paper.name}` makes this page. Printed numbers and claims: {words}.",
        _RULE,
        *([paper.note] if paper.note else []),
    ]
    symbols = []
    if paper.symbols:
        rows = [[symbol, ours] for symbol, ours in paper.symbols.items()]
        symbols = ["## Symbols", "\n".join(markdown_table(["paper", "here"], rows))]
    return "\n\n".join([*head, *body, *symbols]) + "\n"


def _table(paper: Paper, places: Places, key: str) -> Iterator[str]:
    table = paper.tables[key]
    kind = "" if key[:1].isalpha() else "Table "
    yield f"## {kind}{key}: {table.title}"
    if table.note:
        yield table.note
    if table.reason:
        yield f"Not made here: {table.reason}"
    if table.picture:
        yield f"![{table.title}]({table.picture})"
    elif table.figure:
        yield f"Drawn by `{table.figure}`."
    if table.rows:
        made = lines(paper, places, key)
        rows = [_cells(line) for line in made]
        heads = ["row", "column", "printed", "ours", "95 % interval", "n", "seeds", "scale", "audit", "verdict"]
        yield "\n".join(markdown_table(heads, rows))
        if notes := {f"{line.row}: {line.note}" for line in made if line.note} | _column_notes(table):
            yield "\n".join(f"- {note}" for note in sorted(notes))
        if older := _older(made):
            yield older
    if table.claims:
        tested = claims(paper, places, key)
        rows = [[_claim(t.claim), t.claim.column, t.scale, t.verdict.word, t.verdict.reason] for t in tested]
        yield "\n".join(markdown_table(["claim", "under", "scale", "verdict", "test"], rows))


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
        old += [f"{line.row} ({column})" for line in same if newest and line.number and line.number.code != newest.code]
    return f"Made by an earlier version of the code than the newest row: {', '.join(old)}." if old else ""


def _claim(claim: Claim) -> str:
    return claim.text or f"{claim.better} better than {claim.than}"


def _cells(line: Line) -> list[str]:
    reason = f": {line.verdict.reason}" if line.verdict.reason else ""
    said = f"{'**' if line.verdict.word in ('confirmed', 'contradicted') else ''}{line.verdict.word}"
    said += f"{'**' if said.startswith('**') else ''}{reason}"
    printed = "" if line.printed is None else str(line.printed)
    if line.number is None or line.number.collapsed:
        return [line.row, line.column, printed, "", "", "", "", line.scale or "", "", said]
    number, unit = line.number, 100 if line.share else 1
    digits = 2 if line.share and number.n >= 5000 else 1 if line.share else 4
    spread = f" ± {unit * number.spread:.{digits}f}" if number.spread is not None else ""
    bounds = (
        f"[{unit * number.interval[0]:.{digits}f}, {unit * number.interval[1]:.{digits}f}]" if number.interval else ""
    )
    n = f"all {number.n:,}" if number.n == number.of else f"{number.n:,}"
    return [
        *(line.row, line.column, printed, f"{unit * number.value:.{digits}f}{spread}", bounds, n),
        *(str(number.seeds), line.scale or "", number.audit, said),
    ]
