"""Leaderboard of all recorded trainings: robust accuracy by threat model, with interval, attacks and audit."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adversarial_lightning.evaluation.outcomes.claims import ROBUST
from adversarial_lightning.evaluation.outcomes.statistics import wilson
from adversarial_lightning.evaluation.report.formatting import where

_LEAST = 300  # images; a row of fewer says too little to be ranked
HEADS = ["model", "clean", "robust", "95 % interval", "n", "attacks", "audit", "weights"]


def rows(records: Path, zoo: Mapping[str, str]) -> dict[str, list[list[str]]]:
    """Rows of the leaderboard by threat model, the best first; `zoo` names the networks of trainings that are given.

    A row is the worst case of one evaluation of at least 300 images whose suite is strong enough to speak of robust
    accuracy; of several the lowest. Samples that the audit broke do not count as robust.
    """
    found: dict[str, dict[str, tuple[float, list[str]]]] = {}
    for training, content in _evaluations(records):
        for case in content["worst_case"]:
            n = content["samples"]["n"]
            if case.get("claim") != ROBUST or case.get("refused") or case.get("says_nothing") or n < _LEAST:
                continue
            value = case["at_most"] if case.get("broken_by_audit") else case["robust_accuracy"]
            known = None if case.get("broken_by_audit") else case["interval"]
            low, high = known or wilson(value, n)
            audit = content["audit"]
            said = f"{audit['state']} ({audit['level']})" if audit else "not audited"
            cells = [
                *(training, f"{100 * content['clean']['accuracy']:.1f}", f"{100 * value:.1f}"),
                *(f"[{100 * low:.1f}, {100 * high:.1f}]", f"{n:,}", ", ".join(_attacks(content, case)), said),
                f"zoo:{zoo[training]}" if training in zoo else "",
            ]
            same = found.setdefault(where(case), {})
            if training not in same or value < same[training][0]:
                same[training] = (value, cells)
    return {
        title: [cells for _, cells in sorted(same.values(), key=lambda entry: -entry[0])]
        for title, same in sorted(found.items())
    }


def _evaluations(records: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in sorted(records.glob("*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("worst_case"):
            yield path.parent.name, content


def _attacks(content: Mapping[str, Any], case: Mapping[str, Any]) -> list[str]:
    norms = {ball["norm"] for ball in case.get("members") or [case]}
    attacks = {name: a for name, a in content["attacks"].items() if a["norm"] in norms}
    return [name for name, a in attacks.items() if case.get("members") or a["eps"] in (case["eps"], None)]
