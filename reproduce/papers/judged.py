"""The lines of a paper's tables: printed number, ours, and a verdict; its claims, tested in pairs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adversarial_lightning.evaluation.outcomes.types import Flags
from adversarial_lightning.reproduce.papers import numbers, verdict
from adversarial_lightning.reproduce.papers.digests import same_version
from adversarial_lightning.reproduce.papers.numbers import Number
from adversarial_lightning.reproduce.papers.paper import SCALES, Claim, Column, Paper, Row, Scale, trainings
from adversarial_lightning.reproduce.papers.plan import Cell, Places, Plan
from adversarial_lightning.reproduce.papers.verdict import Verdict


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
            if len(there) == 2 and cells[name, column, "paper"].evaluations == cells[name, column, "cores"].evaluations:
                there = there[:1]  # one training at both scales
            recorded = [s for s in there if numbers.of_cell(cells[name, column, s], spec) is not None]
            for scale in recorded:
                cell = cells[name, column, scale]
                found.append(_line(cell, spec, row, places))
            if not recorded:
                why = row.reason or _cost(cells, name, column, there)
                share = spec.percent
                found.append(Line(name, column, None, printed, None, Verdict("not tried", why), share, row.note))
    return found


def _cost(cells: Mapping[tuple[str, str, Scale], Cell], row: str, column: str, there: Sequence[Scale]) -> str:
    costs = []
    for scale in there:
        evaluations = cells[row, column, scale].evaluations
        fits = {fit.run: fit.minutes for e in evaluations for fit in (*e.fit.before, e.fit)}
        cost = sum(fits.values()) + sum(e.minutes for e in evaluations)
        costs.append(f"{cost:,.0f} CPU-minutes at scale {scale}")
    return "; ".join(costs) or "there is no experiment for it"


def _line(cell: Cell, column: Column, row: Row, places: Places) -> Line:
    printed = row.printed.get(cell.column)
    number = numbers.of_cell(cell, column)
    assert number is not None
    training = trainings(places.papers)[cell.evaluations[0].fit.name]
    if number.collapsed:
        said = Verdict(verdict.UNDECIDED, "the fit collapsed: no number")
    elif number.void:
        said = Verdict(verdict.UNDECIDED, f"the number says nothing about the model: {number.void}")
    elif printed is None:
        said = Verdict(verdict.UNDECIDED, "not printed in the paper")
    elif number.value is None:
        said = Verdict(verdict.UNDECIDED, "there is nothing to measure: no image of that kind")
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
            explains=training.can_explain(cell.column),
            leaves_out=training.leaves_out,
            rounding=verdict.rounding(printed) / unit,
            spread=row.spread.get(cell.column, 0.0) / unit,
        )
    return Line(cell.row, cell.column, cell.scale, printed, number, said, column.percent, row.note)


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
            alike = known[0].leaves_out == known[1].leaves_out
            said = verdict.of_order(_flags(one), _flags(other), p, alike=alike, leaves_out=known[0].leaves_out)
            found.append(TestedClaim(claim, scale, said))
        for claim, one, other, _ in pairs:
            if why := _unpaired(one, other):
                found.append(TestedClaim(claim, scale, Verdict(verdict.UNDECIDED, why)))
    tried = [t.claim for t in found]
    missing = Verdict("not tried", "a row is missing")
    return found + [TestedClaim(claim, "cores", missing) for claim in table.claims if claim not in tried]


def _flags(number: Number) -> Flags:
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
    return "" if same_version(one.code, other.code) else "the rows were made by different versions of the code"


def count(paper: Paper, places: Places) -> Counter[str]:
    """How many printed numbers and claims of a paper have which verdict."""
    printed = [line for key in paper.tables for line in lines(paper, places, key) if line.printed is not None]
    tested = [tested for key in paper.tables for tested in claims(paper, places, key)]
    return Counter([line.verdict.word for line in printed] + [claim.verdict.word for claim in tested])
