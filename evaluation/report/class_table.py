"""Table of the accuracies of each class."""

from collections.abc import Mapping
from typing import Any

from adversarial_lightning.evaluation.report.formatting import percent, threat
from adversarial_lightning.evaluation.report.subject import class_name

MOST_ROWS = 20  # of the table in text; a page folds a longer one


def class_note(results: Mapping[str, Any]) -> str:
    """What the table shows."""
    mean = ", means over the defense's draws" if results.get("clean_draws") else ""
    alone = ", by predictions alone" if results.get("detection") else ""
    return (
        f"Accuracy of each true class without attack and in the worst case of each threat model{mean}{alone}; the "
        "weakest class first. n: samples of the class."
    )


def class_table(results: Mapping[str, Any], symbols: bool = False) -> tuple[list[str], list[list[str]]]:
    """Head and rows, weakest class first: class, number of samples, accuracy without attack, of every worst case.

    A † marks a threat model without a headline. Empty for results that hold no classes.
    """
    found = results.get("classes") or []
    marks = [threat(c["norm"], c["eps"], symbols) + " †" * bool(c.get("refused")) for c in results["worst_case"]]
    rows = [
        [
            class_name(entry["label"], results.get("class_names")),
            str(entry["n"]),
            *(percent(share, entry["n"]) for share in (entry["clean_accuracy"], *entry["robust_accuracy"])),
        ]
        for entry in sorted(found, key=lambda e: (*e["robust_accuracy"], e["clean_accuracy"], e["label"]))
    ]
    return ["class", "n", "no attack", *marks], rows
