"""Comparison of several evaluations: a table with attacks in rows and models in columns, and curves."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.old_names import RESULTS
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.claims import ROBUST
from adversarial_lightning.evaluation.outcomes.statistics import flags_of, paired, wilson
from adversarial_lightning.evaluation.report import formatting, subject
from adversarial_lightning.evaluation.report.figures import ReportFigure, Series, over_radius

Results = dict[str, Any]
BEST = (
    "Bold: better than every other model of the row by a paired test on the same images (McNemar, 5 %) or, where it is "
    "not recorded which images are robust, by Wilson's intervals that do not overlap; never with a failed audit, a "
    "clean accuracy that differs from the published one, or a †."
)
LESSER = (
    "‡: accuracy under these attacks; robust accuracy takes two objectives and an attack without gradients, in l2 and "
    "l1 a minimum-norm attack too."
)


@dataclass(frozen=True)
class Cell:
    """One number of one model (higher is better) and its bounds.

    `honest`: it may be the best of its row; not where the suite lacks required adaptations (`refused`) nor where the
    audit failed. `lesser`: it is called accuracy under these attacks, not robust accuracy. `n` images, `which` ones,
    and their `bitmap`, are what a test of two cells needs.
    """

    value: float
    text: str
    bounds: str
    n: int
    which: str = ""
    bitmap: str | None = None
    refused: bool = False
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

    @property
    def lesser(self) -> bool:
        """True where the number of a cell is no robust accuracy."""
        return any(cell.lesser for group in self.groups for row in group.rows for cell in row.cells.values())

    @property
    def refused(self) -> bool:
        """True where a cell has no headline number."""
        return any(cell.refused for group in self.groups for row in group.rows for cell in row.cells.values())


def read_results(folder: Path) -> Results:
    """Read the results.json of an evaluation, in today's schema; ValueError where that fails."""
    try:
        return upgraded(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} holds no results.json of a finished evaluation ({error})") from error


