"""Writes results.json, report.md, report.html and TensorBoard events."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.merge import balls_of, reasons_for_no_headline
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.outcomes.statistics import Results
from adversarial_lightning.evaluation.report import formatting
from adversarial_lightning.evaluation.report.after_audit import share, worthless
from adversarial_lightning.evaluation.report.comparison import compare
from adversarial_lightning.evaluation.report.comparison_text import side_by_side
from adversarial_lightning.evaluation.report.embeddings import network_figures
from adversarial_lightning.evaluation.report.events import write_events
from adversarial_lightning.evaluation.report.figures import ReportFigure, confusion, curves, lengths, roc, scores
from adversarial_lightning.evaluation.report.grids import grids
from adversarial_lightning.evaluation.report.html import compare_page, report_page
from adversarial_lightning.evaluation.report.markdown import headlines, report_text
from adversarial_lightning.evaluation.report.pictures import Gallery, galleries
from adversarial_lightning.evaluation.report.purifier_steps import steps
from adversarial_lightning.evaluation.report.subject import differs, published_words
from adversarial_lightning.evaluation.report.successes import gather
from adversarial_lightning.evaluation.report.threats import key

_ALLOWANCE = 5.0, 0.1  # seconds for pictures, or this share of the evaluation's time


def write_report(
    campaign: Campaign,
    merged: Results,
    *,
    checkpoint: Mapping[str, Any],
    data: Mapping[str, Any],
    defenses: Sequence[Any],
    required_adaptations: Mapping[str, bool],
    command: str,
    facts: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    audit: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
) -> Results:
    """Write results.json, report.md, report.html and an event file into the campaign's folder; return the results.

    `merged` are the numbers of the finished campaign (`merge`). `facts` are further entries on what was evaluated:
    "model" (`provenance`), "published" (`compared`), "class_names" (by label), "weights" (what was taken of a file from
    elsewhere and what was not, `Report.summary`). `audit` holds "level" and "checks" of the audit; `precision` says how
    attacks ran where that was not plain float32, with the "cases" of `check_precision`. `model` is attacked again for
    the pictures of a few samples; without one there are none. A threat model that gets no headline has a reason under
    "refused" in "worst_case".
    """
    merged = {**merged, "audit": audit, "precision": precision}
    refused = reasons_for_no_headline(campaign.suite, required_adaptations)
    for case in (precision or {}).get("cases", []):
        if not case["passed"]:
            weak = {balls for balls in map(balls_of, merged["worst_case"]) if (case["norm"], case["eps"]) in balls}
            refused |= dict.fromkeys(weak, formatting.too_weak(case))
    merged["warnings"] = list(merged["warnings"])
    for case in merged["worst_case"]:
        if reason := refused.get(balls_of(case)):
            case["refused"] = reason
            merged["warnings"].append(f"no headline for {formatting.where(case)}: {reason}")
    _take_out(audit, merged)
    known = {"model": None, "published": None, "class_names": None, "weights": None, **(facts or {})}
    results = {"checkpoint": dict(checkpoint), "data": dict(data), "defenses": list(defenses), **known, **merged}
    if extra := (known["weights"] or {}).get("extra"):
        named = f"{', '.join(extra[:5])}{' ...' if len(extra) > 5 else ''}"
        results["warnings"].append(
            f"{len(extra)} tensors of the file of weights were left out, no tensor needs them: {named}"
        )
    if differs(results):
        results["warnings"].insert(0, published_words(results))
    results = {"schema": results.pop("schema"), **results}
    write_whole(campaign.folder / "results.json", json.dumps(results, indent=2) + "\n")
    write_whole(campaign.folder / "report.md", report_text(results, command))
    records, names = gather(campaign), known["class_names"]
    radii = {norm: [c["eps"] for c in results["worst_case"] if c["norm"] == norm] for norm in formatting.SYMBOLS}
    drawn: dict[str, list[ReportFigure]] = {
        "steps": [],
        "grids": [],
        "views": [],
        "curves": curves(results),
        "lengths": [lengths(norm, found, radii[norm]) for norm, found in records.lengths.items()],
        "scores": [*scores(records.scores), *roc(results)],
        "confusions": [
            d
            for case in records.cases
            if (d := confusion(case.title, case.heading, case.label, case.adversarial, names))
        ],
    }
    shots: list[Gallery] = []
    omitted: list[str] = []
    if model is not None:
        allowance = max(_ALLOWANCE[0], _ALLOWANCE[1] * sum(a["seconds"] for a in results["attacks"]))
        try:
            shots, omitted = galleries(campaign, model, records.cases, allowance, names)
            drawn["steps"], left_out = steps(campaign, model, shots, allowance)
            omitted += left_out
            if not any(required_adaptations.values()):  # else plain gradients mislead
                drawn["grids"], without_grids = grids(campaign, model, allowance)
                drawn["views"], without_views = network_figures(campaign, model, allowance, names)
                omitted += without_grids + without_views
        except Exception as error:  # a report is written whatever the model does; its numbers are all there
            omitted.append(f"Pictures are missing: attacking again raised {type(error).__name__}: {error}.")
    page = report_page(results, command, drawn, galleries=shots, omitted=omitted)
    write_whole(campaign.folder / "report.html", page)
    images = {d.name: d.pixels() for figures in drawn.values() for d in figures}
    images |= {f"examples/{gallery.title}": gallery.pixels() for gallery in shots}
    write_events(campaign.folder, scalars(results), "\n\n".join(headlines(results)), images)
    return results


def _take_out(audit: Mapping[str, Any] | None, merged: Results) -> None:
    """Give every worst case, and the classes, what the audit found about them."""
    claims = {key(claim): claim for claim in (audit or {}).get("claims", ()) if claim["quantile"] is None}
    found = [claims.get(key(case)) for case in merged["worst_case"]]
    for case, claim in zip(merged["worst_case"], found, strict=True):
        if claim is not None:
            estimate = {"robust_accuracy": claim["estimate"], "interval": claim["interval"]}
            case |= {"broken_by_audit": len(claim["broken"]), "examined_by_audit": claim["examined"]}
            case |= {"at_most": claim["at_most"], "estimate": estimate if claim["examined"] else None}
            case["says_nothing"] = claim["says_nothing"]
    for i, entry in enumerate(merged["classes"] if any(found) else ()):
        before = zip(found, entry["robust_accuracy"], strict=True)
        entry["at_most"] = [claim["classes"][i] if claim else accuracy for claim, accuracy in before]


def write_comparison(folders: Sequence[Path], output: Path | None) -> str:
    """Compare several evaluations in a markdown table, also written to `output`.

    `output` is a .md or .html file, or a folder that gets compare.md and compare.html. Raises ValueError for another
    kind of file, and for a folder without a results.json that can be read.
    """
    comparison = compare(folders)
    text = side_by_side(comparison)
    if output is None:
        return text
    if output.suffix not in ("", ".md", ".html"):
        raise UserError(f"--output {output}: a comparison is written to a .md or .html file, or to a folder for both")
    files = [output] if output.suffix else [output / "compare.md", output / "compare.html"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text if file.suffix == ".md" else compare_page(comparison))
    return text


def scalars(results: Results) -> dict[str, float]:
    """Numbers of the report by tag.

    What an attack alone left is called accuracy under it. Worst cases are as the audit left them: `at_most` without the
    samples that it broke, beside the number before; and without a headline where that has a reason.
    """
    numbers = {"accuracy/clean": results["clean_accuracy"]}
    numbers |= {f"accuracy_under/{a['name']}": a["robust_accuracy"] for a in results["attacks"]}
    for case in results["worst_case"]:
        name, whole = re.sub("[ /,]+", "_", formatting.where(case)), case["robust_accuracy"]
        if case.get("refused"):
            numbers[f"worst_case_without_headline/{name}"] = whole
        elif worthless(results, case):
            numbers[f"worst_case_audit_failed/{name}"] = whole
        elif case.get("broken_by_audit"):
            numbers |= {f"worst_case_at_most/{name}": share(case), f"worst_case_before_audit/{name}": whole}
        else:
            numbers[f"worst_case/{name}"] = whole
    return numbers
