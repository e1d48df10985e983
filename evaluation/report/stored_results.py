"""Reads results.json, of older schemas too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.old_names import RESULTS
from adversarial_lightning.errors import UserError

Results = dict[str, Any]


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
