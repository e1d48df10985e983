"""Threat models under audit: their robust samples, and the attacks of the suite."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adversarial_lightning.attacks import Attack, AutoAttack, members
from adversarial_lightning.evaluation.campaign.sample_status import SampleStatus, robust_share, threat_models

_LONGEST = 200  # most gradient steps of an attack that the audit repeats with twice the steps


def parts_of(attack: Attack) -> Iterator[Attack]:
    """Yield `attack` and the attacks inside it; of AutoAttack, its ensemble for ten classes."""
    yield attack
    for part in attack.ensemble(10) if isinstance(attack, AutoAttack) else members(attack):
        yield from parts_of(part)


def leaves(attack: Attack) -> list[Attack]:
    """Attacks inside `attack` that contain no others."""
    return [part for part in parts_of(attack) if not members(part) and not isinstance(part, AutoAttack)]


def setting(attack: Attack, name: str) -> Any:
    """Setting `name` of the attack; None where it has none of that name."""
    return getattr(attack, name, None)


@dataclass(frozen=True)
class ThreatModel:
    """Threat model (norm, eps) with its attacks by name, their accuracies, and the share `of` of robust samples.

    `samples` are the numbers of the samples that are robust in at least half of the defender's draws, ascending.
    """

    norm: Any  # a NormName, or l0
    eps: float
    attacks: Mapping[str, Attack]
    of: float
    samples: NDArray[np.int64]
    accuracies: Mapping[str, float]

    @property
    def title(self) -> str:
        return f"{self.norm} {self.eps:.4g}"

    def gradient_attacks(self) -> list[Attack]:
        """Untargeted iterative gradient attacks in the ball, those of the strongest entry of the suite first."""
        names = sorted(self.attacks, key=lambda name: self.accuracies[name])
        plain = [leaf for name in names for leaf in leaves(self.attacks[name])]
        return [
            leaf
            for leaf in plain
            if leaf.kind == "budget"
            and not setting(leaf, "targeted")
            and isinstance(setting(leaf, "steps"), int)
            and setting(leaf, "steps") <= _LONGEST
            and setting(leaf, "norm") == self.norm
            and setting(leaf, "eps")
        ]

    def losses(self) -> list[Any]:
        """Objectives of the suite's gradient attacks; for an attack that names none, the usual one of its kind."""
        plain = [leaf for attack in self.attacks.values() for leaf in leaves(attack)]
        usual = {"budget": "ce", "minimum-norm": "margin"}
        named = {setting(leaf, "loss") or usual.get(leaf.kind) for leaf in plain if leaf.knowledge == "white-box"}
        return sorted(named & {"ce", "margin", "dlr"}) or ["ce"]


def audited_threat_models(status: SampleStatus, suite: Mapping[str, Attack]) -> list[ThreatModel]:
    """One `ThreatModel` for each threat model of the suite."""
    found = []
    for (norm, eps), names in threat_models(suite).items():
        shares = robust_share(status.worst_case(norm, eps), status.draws)
        accuracies = {
            name: float(robust_share(status.bits["clean"] & status.bits_under(name, eps), status.draws).mean())
            for name in names
        }
        attacks = {name: suite[name] for name in names}
        found.append(ThreatModel(norm, eps, attacks, float(shares.mean()), status.samples[shares >= 0.5], accuracies))
    return found
