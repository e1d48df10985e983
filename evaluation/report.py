"""What is said in the end: ledgers merged strictly, worst cases per sample, results.json and report.md."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks import Attack, members, threat
from evaluation.campaign import CLEAN, Campaign
from evaluation.identity import write_whole
from evaluation.outcome import Outcome, outside

Results = dict[str, Any]


class Incomplete(ValueError):
    """Samples are missing in the ledgers."""


def merge(campaign: Campaign) -> Results:
    """The numbers of a finished campaign: the schema of results.json without "checkpoint", "data" and "defenses".

    Robust accuracy counts a sample where the model is right without the attack and withstands every run of it; the
    worst case of a threat model (norm, eps), where it withstands every attack of it. Raises `Incomplete` where samples
    are missing and ValueError where one is recorded twice or should not be there.
    """
    chosen = set(campaign.samples)
    standing: dict[str, set[int]] = {CLEAN: chosen}
    attacks: list[Results] = []
    notes: list[str] = []
    for name in (CLEAN, *campaign.suite):
        left = chosen if name == CLEAN else standing[CLEAN]
        costs: dict[str, list[float]] = {"forwards": [], "backwards": [], "seconds": []}
        broken = left_ball = 0
        units = campaign.units(name)
        for unit in units:
            outcomes = list(campaign.outcomes(unit))
            _complete(name, unit.restart, left, {o.index for o in outcomes})
            left = {o.index for o in outcomes if campaign.stands(name, o)}
            broken += sum(o.adversarial == -1 for o in outcomes)
            left_ball += name != CLEAN and sum(_left_ball(campaign.suite[name], o) for o in outcomes)
            for key, values in costs.items():
                values.extend(getattr(o, key) for o in outcomes)
        standing[name] = left
        if broken:
            notes.append(f"{name}: {broken} samples count as wrong because logits or pixels were not finite")
        if left_ball:
            notes.append(f"{name}: {left_ball} adversarial images left the ball and count as failures of the attack")
        if name != CLEAN:
            norm, eps = threat(campaign.suite[name])
            sums = {key: _number(math.fsum(values)) for key, values in costs.items()}
            entry = {"name": name, "norm": norm, "eps": eps, "robust_accuracy": len(left) / campaign.n, "n": campaign.n}
            attacks.append({**entry, **sums, "restarts": len(units)})
    return {
        "schema": 1,
        "n": campaign.n,
        "seed": campaign.seed,
        "clean_accuracy": len(standing[CLEAN]) / campaign.n,
        "attacks": attacks,
        "worst_case": [
            {
                "norm": norm,
                "eps": eps,
                "robust_accuracy": len(set.intersection(*(standing[name] for name in names))) / campaign.n,
                "attacks": names,
            }
            for (norm, eps), names in threat_models(campaign.suite).items()
        ],
        "warnings": notes,
    }


def threat_models(suite: Mapping[str, Attack]) -> dict[tuple[str, float], list[str]]:
    """Names of the attacks for every (norm, eps) of the suite; corruptions have neither."""
    models: dict[tuple[str, float], list[str]] = {}
    for name, attack in suite.items():
        norm, eps = threat(attack)
        if norm is not None and eps is not None:
            models.setdefault((norm, float(eps)), []).append(name)
    return models


def refusals(suite: Mapping[str, Attack], obligations: Mapping[str, bool]) -> dict[tuple[str, float], str]:
    """Why a threat model gets no headline: its attacks do not do what an honest attacker of this defense must do.

    `obligations` comes from `defenses.obligations`. The detour around a step without gradient (BPDA) is built into
    every `Purified`; averaging over random draws (EOT) is the suite's part.
    """
    if not obligations.get("eot"):
        return {}
    return {
        model: "the defense is stochastic and no attack averages its gradients over draws (EOT): set samples: 10 or more"
        for model, names in threat_models(suite).items()
        if not any(draws(suite[name]) > 1 for name in names)
    }


def draws(attack: Attack) -> int:
    """The largest number of gradients that the attack, or one it is made of, averages."""
    return max(getattr(attack, "samples", 1), *map(draws, members(attack)), 1)


def write_report(
    campaign: Campaign,
    *,
    checkpoint: Mapping[str, Any],
    data: Mapping[str, Any],
    defenses: Sequence[Any],
    obligations: Mapping[str, bool],
    command: str,
) -> Results:
    """Merge the ledgers and write ``results.json`` and ``report.md`` into the campaign's folder; returns the results.

    Raises like `merge`. All of results.json but the seconds is a function of the campaign.
    """
    merged = merge(campaign)
    refused = refusals(campaign.suite, obligations)
    for (norm, eps), reason in refused.items():
        merged["warnings"].append(f"no headline for {norm} {eps:g}: {reason}")
    results = {"schema": 1, "checkpoint": dict(checkpoint), "data": dict(data), "defenses": list(defenses), **merged}
    write_whole(campaign.folder / "results.json", json.dumps(results, indent=2) + "\n")
    write_whole(campaign.folder / "report.md", markdown(results, set(refused), command))
    return results


def headlines(results: Results, refused: set[tuple[str, float]]) -> list[str]:
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


def markdown(results: Results, refused: set[tuple[str, float]], command: str) -> str:
    """The report that people read."""
    lines = ["# Robustness report", ""]
    lines += [f"**{sentence}**\n" for sentence in headlines(results, refused)]
    lines += [f"> {note}\n" for note in results["warnings"]]
    rows = [["clean", "", "", "", _percent(results["clean_accuracy"]), "", ""]]
    for a in results["attacks"]:
        passes = f"{a['forwards']:,.0f} / {a['backwards']:,.0f}"
        accuracy = _percent(a["robust_accuracy"])
        rows.append([a["name"], a["norm"] or "", _eps(a), str(a["restarts"]), accuracy, passes, f"{a['seconds']:.1f}"])
    lines += table(["attack", "norm", "eps", "restarts", "robust accuracy", "forward / backward passes", "seconds"], rows)
    lines += ["", "A sample counts as robust where the model is right without the attack and after every run of it.", ""]
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
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _complete(name: str, restart: int, expected: set[int], found: set[int]) -> None:
    if missing := sorted(expected - found):
        raise Incomplete(
            f"{len(missing)} samples of {name} (restart {restart}) are not in the ledgers: {_some(missing)}; "
            "run the same command again, it does what is missing"
        )
    if extra := sorted(found - expected):
        raise ValueError(
            f"the ledgers hold {len(extra)} samples of {name} (restart {restart}) that do not belong there: {_some(extra)}; "
            "they were changed by something else: choose another --output"
        )


def _left_ball(attack: Attack, outcome: Outcome) -> bool:
    return attack.kind == "budget" and outside(outcome, *threat(attack), attack.kind)


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else round(value, 6)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _eps(entry: Results) -> str:
    return "" if entry["eps"] is None else f"{entry['eps']:g}"
