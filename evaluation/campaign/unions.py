"""Unions of norms: attacks that join the balls of several norms, and the claim against all of these at once."""

from collections.abc import Mapping

from adversarial_lightning.attacks import Attack, WorstOf, members, threat

Ball = tuple[str, float]  # norm and radius
UNION = "union"  # the norm of a claim on several balls
_ORDER = ("linf", "l2", "l1", "l0")


def balls(attack: Attack) -> tuple[Ball, ...]:
    """Balls that `attack` searches, the largest of each norm; none where it, or a part of it, has no norm or radius."""
    norm, eps = threat(attack)
    if norm is not None:
        return () if eps is None else ((norm, float(eps)),)
    found: dict[str, float] = {}
    for part in members(attack):
        own = balls(part)
        if not own:
            return ()
        for norm, eps in own:
            found[norm] = max(eps, found.get(norm, 0.0))
    return _ordered(found)


def threat_of(attack: Attack) -> tuple[str | None, float | None]:
    """Norm and radius of an attack, of one that joins several radii of one norm the largest; None where it has none."""
    found = balls(attack)
    return found[0] if len(found) == 1 else threat(attack)


def joined(attack: Attack) -> tuple[Ball, ...]:
    """Balls of an attack that joins several norms, such as a `WorstOf`; none of any other."""
    found = balls(attack)
    return found if len(found) > 1 else ()


def part_in(attack: Attack, ball: Ball) -> Attack | None:
    """The part of `attack` that searches exactly this ball; None where there is none."""
    if balls(attack) == (ball,):
        return attack
    parts = [part for each in members(attack) if (part := part_in(each, ball)) is not None]
    return parts[0] if len(parts) == 1 else WorstOf(parts) if parts else None


def unions(suite: Mapping[str, Attack]) -> list[tuple[Ball, ...]]:
    """Unions of balls that the suite makes a claim on.

    Those that an attack joins; and, where the attacks of one norm each have radii in two norms or more, and each of
    these norms has one radius, the union over these. Where a norm has several, it is not known which radius is meant.
    """
    found = [several for attack in suite.values() if (several := joined(attack))]
    single = {balls(attack)[0] for attack in suite.values() if len(balls(attack)) == 1}
    if len(single) > 1 and len({norm for norm, _ in single}) == len(single):
        found.append(_ordered(dict(single)))
    return list(dict.fromkeys(found))


def _ordered(radii: Mapping[str, float]) -> tuple[Ball, ...]:
    return tuple((norm, radii[norm]) for norm in sorted(radii, key=_ORDER.index))
