"""Runs the audit of a campaign and keeps each finished check in audit.json."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress
from torch import nn

from adversarial_lightning.checkpoints.files import write_whole, writing
from adversarial_lightning.evaluation.audit.check import Check
from adversarial_lightning.evaluation.audit.run import Level, audit
from adversarial_lightning.evaluation.campaign.identity import code
from adversarial_lightning.evaluation.campaign.plan import Campaign


def cached_audit(
    campaign: Campaign,
    model: nn.Module,
    results: Mapping[str, Any],
    *,
    required_adaptations: Mapping[str, bool],
    level: Level,
    rows: int = 128,
) -> dict[str, Any]:
    """Run the audit; returns the entry "audit" of results.json: "level", and "checks", a dictionary each.

    Shows a bar on a terminal. Checks are kept in ``audit.json`` of the campaign's folder, written after each, so a
    second run repeats only those that are missing. Checks by other code, of another campaign or on another level are
    not used. Raises OSError where the file cannot be written.
    """
    path = campaign.folder / "audit.json"
    about = {"identity": campaign.identity, "level": level, "obligations": dict(required_adaptations), "code": _code()}
    with writing(campaign.folder):
        lock = FileLock(campaign.folder / "audit.lock")
        lock.acquire()  # two processes may finish a campaign at the same moment
    try:
        known = _read(path, about)
        bar = Progress(*Progress.get_default_columns(), console=Console(stderr=True), disable=not sys.stderr.isatty())
        task = bar.add_task(f"audit ({level})")

        def tell(key: str, check: Check, total: int) -> None:
            known[key] = check
            bar.update(task, completed=len(known), total=total)
            checks = {name: asdict(each) for name, each in known.items()}
            write_whole(path, json.dumps({"about": about, "checks": checks}, indent=2) + "\n")

        with bar:
            found = audit(
                campaign,
                model,
                results,
                required_adaptations=required_adaptations,
                level=level,
                rows=rows,
                known=known,
                tell=tell,
            )
    finally:
        lock.release()
    return {"level": level, "checks": [asdict(check) for check in found]}


def _code() -> str:
    """Digest of the code of models, attacks and audit."""
    digest = hashlib.sha256(code().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path, about: Mapping[str, Any]) -> dict[str, Check]:
    """Stored checks by key; none where the file is missing, damaged or about something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checks = {key: Check(**check) for key, check in content["checks"].items()}
        return checks if content["about"] == about else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