def upgraded(results: Mapping[str, Any]) -> Results:
    """Results of schema 1 or 2 in today's schema, with what follows from them.

    Those evaluations took the first n images of their set, which are no sample: their intervals are left out.
    """
    if results["schema"] >= 3:
        return dict(results)
    n = results["n"]
    known = {RESULTS.get(key, key): value for key, value in results.items()}
    whole: Results = {"mode": "full", "audit": None, "warnings": [], "cost": None, "sweeps": [], **known}
    whole |= {"samples": {"chosen": "first", "seed": None, "n": n, "of": None}, "clean_interval": None}
    if low := whole.get("precision"):
        cases = [{RESULTS.get(key, key): value for key, value in case.items()} for case in low["cases"]]
        whole["precision"] = {"attacks": low["precision"], "compile": low["compile"], "cases": cases}
    attacked = round(n * results["clean_accuracy"])
    for key in ("attacks", "worst_case"):
        whole[key] = [{**entry, "interval": None} for entry in results[key]]
    whole["sweeps"] = [{**sweep, "interval": [None] * len(sweep["eps"])} for sweep in whole["sweeps"]]
    for case in whole["worst_case"]:
        begin = f"no headline for {case['norm']} {case['eps']:g}: "  # how schema 1 said it
        for note in whole["warnings"]:
            if note.startswith(begin):
                case["refused"] = note[len(begin) :]
    for attack in whole["attacks"]:
        attack.setdefault("attacked", attacked)
        attack.setdefault("succeeded", attacked - round(n * attack["robust_accuracy"]))
        if attack.get("curve"):
            unknown = dict.fromkeys(("relative_norm", "relative_norm_with_failures"))
            attack |= {**unknown, "mean_norm_interval": None, "relative_norm_interval": None, **attack}
            attack["failed"] = attack["attacked"] - attack["found"]
    return whole


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare the evaluations in `folders`, named by the folders. Raises ValueError as `read_results`."""
    models = dict(zip(_names(folders), map(read_results, folders), strict=True))
    clean = {name: _accuracy(r, r, "clean_") for name, r in models.items()}
    groups = [Group("", "", [_row("clean", clean)])]
    entries = [(e["norm"], e["eps"]) for r in models.values() for e in (*r["worst_case"], *r["attacks"])]
    for norm, eps in sorted(dict.fromkeys(entries), key=rank):
        rows: dict[str, dict[str, Cell]] = {}
        worst: dict[str, Cell] = {}
        for name, r in models.items():
            for a in r["attacks"]:
                if (a["norm"], a["eps"]) == (norm, eps):
                    rows.setdefault(a["name"], {})[name] = _length(a) if any_radius(a) else _accuracy(a, r)
            for c in r["worst_case"]:
                if (c["norm"], c["eps"]) == (norm, eps):
                    worst[name] = _accuracy(c, r)
        group = [_row(label, cells) for label, cells in rows.items()]
        group += [_row("worst case", worst, worst=True)] if worst else []
        groups.append(Group(title(norm, eps), title(norm, eps, symbols=True), group))
    return Comparison(models, groups, _differences(models), _drawings(models))


def rank(model: tuple[str | None, float | None]) -> tuple[int, int, float]:
    """Sort key of threat models in a table: norms, radii ascending, then lengths, corruptions at the end."""
    norm, eps = model
    norms = [*formatting.SYMBOLS, norm]
    return (2 if norm is None else 1 if eps is None else 0, norms.index(norm), eps or 0.0)


def any_radius(attack: Results) -> bool:
    """True for an attack without a radius, judged by the length of its perturbations."""
    return attack["eps"] is None and attack.get("curve") is not None


def _accuracy(entry: Results, results: Results, prefix: str = "") -> Cell:
    """Cell of an attack, of a worst case or, with the prefix of its keys, of the clean accuracy."""
    share, n, data = entry[f"{prefix or 'robust_'}accuracy"], results["n"], results["data"]
    refused, broken = bool(entry.get("refused")), bool(entry.get("broken_by_audit"))
    share = entry["at_most"] if broken else share
    return Cell(
        share,
        f"{'≤ ' * broken}{formatting.percent(share, n)}",
        "" if broken else formatting.interval(entry[f"{prefix}interval"], n),
        n,
        which=json.dumps([data.get("fingerprint"), data.get("pixels"), results["samples"]], sort_keys=True),
        bitmap=None if broken else entry.get(f"{prefix}bitmap"),
        refused=refused,
        lesser="claim" in entry and entry["claim"] != ROBUST,
        honest=not refused and not broken and subject.badge_state(results) != "failed",
    )


def _length(attack: Results) -> Cell:
    """Cell with the median length; infinite where fewer than half were found. Never the best: there is no test."""
    median = attack["median_norm"]
    found = f"{formatting.count(attack['found'])} of {formatting.count(attack['attacked'])} found"
    value, text = (math.inf, "∞") if median is None else (median, formatting.length(median, attack["attacked"]))
    return Cell(value, text, found, attack["attacked"], honest=False)


def title(norm: str | None, eps: float | None, symbols: bool = False) -> str:
    """Heading of a group of attacks."""
    if norm is None:
        return "corruptions"
    return (
        formatting.threat(norm, eps, symbols)
        if eps is not None
        else f"{formatting.threat(norm, None, symbols)}, median length"
    )


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
    for key, name in (("seed", "seed"), ("mode", "mode")):
        values = [str(r[key]).replace("_", " ") for r in models.values()]
        if len(set(values)) > 1:
            found.append(f"the {name} differs ({', '.join(values)})")
    for norm, eps in dict.fromkeys((c["norm"], c["eps"]) for r in models.values() for c in r["worst_case"]):
        suites = [
            tuple(c["attacks"])
            for r in models.values()
            for c in r["worst_case"]
            if (c["norm"], c["eps"]) == (norm, eps)
        ]
        if len(set(suites)) > 1:
            found.append(f"the worst case of {formatting.threat(norm, eps)} is over different attacks")
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


def _drawings(models: Mapping[str, Results]) -> list[ReportFigure]:
    """Robust accuracy over the radius, one line for each model: of worst cases, and of each minimum-norm attack.

    Recorded rows hold a minimum-norm curve of one point, which is no line and is left out.
    """
    lines: dict[tuple[str, str], list[Series]] = {}
    for name, r in models.items():
        for norm in dict.fromkeys(c["norm"] for c in r["worst_case"]):
            cases = sorted((c for c in r["worst_case"] if c["norm"] == norm), key=lambda c: float(c["eps"]))
            if len(cases) > 1:
                xs, ys = [c["eps"] for c in cases], [c["robust_accuracy"] for c in cases]
                line = Series(name, xs, ys, bounds=[c["interval"] for c in cases])
                lines.setdefault((norm, "worst case"), []).append(line)
        for a in r["attacks"]:
            if a.get("curve") and len(a["curve"]["eps"]) > 1:
                line = Series(name, a["curve"]["eps"], a["curve"]["robust_accuracy"], step=True)
                lines.setdefault((a["norm"], a["name"]), []).append(line)
    drawn = []
    for (norm, what), series in lines.items():
        if len(series) > 1:
            caption = f"Robust accuracy over the {formatting.SYMBOLS[norm]} radius: {what}."
            half = [f"{s.name} {formatting.half(s.x, s.y)}" for s in series]
            alt = f"{caption} Radius where it is half of the first value: {'; '.join(half)}."
            drawn.append(ReportFigure(f"curves/{norm}/{what}", over_radius(norm, series), caption, alt))
    return drawn


def side_by_side(comparison: Comparison) -> str:
    """The comparison as a markdown table, aligned for reading as text."""
    models = list(comparison.models)
    body: list[list[str]] = []
    for group in comparison.groups:
        for row in group.rows:
            label = f"{row.label} ({group.title})" if group.title else row.label
            body.append([f"**{label}**" if row.worst else label, *(_words(row.cells.get(model)) for model in models)])
    for what, say in (("model", subject.model_in_table), ("defense", partial(subject.defended_by, brief=True))):
        body.append([what, *map(say, comparison.models.values())])
    body.append(["images", *(formatting.samples(comparison.models[model]) for model in models)])
    body.append(["audit", *(subject.badge_words(comparison.models[model]) for model in models)])
    lines = formatting.table(["accuracy under", *models], body)
    lines += [
        "",
        f"{BEST} In brackets 95 % intervals over images; radii are of {subject.PIXELS}. Worst case: mean over samples "
        "of the minimum over attacks.",
    ]
    if comparison.refused:
        lines += [
            "",
            "†: no headline number: the suite lacks adaptations that the defense requires; never the best.",
        ]
    if comparison.lesser:
        lines += ["", LESSER]
    if comparison.unfair_because:
        lines += ["", f"This comparison is unfair: {'; '.join(comparison.unfair_because)}."]
    return "\n".join(lines) + "\n"


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{f'**{cell.text}**' if cell.best else cell.text}{' †' * cell.refused}{' ‡' * cell.lesser} {cell.bounds}"
