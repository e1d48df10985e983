"""What is said in the end: results.json, report.md, and several evaluations side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.campaign import Campaign
from evaluation.curves import draw
from evaluation.identity import write_whole
from evaluation.merge import Refused, Results, merge, refusals


def write_report(
    campaign: Campaign,
    *,
    checkpoint: Mapping[str, Any],
    data: Mapping[str, Any],
    defenses: Sequence[Any],
    obligations: Mapping[str, bool],
    command: str,
) -> tuple[Results, Refused]:
    """Merge the ledgers and write ``results.json`` and ``report.md`` into the campaign's folder.

    Returns the results, and the threat models that get no headline.

    Raises like `merge`. All of results.json but the seconds is a function of the campaign.
    """
    merged = merge(campaign)
    refused = refusals(campaign.suite, obligations)
    for (norm, eps), reason in refused.items():
        merged["warnings"].append(f"no headline for {norm} {eps:g}: {reason}")
    results = {"schema": 1, "checkpoint": dict(checkpoint), "data": dict(data), "defenses": list(defenses), **merged}
    write_whole(campaign.folder / "results.json", json.dumps(results, indent=2) + "\n")
    draw(results, campaign.folder / "curves.png")
    write_whole(campaign.folder / "report.md", markdown(results, refused, command))
    return results, refused


def headlines(results: Results, refused: Refused) -> list[str]:
    """One sentence for each threat model."""
    sentences = []
    for case in results["worst_case"]:
        if (case["norm"], case["eps"]) not in refused:
            accuracy, attacks = _percent(case["robust_accuracy"]), ", ".join(case["attacks"])
            sentences.append(
                f"{accuracy} robust accuracy at {case['norm']} {case['eps']:g} "
                f"(worst case of {attacks}; n = {results['n']}); clean {_percent(results['clean_accuracy'])}"
            )
    return sentences


def markdown(results: Results, refused: Refused, command: str) -> str:
    """The report that people read."""
    lines = ["# Robustness report", ""]
    lines += [f"**{sentence}**\n" for sentence in headlines(results, refused)]
    lines += [f"> {note}\n" for note in results["warnings"]]
    rows = [["clean", "", "", "", _percent(results["clean_accuracy"]), "", ""]]
    for a in results["attacks"]:
        passes = f"{a['forwards']:,.0f} / {a['backwards']:,.0f}"
        accuracy = _percent(a["robust_accuracy"])
        rows.append([a["name"], a["norm"] or "", _eps(a), str(a["restarts"]), accuracy, passes, f"{a['seconds']:.1f}"])
    head = ["attack", "norm", "eps", "restarts", "robust accuracy", "forward / backward passes", "seconds"]
    lines += [*table(head, rows), ""]
    lines += ["A sample counts as robust where the model is right without the attack and after every run of it.", ""]
    curved = [a for a in results["attacks"] if "curve" in a]
    if curved:
        lines += ["## Shortest adversarial perturbations", "", "![robust accuracy over the radius](curves.png)", ""]
        rows = [
            [a["name"], a["norm"], str(a["found"]), _length(a["mean_norm"]), _length(a["median_norm"])] for a in curved
        ]
        lines += [*table(["attack", "norm", "found", "mean length", "median length (failures infinite)"], rows), ""]
    if results["worst_case"]:
        lines += ["## Worst case per sample", ""]
        cases = [
            [c["norm"], _eps(c), _percent(c["robust_accuracy"]), ", ".join(c["attacks"])] for c in results["worst_case"]
        ]
        lines += [*table(["norm", "eps", "robust accuracy", "attacks"], cases), ""]
    checkpoint, data = results["checkpoint"], results["data"]
    settings = ", ".join(f"{name}={value}" for name, value in data["init_args"].items())
    defenses = ", ".join(json.dumps(defense) for defense in results["defenses"])
    lines += ["## How to repeat it", "", "```", command, "```", ""]
    lines += [
        f"- checkpoint: {checkpoint['path']} (sha256 {checkpoint['sha256']})",
        f"- data: the first {results['n']} test images of {data['class_path']}({settings})",
        f"- defenses: {defenses or 'none'}",
        f"- seed: {results['seed']}",
    ]
    return "\n".join(lines) + "\n"


def compare(folders: Sequence[Path]) -> str:
    """A markdown table of several evaluations: clean, attacks and worst cases down, models across.

    Raises ValueError for a folder without a readable results.json.
    """
    columns: dict[str, Results] = {}
    for folder in folders:
        try:
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no results.json of a finished evaluation ({error})") from error
        columns[folder.name if folder.name not in columns else str(folder)] = results
    rows: dict[str, dict[str, str]] = {}
    for model, results in columns.items():
        rows.setdefault("clean", {})[model] = _percent(results["clean_accuracy"])
        for a in results["attacks"]:
            label = f"{a['name']} ({a['norm']} {_eps(a)})" if a["norm"] else a["name"]
            rows.setdefault(label, {})[model] = _percent(a["robust_accuracy"])
    for model, results in columns.items():
        for c in results["worst_case"]:
            rows.setdefault(f"worst case ({c['norm']} {_eps(c)})", {})[model] = _percent(c["robust_accuracy"])
    body = [[label, *(cells.get(model, "") for model in columns)] for label, cells in rows.items()]
    lines = table(["accuracy under", *columns], body)
    facts = {json.dumps([r["data"], r["n"], r["seed"]], sort_keys=True) for r in columns.values()}
    if len(facts) > 1:
        lines += ["", "Careful: these evaluations differ in data, number of samples or seed."]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a markdown table, aligned for reading as text."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _length(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _eps(entry: Results) -> str:
    return "" if entry["eps"] is None else f"{entry['eps']:g}"
