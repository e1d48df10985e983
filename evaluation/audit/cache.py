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
from adversarial_lightning.evaluation.audit.check import Check, from_record
from adversarial_lightning.evaluation.audit.headline import summary
from adversarial_lightning.evaluation.audit.levels import Level
from adversarial_lightning.evaluation.audit.run import AuditRun
from adversarial_lightning.evaluation.audit.threat_models import setting
from adversarial_lightning.evaluation.audit.untouched import Untouched
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
    untouched: Untouched | None = None,
) -> dict[str, Any]:
    """Run the audit; returns the entry "audit" of results.json: "level", "checks", and what `summary` says of them.

    Says beforehand what it will cost, and shows a bar on a terminal. Checks are kept in ``audit.json`` of the
    campaign's folder, written after each, so a second run repeats only those that are missing. Checks by other code, of
    another campaign or on another level are not used. Raises OSError where the file cannot be written.
    """
    path = campaign.folder / "audit.json"
    about = {"identity": campaign.identity, "level": level, "obligations": dict(required_adaptations), "code": _code()}
    with writing(campaign.folder):
        lock = FileLock(campaign.folder / "audit.lock")
        lock.acquire()  # two processes may finish a campaign at the same moment
    audit_run = AuditRun(campaign, model, results, required_adaptations, level, rows, _read(path, about), untouched)
    try:
        print(forecast(audit_run), file=sys.stderr, flush=True)
        bar = Progress(*Progress.get_default_columns(), console=Console(stderr=True), disable=not sys.stderr.isatty())
        task = bar.add_task(f"audit ({level})")

        def tell(total: int) -> None:
            bar.update(task, completed=len(audit_run.found), total=total)
            checks = {name: asdict(each) for name, each in audit_run.found.items()}
            write_whole(path, json.dumps({"about": about, "checks": checks}, indent=2) + "\n")

        with bar:
            found = audit_run.answers(tell)
            said = summary(audit_run, found)
    finally:
        lock.release()
    return {"level": level, "checks": [asdict(check) for check in found], **said}


def forecast(audit_run: AuditRun) -> str:
    """What the audit will cost: samples, passes and, at the speed of the attacks so far, time."""
    budget, claims, attacks = audit_run.budget, audit_run.audited_threat_models, audit_run.results["attacks"]
    averaged, forwards, backwards, samples = budget.averaged if audit_run.stochastic else 1, 0, 0, 0
    for claim in claims:
        own, n = claim.gradient_attacks(), min(audit_run.most, len(claim.samples))
        again = budget.repeats * (setting(own[0], "steps") if own else budget.steps)
        samples += n
        forwards += n * averaged * (budget.passes[0] + again)
        backwards += n * averaged * (budget.passes[1] + again)
    spent = sum(a["forwards"] + a["backwards"] for a in attacks)
    seconds = sum(a["seconds"] for a in attacks) / spent * (forwards + backwards) if spent else 0.0
    each = [_rounded(count / max(1, samples)) for count in (forwards, backwards)]
    return (
        f"audit ({audit_run.level}): about {each[0]} forward and {each[1]} backward passes for each of {samples} "
        f"robust samples of {len(claims)} claims, about {_minutes(seconds)} at the speed of the attacks"
    )


def _rounded(passes: float) -> str:
    """A number of passes to two digits."""
    return f"{int(float(f'{passes:.1e}')):,}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"


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
        checks = {key: from_record(check) for key, check in content["checks"].items()}
        return checks if content["about"] == about else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
