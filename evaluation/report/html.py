"""HTML pages in a single file, from results, figures and the templates in ``evaluation/report/pages``."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from adversarial_lightning.evaluation.report import after_audit, formatting, subject
from adversarial_lightning.evaluation.report.class_table import MOST_ROWS, class_note, class_table
from adversarial_lightning.evaluation.report.comparison import Comparison
from adversarial_lightning.evaluation.report.comparison_text import BEST, notes
from adversarial_lightning.evaluation.report.figures import ReportFigure
from adversarial_lightning.evaluation.report.pictures import Gallery
from adversarial_lightning.evaluation.report.threats import any_radius, key, rank, title

_PAGES = Path(__file__).parent / "pages"
Results = dict[str, Any]


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(_PAGES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": formatting.percent,
        "interval": formatting.interval,
        "interval_words": formatting.interval_words,
        "mean_length": formatting.length,
        "length_interval": formatting.lengths,
        "samples": formatting.samples,
        "share_of": formatting.share_of,
        "symbols": lambda norm, eps=None: formatting.threat(norm, eps, symbols=True),
        "duration": formatting.duration,
        "count": formatting.count,
        "number": formatting.number,
        "settings": formatting.settings,
        "facts": lambda results: subject.model_facts(results) | formatting.facts(results),
        "any_radius": any_radius,
        "breakable": lambda path: path.replace("/", "/\u200b"),  # a zero-width space: lines may break there
        "claim_words": after_audit.claim_words,
        "headline_word": after_audit.headline_word,
        "figures": after_audit.figures,
        "left": after_audit.share,
        "left_words": after_audit.share_words,
        "before_audit": after_audit.before_audit,
        "where": lambda entry: formatting.where(entry, symbols=True),
        "model_in_table": subject.model_in_table,
        "defended_by": subject.defended_by,
        "draws_words": subject.draws_words,
        "detector_words": subject.detector_words,
        "interval_note": subject.interval_note,
        "sentence": lambda phrase: phrase[:1].upper() + phrase[1:],
        "badge_state": subject.badge_state,
        "badge_words": subject.badge_words,
    }
    return environment


def _page(template: str, **values: Any) -> str:
    style = Markup((_PAGES / "style.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(style=style, **values)


def report_page(
    results: Results,
    command: str,
    drawn: Mapping[str, Sequence[ReportFigure]],
    *,
    galleries: Sequence[Gallery] = (),
    omitted: Sequence[str] = (),
) -> str:
    """Report of one evaluation as HTML.

    `results` as in results.json; `drawn` are figures by section (curves, lengths, scores, steps, grids, confusions,
    views); `omitted` says which pictures are missing.
    """
    shortest = [a for a in results["attacks"] if a.get("curve")]
    detector, checks = results.get("detection"), (results["audit"] or {}).get("checks", ())
    sections = {
        "attacks": "attacks",
        "classes": "classes" if len(results.get("classes") or []) > 1 else "",
        "draws": "defender’s draws" if over_draws(results) else "",
        "curves": "robust accuracy over the radius" if drawn["curves"] else "",
        "lengths": "shortest perturbations" if shortest else "",
        "detector": "detector" if detector else "",
        "examples": "examples" if galleries or omitted else "",
        "steps": "steps of the purifier" if drawn["steps"] else "",
        "grids": "targeted attacks" if drawn["grids"] else "",
        "confusion": "confusions" if drawn["confusions"] else "",
        "views": "embeddings and loss surfaces" if drawn["views"] else "",
        "audit": "audit",
        "cost": "cost",
        "repeat": "how to repeat it",
    }
    return _page(
        "report.html",
        r=results,
        command=command,
        title=f"Robustness of {formatting.place(results['checkpoint']['path'])}",
        subject=subject.subject(results),
        judged=subject.judged(results),
        pixels=subject.PIXELS,
        contents=[(id, name) for id, name in sections.items() if name],
        cards=cards(results),
        legend=" ".join(after_audit.legend(results)),
        marks=lambda case: after_audit.marks(results, case),
        worthless=lambda case: after_audit.worthless(results, case),
        nothing=after_audit.NOTHING,
        groups=groups(results),
        class_note=class_note(results),
        by_class=class_table(results, symbols=True),
        fold_classes=len(results.get("classes") or []) > MOST_ROWS,
        draws=over_draws(results),
        shortest=shortest,
        relative=any(a.get("relative_norm") is not None for a in shortest),
        detector=detector,
        levels=levels(results) if detector else [],
        areas={a["name"]: a["detection"]["auroc"] for a in results["attacks"]} if detector else {},
        facts=subject.model_facts(results) | formatting.facts(results),
        facts_of_cost=formatting.facts_of_cost(results),
        verdicts=after_audit.VERDICTS,
        by_verdict={v: [c for c in checks if after_audit.verdict(c) == v] for v in after_audit.VERDICTS},
        drawn=drawn,
        galleries=galleries,
        omitted=omitted,
    )


def compare_page(comparison: Comparison) -> str:
    """Comparison of several evaluations as HTML."""
    return _page(
        "compare.html", c=comparison, best=BEST, notes=" ".join(notes(comparison)), title="Comparison of robustness"
    )


def cards(results: Results) -> dict[str, list[Results]]:
    """Worst cases by norm, small radii first."""
    found: dict[str, list[Results]] = {}
    for case in sorted(results["worst_case"], key=lambda case: rank(key(case))):
        found.setdefault(case["norm"], []).append(case)
    return found


def groups(results: Results) -> list[dict[str, Any]]:
    """Attacks grouped by threat model, with its worst case where it has one."""
    cases = {key(case): case for case in results["worst_case"]}
    models = cases | {key(attack): attack for attack in results["attacks"]}
    return [
        {
            "title": title(models[model], symbols=True),
            "attacks": [attack for attack in results["attacks"] if key(attack) == model],
            "case": cases.get(model),
        }
        for model in sorted(models, key=rank)
    ]


def over_draws(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """Accuracies over the defender's draws: without an attack, of attacks, of worst cases."""
    found = [("no attack", results["clean_draws"])] if results.get("clean_draws") else []
    found += [(a["name"], a["draws"]) for a in results["attacks"] if a.get("draws")]
    return found + [(worst_title(results, c), c["draws"]) for c in results["worst_case"] if c.get("draws")]


def worst_title(results: Results, case: Results) -> str:
    """Name of a row with numbers of a worst case from which no sample is taken out."""
    before = ", before the audit" * bool(case.get("broken_by_audit"))
    return f"worst case, {formatting.where(case, symbols=True)}{before}{after_audit.marks(results, case)}"


def levels(results: Results) -> list[dict[str, Any]]:
    """Numbers of the detector at each false positive rate, by attack and worst case."""
    cases = {worst_title(results, case): case for case in results["worst_case"]}
    judged = {a["name"]: a for a in results["attacks"]} | cases
    return [
        {**level, "rows": {name: entry["detection"]["levels"][i] for name, entry in judged.items()}}
        for i, level in enumerate(results["detection"]["clean"]["levels"])
    ]
