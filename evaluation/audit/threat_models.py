"""What the audit is about: for each threat model the samples that the suite left standing, and how it attacked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adversarial_lightning.attacks import Attack, AutoAttack, members
from adversarial_lightning.evaluation.campaign.sample_status import SampleStatus, robust_share, threat_models

_LONGEST = 200  # gradient steps of an attack that the audit is ready to double


def parts_of(attack: Attack) -> Iterator[Attack]:
    """`attack` and all that it is made of; of AutoAttack, its ensemble for ten classes."""
    yield attack
    for part in attack.ensemble(10) if isinstance(attack, AutoAttack) else members(attack):
        yield from parts_of(part)


def leaves(attack: Attack) -> list[Attack]:
    """The plain attacks that `attack` is made of."""
    return [part for part in parts_of(attack) if not members(part) and not isinstance(part, AutoAttack)]


def setting(attack: Attack, name: str) -> Any:
    """A setting of the attack, None where it has no such."""
    return getattr(attack, name, None)


@dataclass(frozen=True)
class ThreatModel:
    """That the share `of` of all samples is robust at (norm, eps), said by `attacks` (by name), each with its accuracy.

    `samples` are the numbers of those that stand in at least half of the defender's draws, ascending.
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
        """Plain untargeted gradient attacks on the ball in several steps, those of the strongest attack first."""
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
        """The objectives whose gradients the suite follows; of attacks that name none, the usual one of their kind."""
        plain = [leaf for attack in self.attacks.values() for leaf in leaves(attack)]
        usual = {"budget": "ce", "minimum-norm": "margin"}
        named = {setting(leaf, "loss") or usual.get(leaf.kind) for leaf in plain if leaf.knowledge == "white-box"}
        return sorted(named & {"ce", "margin", "dlr"}) or ["ce"]


def audited_threat_models(status: SampleStatus, suite: Mapping[str, Attack]) -> list[ThreatModel]:
    """One claim for each threat model of the suite."""
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
