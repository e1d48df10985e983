"""Comparison of several evaluations: a table with attacks in rows and models in columns, and curves."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.claims import ROBUST
from adversarial_lightning.evaluation.outcomes.statistics import flags_of, paired, wilson
from adversarial_lightning.evaluation.report import after_audit, formatting, subject
from adversarial_lightning.evaluation.report.after_audit import doubted, worthless
from adversarial_lightning.evaluation.report.comparison_curves import curves_of
from adversarial_lightning.evaluation.report.figures import ReportFigure
from adversarial_lightning.evaluation.report.stored_results import read_results
from adversarial_lightning.evaluation.report.threats import Key, any_radius, key, rank, title

Results = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number of one model (higher is better) and its bounds.

    `honest`: it may be the best of its row; not where the suite lacks required adaptations (`refused`), nor where the
    audit failed or broke samples, without which the number stands as `at_most`. `worthless`: it says nothing of the
    model. `lesser`: it is called accuracy under these attacks, not robust accuracy. `n` images, `which` ones, and their
    `bitmap`, are what a test of two cells needs.
    """

    value: float
    text: str
    bounds: str
    n: int
    which: str = ""
    bitmap: str | None = None
    refused: bool = False
    worthless: bool = False
    at_most: bool = False
    lesser: bool = False
    honest: bool = True
    best: bool = False

    def beats(self, other: "Cell") -> bool:
        """Whether the difference is more than chance, at 5 %.

        McNemar's test, where both say which of the same samples are robust; else Wilson's intervals must not overlap,
        which is enough whatever images the two have in common.
        """
        if self.value <= other.value or math.isinf(self.value):
            return False
        if self.bitmap and other.bitmap and self.which == other.which:
            return paired(flags_of(self.bitmap, self.n), flags_of(other.bitmap, other.n)) < 0.05
        return wilson(self.value, self.n)[0] > wilson(other.value, other.n)[1]


@dataclass(frozen=True)
class Row:
    """One line of the table: `cells` by model; a model without the attack has none."""

    label: str
    cells: Mapping[str, Cell]
    worst: bool = False


