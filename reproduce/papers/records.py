"""What was measured, one JSON file a training and evaluation, and one a fit; nothing else decides what a page says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.errors import UserError
from adversarial_lightning.reproduce.record import about, written

_SCHEMA = 1
# Of an attack of results.json.
_KEPT = (
    *("norm", "eps", "kind", "robust_accuracy", "interval", "bitmap", "attacked", "succeeded", "success_rate"),
    *("success_interval", "invalid", "errors", "draws", "found", "failed", "mean_norm", "mean_norm_interval"),
    *("median_norm", "relative_norm", "relative_norm_interval", "relative_norm_with_failures"),
)

_KEPT_OF_CASE = (
    *("norm", "eps", "members", "robust_accuracy", "interval", "bitmap", "at_most", "broken_by_audit"),
    *("says_nothing", "claim", "refused"),
)


@dataclass(frozen=True)
class Record:
    """What a file holds: `content`, and the digests of the `settings` and of the `code` behind it."""

    path: Path
    content: Mapping[str, Any]

    @property
    def settings(self) -> str:
        return str(self.content["settings"])

    @property
    def code(self) -> Mapping[str, str]:
        return dict(self.content["code"])

    @property
    def minutes(self) -> float:
        """CPU-minutes that it took."""
        return float(self.content["cpu_minutes"])


def read(path: Path) -> Record | None:
    """The record in a file; None where there is none. Raises UserError for a damaged one."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, it is made anew") from error
    if schema != _SCHEMA:
        raise UserError(f"{path} is of schema {schema}, ours is {_SCHEMA}: remove it, it is made anew")
    return Record(path, content)


def write(path: Path, content: Mapping[str, Any], *, settings: str, code: Mapping[str, str], minutes: float) -> None:
    """Write a record whole or not at all."""
    facts = {name: value for name, value in about("").items() if name != "note"}
    whole = {
        **{"schema": _SCHEMA, "settings": settings, "code": dict(code), "cpu_minutes": round(minutes, 2)},
        **facts,
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, written(whole))


def of_evaluation(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a record keeps of results.json: numbers, intervals, which samples are robust, what the audit said."""
    audit = results.get("audit")
    kept_audit = None
    if audit is not None:
        failed = [check["sentence"] for check in audit["checks"] if check["verdict"] == "failed"]
        kept_audit = {"level": audit["level"], "state": audit["state"], "bound": audit["bound"], "failed": failed}
    return {
        "data": {key: results["data"][key] for key in ("class_path", "fingerprint")},
        "samples": results["samples"],
        "classes": len(results["classes"]),
        "checkpoint": results["checkpoint"]["sha256"],
        "epoch": (results["model"] or {}).get("epoch"),
        "clean": {key: results[f"clean_{key}"] for key in ("accuracy", "interval", "bitmap")},
        "attacks": {a["name"]: {key: a[key] for key in _KEPT if key in a} for a in results["attacks"]},
        "worst_case": [{key: case[key] for key in _KEPT_OF_CASE if key in case} for case in results["worst_case"]],
        "audit": kept_audit,
        "warnings": list(results["warnings"]),
    }
