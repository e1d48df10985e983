"""Table of the accuracies of each class."""

from collections.abc import Mapping, Sequence
from typing import Any

from adversarial_lightning.evaluation.report.after_audit import marks
from adversarial_lightning.evaluation.report.formatting import percent, where
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

    As the audit left them: at most, where it broke samples of the threat model. Marks are those of `MARKS`. Empty for
    results that hold no classes.
    """
    found = results.get("classes") or []
    cases = results["worst_case"]
    heads = [f"{where(c, symbols)}{', at most' * bool(c.get('broken_by_audit'))}{marks(results, c)}" for c in cases]
    rows = [
        [
            class_name(entry["label"], results.get("class_names")),
            str(entry["n"]),
            *(percent(share, entry["n"]) for share in (entry["clean_accuracy"], *_left(entry, cases))),
        ]
        for entry in sorted(found, key=lambda e: (*_left(e, cases), e["clean_accuracy"], e["label"]))
    ]
    return ["class", "n", "no attack", *heads], rows


def _left(entry: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> list[float]:
    """Accuracies of a class in the worst cases, without the samples that the audit broke."""
    return [
        entry["at_most"][i] if case.get("broken_by_audit") else entry["robust_accuracy"][i]
        for i, case in enumerate(cases)
    ]
