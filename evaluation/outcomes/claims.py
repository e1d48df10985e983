"""Words for what a suite of attacks can claim: robust accuracy, or accuracy under these attacks."""

from collections.abc import Iterator, Mapping

from adversarial_lightning.attacks import Attack, AutoAttack, members

ROBUST = "robust accuracy"
_MOST_NAMES = 4  # more attacks than these are counted instead of named


def parts_of(attack: Attack) -> Iterator[Attack]:
    """Yield `attack` and the attacks inside it; of AutoAttack, its ensemble for ten classes."""
    yield attack
    for part in attack.ensemble(10) if isinstance(attack, AutoAttack) else members(attack):
        yield from parts_of(part)


def leaves(attack: Attack) -> list[Attack]:
    """Attacks inside `attack` that contain no others."""
    return [part for part in parts_of(attack) if not members(part) and not isinstance(part, AutoAttack)]


def objective(attack: Attack) -> str:
    """Objective that a gradient attack increases; for one that names none, the usual one of its kind."""
    named = getattr(attack, "loss", None)
    return str(named) if named else {"minimum-norm": "margin"}.get(attack.kind, "ce")


def claim(norm: str | None, suite: Mapping[str, Attack]) -> str:
    """What a number under the attacks `suite` of one threat model is called.

    *Robust accuracy* takes at least two objectives of gradient attacks and one attack without gradients, and in l2 and
    l1 a minimum-norm attack too: on networks that were trained in linf, PGD and APGD alone leave most samples that
    AutoAttack breaks. Anything less is *accuracy under* those attacks.
    """
    plain = [leaf for attack in suite.values() for leaf in leaves(attack)]
    objectives = {objective(leaf) for leaf in plain if leaf.knowledge == "white-box"}
    without = any(leaf.knowledge in ("scores", "decisions") for leaf in plain)
    nearest = norm not in ("l2", "l1") or any(
        leaf.kind == "minimum-norm" and leaf.knowledge == "white-box" for leaf in plain
    )
    if len(objectives) >= 2 and without and nearest:
        return ROBUST
    return _accuracy_under(list(suite))


def _accuracy_under(names: list[str]) -> str:
    if len(names) > _MOST_NAMES:
        return f"accuracy under {len(names)} attacks"
    return f"accuracy under {' and '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)}"


def claim_on_union(suites: Mapping[tuple[str, float], Mapping[str, Attack]]) -> str:
    """What a number against several balls at once is called; `suites` are the attacks of each (norm, eps), by name.

    *Robust accuracy* where each ball alone would have it.
    """
    if all(claim(norm, suite) == ROBUST for (norm, _), suite in suites.items()):
        return ROBUST
    return _accuracy_under(list(dict.fromkeys(name for suite in suites.values() for name in suite)))
