"""The number of a cell, read from the records of its evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.statistics import flags_of, wilson
from adversarial_lightning.evaluation.outcomes.types import Flags
from adversarial_lightning.reproduce.papers.paper import Column
from adversarial_lightning.reproduce.papers.plan import Cell
from adversarial_lightning.reproduce.papers.records import Record

_COLLAPSED = 1.5  # a clean accuracy up to so many times chance is a fit that collapsed


@dataclass(frozen=True)
class Number:
    """A cell's number in the column's unit, a share in [0, 1]: the mean over `seeds`, their standard deviation.

    `value` is None where there is nothing to measure, such as the length of perturbations where none was found.

    `interval` is 95 %, over images: the hull of the seeds' ones. Where all test images were used it says what another
    test set of that size would give (Wilson), because the printed number is of another training too. `audit` holds what
    the audit said, "" where there was none, `void` why nothing is left of the number. `flags` say which samples are
    robust (of the first seed; None of what is no share of samples), `test` which samples they are.
    """

    value: float | None
    interval: tuple[float, float] | None
    n: int
    of: int
    seeds: int
    spread: float | None
    audit: str
    epoch: int | None
    collapsed: bool
    void: str
    flags: Flags | None
    test: tuple[Any, ...]
    code: Mapping[str, str]
    date: str


def of_cell(cell: Cell, column: Column) -> Number | None:
    """The number of a cell; None where not every seed is recorded."""
    found = [e.recorded for e in cell.evaluations]
    made = [record for record in found if record is not None]
    if len(made) < len(found) or not made:
        return None
    key = column.key.replace("{row}", cell.evaluations[0].row.key or cell.row)
    return of_records(made, replace(column, key=key))


def of_records(made: Sequence[Record], column: Column) -> Number:
    """The number of a column in the records of one row, one a seed."""
    read = [_read(record.content, column, record) for record in made]
    first = made[0].content
    values = [value for value, _ in read if value is not None]
    bounds = [interval for _, interval in read if interval is not None]
    samples = first["samples"]
    bitmap = _bitmap(first, column) if len(read) == 1 else None  # of several trainings none speaks for all
    return Number(
        value=mean(values) if len(values) == len(read) else None,
        interval=(min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else None,
        n=samples["n"],
        of=samples["of"],
        seeds=len(read),
        spread=stdev(values) if len(values) > 1 else None,
        audit=_audit(first.get("audit")),
        epoch=first.get("epoch"),
        void=next(filter(None, (_void(record.content, column) for record in made)), "") if column.suite else "",
        collapsed=any(_collapsed(record.content) for record in made),
        flags=flags_of(bitmap, samples["n"]) if bitmap else None,
        test=(str(first.get("data")), str(samples), column.suite, column.entry),
        code=made[0].code,
        date=str(first["date"]),
    )


def _audit(audit: Mapping[str, Any] | None) -> str:
    return f"{audit['state']} ({audit['level']})" if audit else ""


def _collapsed(content: Mapping[str, Any]) -> bool:
    clean, classes = content.get("clean"), content.get("classes") or 0
    return bool(clean and classes > 1 and clean["accuracy"] <= _COLLAPSED / classes)


def _bitmap(content: Mapping[str, Any], column: Column) -> str | None:
    """Which samples are robust; None of lengths (it says where nothing was found), and where an audit broke some."""
    if not column.suite or column.value not in ("accuracy", "error"):
        return None
    entry = _entry(content, column)
    return None if entry.get("broken_by_audit") else entry.get("bitmap")


def _void(content: Mapping[str, Any], column: Column) -> str:
    """Why the audit or a missing adaptation leaves nothing of a number; empty where it stands."""
    entry = _entry(content, column)
    same = [c for c in content["worst_case"] if column.entry != "clean" and _ball(c) == _ball(entry)]
    return next((str(why) for c in same if (why := c.get("says_nothing") or c.get("refused"))), "")


def _ball(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    return entry.get("norm"), entry.get("eps")


def _entry(content: Mapping[str, Any], column: Column) -> Mapping[str, Any]:
    """What a record says of the entry of a column."""
    if column.entry == "clean":
        return content["clean"]  # type: ignore[no-any-return]
    if column.entry.startswith("worst"):
        threat = column.entry.split()[1:]
        for case in content["worst_case"]:
            if not threat or (case["eps"] is not None and threat == [str(case["norm"]), f"{case['eps']:g}"]):
                return case  # type: ignore[no-any-return]
        raise UserError(f"suite {column.suite} has no worst case {column.entry.removeprefix('worst ')!r}")
    if column.entry not in content["attacks"]:
        raise UserError(f"suite {column.suite} has no entry {column.entry!r}")
    return content["attacks"][column.entry]  # type: ignore[no-any-return]


def _read(
    content: Mapping[str, Any], column: Column, record: Record
) -> tuple[float | None, tuple[float, float] | None]:
    n = content["samples"]["n"]
    if column.measure:
        if column.key not in content["numbers"]:
            raise UserError(f"{record.path}: {column.measure} gave no {column.key!r}")
        number = content["numbers"][column.key]
        value, interval = number["value"], number["interval"]
        share = column.percent
    else:
        entry = _entry(content, column)
        share = column.value in ("accuracy", "error")
        if share:
            broken = bool(entry.get("broken_by_audit"))  # the interval is from before the audit
            value = entry["at_most"] if broken else entry.get("robust_accuracy", entry.get("accuracy"))
            interval = None if broken else entry["interval"]
        else:
            value, interval = entry[column.value], entry.get(f"{column.value}_interval")
        if column.value == "success_rate":
            share, n = True, entry["attacked"]
    if value is None:
        return None, None
    if interval is None and share:
        interval = wilson(float(value), n)
    if column.value == "error":
        value, interval = 1 - value, [1 - interval[1], 1 - interval[0]]
    return float(value), (float(interval[0]), float(interval[1])) if interval else None