@dataclass(frozen=True)
class Group:
    """Rows of one threat model; `shape` is its title with the symbols of norms."""

    title: str
    shape: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Comparison:
    """Results by name of the model, in the given order, their table, its curves, and reasons why it is unfair."""

    models: Mapping[str, Results]
    groups: Sequence[Group]
    unfair_because: Sequence[str]
    drawings: Sequence[ReportFigure]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare the evaluations in `folders`, named by the folders. Raises ValueError as `read_results`."""
    models = dict(zip(_names(folders), map(read_results, folders), strict=True))
    clean = {name: _accuracy(r, r, "clean_") for name, r in models.items()}
    groups = [Group("", "", [_row("clean", clean)])]
    entries = {key(e): e for r in models.values() for e in (*r["worst_case"], *r["attacks"])}
    for model in sorted(entries, key=rank):
        rows: dict[str, dict[str, Cell]] = {}
        worst: dict[str, Cell] = {}
        for name, r in models.items():
            for a in r["attacks"]:
                if key(a) == model:
                    rows.setdefault(a["name"], {})[name] = _length(a, r) if any_radius(a) else _accuracy(a, r)
            for c in r["worst_case"]:
                if key(c) == model:
                    worst[name] = _accuracy(c, r)
        group = [_row(label, cells) for label, cells in rows.items()]
        group += [_row("worst case", worst, worst=True)] if worst else []
        groups.append(Group(title(entries[model]), title(entries[model], symbols=True), group))
    return Comparison(models, groups, _differences(models), curves_of(models))


def _accuracy(entry: Results, results: Results, prefix: str = "") -> Cell:
    """Cell of an attack, of a worst case or, with the prefix of its keys, of the clean accuracy."""
    n, data = results["n"], results["data"]
    refused, broken = bool(entry.get("refused")), bool(entry.get("broken_by_audit"))
    nothing = "attacks" in entry and not prefix and bool(worthless(results, entry))
    share = after_audit.share(entry) if broken else entry[f"{prefix or 'robust_'}accuracy"]
    return Cell(
        share,
        f"{'≤ ' * broken}{formatting.percent(share, n)}",
        "" if broken or nothing else formatting.interval(entry[f"{prefix}interval"], n),
        n,
        which=json.dumps([data.get("fingerprint"), data.get("pixels"), results["samples"]], sort_keys=True),
        bitmap=None if broken else entry.get(f"{prefix}bitmap"),
        refused=refused,
        worthless=nothing,
        at_most=broken,
        lesser="claim" in entry and entry["claim"] != ROBUST,
        honest=not refused and not broken and not nothing and subject.badge_state(results) != "failed",
    )


def _length(attack: Results, results: Results) -> Cell:
    """Cell with the median length; infinite where fewer than half were found. Never the best: there is no test."""
    median = attack["median_norm"]
    found = f"{formatting.count(attack['found'])} of {formatting.count(attack['attacked'])} found"
    found += ", before the audit" * doubted(results, attack["norm"])
    value, text = (math.inf, "∞") if median is None else (median, formatting.length(median, attack["attacked"]))
    return Cell(value, text, found, attack["attacked"], honest=False)


def _row(label: str, cells: Mapping[str, Cell], worst: bool = False) -> Row:
    """Row whose best cell is marked: the one that beats all others that may be the best."""
    rivals = {model: cell for model, cell in cells.items() if cell.honest}
    best = [m for m, c in rivals.items() if len(rivals) > 1 and all(c.beats(o) for k, o in rivals.items() if k != m)]
    return Row(label, {m: replace(c, best=m in best) for m, c in cells.items()}, worst)


def _names(folders: Sequence[Path]) -> list[str]:
    """Shortest names that distinguish the folders: ends of their paths, without a common end."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError("a folder is named twice: compare different evaluations")
    while len(parts) > 1 and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    for k in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-k:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _differences(models: Mapping[str, Results]) -> list[str]:
    """Reasons why a comparison of these evaluations is unfair, a phrase each."""
    found = []
    images = [r["data"].get("fingerprint") or json.dumps(r["data"], sort_keys=True) for r in models.values()]
    pixels: dict[str, set[str]] = {}  # of the same samples
    for r in models.values():
        pixels.setdefault(f"{r['n']} {r.get('samples')}", set()).add(r["data"].get("pixels", ""))
    if len(set(images)) > 1 or any(len(digests - {""}) > 1 for digests in pixels.values()):
        found.append("they were made on different data")
    if len(chosen := dict.fromkeys(map(formatting.samples, models.values()))) > 1:
        found.append(f"the samples differ ({'; '.join(chosen)})")
    for name in ("seed", "mode"):
        values = [str(r[name]).replace("_", " ") for r in models.values()]
        if len(set(values)) > 1:
            found.append(f"the {name} differs ({', '.join(values)})")
    suites: dict[Key, dict[tuple[str, ...], str]] = {}
    for c in (c for r in models.values() for c in r["worst_case"]):
        suites.setdefault(key(c), {})[tuple(c["attacks"])] = formatting.where(c)
    for names in suites.values():
        if len(names) > 1:
            found.append(f"the worst case of {next(iter(names.values()))} is over different attacks")
    known: dict[str, list[Any]] = {}
    for a in (a for r in models.values() for a in r["attacks"]):
        facts = [a["norm"], a["eps"], a["restarts"]], a.get("settings")  # schema 1 has no settings
        known.setdefault(a["name"], []).append(facts)
    other = [
        name
        for name, facts in known.items()
        if any(f[0] != facts[0][0] or (f[1] and facts[0][1] and f[1] != facts[0][1]) for f in facts)
    ]
    if other:
        found.append(f"settings differ of {', '.join(other)}")
    return found
