"""Names of tensors in a network and in a file: which correspond, under which prefix, and what may be left out."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Parts = tuple[str, ...]

# Names are compared after replacing the first by the second (`new_mean`, `new_std`: MadryLab's robustness).
SYNONYMS = {
    "downsample": "shortcut",
    "linear": "fc",
    "mu": "mean",
    "new_mean": "mean",
    "sigma": "std",
    "new_std": "std",
}
NORMALISATION = {"mean", "std"}
# Parts of names that training needs and nothing else -> what they are.
TRAINING_ONLY = {
    "sub_block1": "the unused copy of the first group in the TRADES class",
    "num_batches_tracked": "counters of BN",
    "n_averaged": "the counter of torch's AveragedModel",
} | dict.fromkeys(("AuxLogits", "aux1", "aux2"), "the heads of Inception and GoogLeNet that only their training needs")


@dataclass(frozen=True)
class Placement:
    """Network in a file: names that begin with `own` in the network begin with `start` in the file; name -> name."""

    own: Parts
    start: Parts
    pairs: dict[str, str]


def canonical(name: str) -> Parts:
    """Parts of a name, synonyms replaced."""
    return tuple(SYNONYMS.get(part, part) for part in name.split("."))


def is_counter(name: str) -> bool:
    """Whether a tensor is BN's count of batches, which no prediction depends on."""
    return name.endswith("num_batches_tracked")


def placements(ours: Sequence[str], theirs: Sequence[str], prefix: str | None = None) -> list[Placement]:
    """Places of the names `ours` among `theirs`: all that hold every name, and the fullest; with `prefix` that one."""
    found: dict[tuple[Parts, Parts], Placement] = {}
    parts = {name: canonical(name) for name in (*ours, *theirs)}
    only = None if prefix is None else canonical(prefix.strip(".")) if prefix.strip(".") else ()
    for own in _common_prefixes([parts[name] for name in ours]):
        rests = {name: parts[name][len(own) :] for name in ours if parts[name][: len(own)] == own}
        wanted, needed = set(rests.values()), {rest for name, rest in rests.items() if not is_counter(name)}
        held: dict[Parts, dict[Parts, list[str]]] = {}
        for name in theirs:
            for length in range(len(parts[name])):
                start, rest = parts[name][:length], parts[name][length:]
                if rest in wanted and only in (None, start):
                    held.setdefault(start, {}).setdefault(rest, []).append(name)
        most = max(map(len, held.values()), default=0)
        for start, names in held.items():
            if len(names) == most or names.keys() >= needed:
                pairs = {name: same for name, rest in rests.items() if (same := _one(rest, name, names.get(rest, [])))}
                key = _without_common_end(own, start)
                if len(pairs) > len(found[key].pairs if key in found else ()):
                    found[key] = Placement(own, start, pairs)
    return sorted(found.values(), key=lambda placement: (-len(placement.pairs), len(placement.start)))


def left_out(name: str, place: Placement, normalised: bool) -> tuple[str, bool]:
    """Reason to leave a tensor of the file out ("": none), and whether such tensors are expected.

    Not left out are a normalisation that has no place in the network (unless `normalised`), and tensors beside those of
    the network under a name that the network has too, but for the number: a network of that depth would need them.
    """
    parts = canonical(name)
    for part in name.split("."):
        if part in TRAINING_ONLY:
            return TRAINING_ONLY[part], True
    if parts[-1] in NORMALISATION:
        return ("the network has its normalisation from elsewhere in the file" if normalised else ""), True
    if parts[: len(place.start)] != place.start:
        return f"outside of {'.'.join(place.start)}", False
    families = {_family(canonical(own)[len(place.own)]) for own in place.pairs}
    return ("" if _family(parts[len(place.start)]) in families else "no tensor of the network needs it"), False


def _one(rest: Parts, name: str, same: list[str]) -> str | None:
    """Name of the file for `name`: the only one, or of several synonyms the one spelled like it."""
    if len(same) == 1:
        return same[0]
    spelled = name.split(".")[-len(rest) :]
    return next((n for n in same if n.split(".")[-len(rest) :] == spelled), None)


def _without_common_end(own: Parts, start: Parts) -> tuple[Parts, Parts]:
    """Prefixes without what both end with: `layers` for `layers` is none for none."""
    while own and start and own[-1] == start[-1]:
        own, start = own[:-1], start[:-1]
    return own, start


def _family(part: str) -> str:
    return re.sub(r"\d+", "", part)


def _common_prefixes(names: list[Parts]) -> list[Parts]:
    """Prefixes of at least half of the names, shortest first."""
    starts = Counter(name[:length] for name in names for length in range(len(name)))
    return sorted((start for start, count in starts.items() if 2 * count >= len(names)), key=len)
