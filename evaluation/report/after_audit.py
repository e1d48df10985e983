"""What an audit left of the numbers of an evaluation, and the words for it."""

from collections.abc import Mapping
from typing import Any

from adversarial_lightning.evaluation.audit.check import MATTER
from adversarial_lightning.evaluation.outcomes.claims import ROBUST
from adversarial_lightning.evaluation.report.formatting import interval, number, percent, where

VERDICTS = {"failed": "✗ ", "not shown": "? ", "passed": "✓ ", "not applicable": "", "for information": ""}
NOTHING = "the number says nothing about this model"
MARKS = {
    "refused": "†: no headline number: the suite lacks adaptations that this defense requires.",
    "worthless": f"✗: a check of the audit failed, and {NOTHING}.",
    "at most": "≤: the samples that the audit broke are taken out.",
}


def share(case: Mapping[str, Any]) -> float:
    """Robust accuracy of a worst case without the samples that the audit broke."""
    return float(case["at_most"] if case.get("broken_by_audit") else case["robust_accuracy"])


def share_words(case: Mapping[str, Any], n: int) -> str:
    """`share` in per cent: ``≤ 42 %`` where the audit broke samples."""
    return f"{'≤ ' * bool(case.get('broken_by_audit'))}{percent(share(case), n)}"


def worthless(results: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """The failed checks for which the number of a worst case says nothing about the model; empty where it stands.

    Audits that did not record it: all that failed, where it is not known which samples they broke.
    """
    if "says_nothing" in case:
        return str(case["says_nothing"] or "")
    audit = results.get("audit")
    if case.get("broken_by_audit") or audit_state(audit) != "failed":
        return ""
    assert audit is not None
    return "; ".join(
        f"{check['id']} {check['name']}"
        for check in audit["checks"]
        if verdict(check) == "failed" and (check["id"] in MATTER or "state" not in audit)
    )


def doubted(results: Mapping[str, Any], norm: str | None) -> bool:
    """Whether the audit broke samples in this norm or left nothing of a number: rows of attacks are from before it."""
    cases = [case for case in results["worst_case"] if case["norm"] == norm]
    lengths = [c for c in (results.get("audit") or {}).get("claims", ()) if c["quantile"] and c["norm"] == norm]
    return any(case.get("broken_by_audit") or worthless(results, case) for case in cases) or any(
        claim["broken"] or claim.get("says_nothing") for claim in lengths
    )


def marks(results: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """Marks behind a number that is no headline, see `MARKS`."""
    return " †" * bool(case.get("refused")) + " ✗" * bool(worthless(results, case))


def legend(results: Mapping[str, Any]) -> list[str]:
    """Sentences for the marks that the worst cases of an evaluation bear."""
    known = {
        "refused": any(case.get("refused") for case in results["worst_case"]),
        "worthless": any(worthless(results, case) for case in results["worst_case"]),
        "at most": any(case.get("broken_by_audit") for case in results["worst_case"]),
    }
    return [MARKS[name] for name, there in known.items() if there]


def verdict(check: Mapping[str, Any]) -> str:
    """Verdict of a check; audits before version 0.2 called it otherwise, and passed without showing anything."""
    said = str(check["verdict"])
    return {"fail": "failed", "pass": "not shown"}.get(said, said)


def figures(check: Mapping[str, Any]) -> str:
    """What a check measured, with its bound and limit, in brackets; empty where it has no number."""
    named = (("figure", "figure"), ("at most", "bound"), ("limit", "limit"))
    found = ", ".join(f"{word} {number(check[key])}" for word, key in named if check.get(key) is not None)
    return f" ({found})" if found else ""


def audit_state(audit: Mapping[str, Any] | None) -> str:
    """State of the audit: ``passed``, ``failed``, ``not shown``, ``nothing to audit`` or ``not audited``.

    Audits before version 0.2 have none; their checks could pass without showing anything.
    """
    if not audit or not audit.get("checks"):
        return "not audited"
    if "state" in audit:
        return str(audit["state"])
    return "failed" if any(verdict(check) == "failed" for check in audit["checks"]) else "not shown"


def audit_words(audit: Mapping[str, Any] | None) -> str:
    """Phrase on the audit beside a headline number: what failed or was not shown, the level, what could be missed."""
    state = audit_state(audit)
    if audit is None or state == "not audited":
        return "not audited"
    if "state" not in audit and state == "not shown":
        return f"audited by version 0.1 (level {audit['level']}): nothing failed"
    if state == "nothing to audit":
        return "nothing to audit: no sample is robust"
    checks = "; ".join(f"{check['id']} {check['name']}" for check in audit["checks"] if verdict(check) == state)
    if state == "failed":
        return f"audit failed: {checks}"
    bound = audit.get("bound")
    missed = "" if bound is None else f"; at most {100 * bound:.1f} points could be missed"
    if state == "passed":
        return f"audit passed (level {audit['level']}{missed})"
    return f"audit neither passed nor failed (level {audit['level']}{missed}), not shown: {checks}"


def headline_word(case: Mapping[str, Any]) -> str:
    """What the number of a worst case is called: ``robust accuracy``, or ``accuracy under fgsm and pgd``."""
    return str(case.get("claim") or ("accuracy under " + ", ".join(case["attacks"]) if case.get("attacks") else ROBUST))


def headline_share(case: Mapping[str, Any], n: int, of: str) -> str:
    """The number of a worst case with its name and what it is `of`; at most, where the audit broke robust samples."""
    name = headline_word(case) + of
    if not case.get("broken_by_audit"):
        return f"{percent(case['robust_accuracy'], n)} {name}"
    return f"at most {percent(share(case), n)} {name}, {before_audit(case, n)}"


def before_audit(case: Mapping[str, Any], n: int) -> str:
    """What the number was before the audit broke samples: ``45 % before the audit broke 2 of 29 robust samples``."""
    broken, examined = case["broken_by_audit"], case["examined_by_audit"]
    of = f"{broken} of {examined}" if examined else f"{broken}"  # at a smaller radius, where this one was not examined
    return f"{percent(case['robust_accuracy'], n)} before the audit broke {of} robust samples"


def claim_words(claim: Mapping[str, Any], n: int) -> str:
    """What an audit says of one claim of the suite."""
    at = where(claim)
    if claim["quantile"]:
        at = f"the {claim['quantile']} length, {at}"
    if claim.get("says_nothing"):
        return (
            f"audit failed: {claim['says_nothing']} — what the suite left robust at {at} says nothing about this model"
        )
    said = f"at {at} the suite left {percent(claim['robust_accuracy'], n)} robust"
    if not claim["examined"] and not claim["broken"]:
        return said
    said += f"; of {claim['examined'] or 'the'} robust samples the audit broke {len(claim['broken'])}"
    if not claim["broken"]:
        return said
    if not claim["examined"]:
        return f"{said}: at most {percent(claim['at_most'], n)}"
    rest = f"{percent(claim['estimate'], n)}, 99 % interval {interval(claim['interval'], n)}"
    return f"{said}: at most {percent(claim['at_most'], n)}, and about {rest} if the others fall alike"
