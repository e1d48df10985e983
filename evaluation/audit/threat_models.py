"""Claims under audit: threat models and lengths of a suite, with their robust samples and attacks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adversarial_lightning.attacks import Attack, threat
from adversarial_lightning.evaluation.audit.own_attacks import widest
from adversarial_lightning.evaluation.campaign.sample_status import (
    CLEAN,
    SampleStatus,
    in_balls,
    robust_share,
    threat_models,
)
from adversarial_lightning.evaluation.campaign.unions import balls, unions
from adversarial_lightning.evaluation.outcomes.claims import leaves, objective
from adversarial_lightning.evaluation.outcomes.types import Bits

_LONGEST = 200  # most gradient steps of an attack that the audit repeats with twice the steps
_UNFOUND = 0.25  # share of the widest radius at which lengths are audited where the suite found none


def setting(attack: Attack, name: str) -> Any:
    """Setting `name` of the attack; None where it has none of that name."""
    return getattr(attack, name, None)


@dataclass(frozen=True)
class ThreatModel:
    """Threat model (norm, eps) with its attacks by name, their accuracies, and the share `of` of robust samples.

    `samples` are the numbers of the samples that are robust in at least half of the defender's draws, ascending.
    `quantile`: the claim is on lengths, of attacks without a radius, and `eps` is this quantile of them.
    `part_of_union`: no claim of its own, but a ball of attacks that join several norms, robust against all of which the
    samples are.
    """

    norm: Any  # a NormName, or l0
    eps: float
    attacks: Mapping[str, Attack]
    of: float
    samples: NDArray[np.int64]
    accuracies: Mapping[str, float]
    quantile: float | None = None
    part_of_union: bool = False

    @property
    def title(self) -> str:
        return f"{self.norm} {self.eps:.4g}"

    @property
    def words(self) -> str:
        """The claim in words."""
        if self.quantile is None:
            return self.title
        return f"the {QUANTILES[self.quantile]} length, {self.title}"

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
        named = {objective(leaf) for leaf in plain if leaf.knowledge == "white-box"}
        return sorted(named & {"ce", "margin", "dlr"}) or ["ce"]


QUANTILES = {0.25: "lower quartile", 0.5: "median", 0.75: "upper quartile"}


def audited_threat_models(
    status: SampleStatus, suite: Mapping[str, Attack], shape: tuple[int, ...], quantiles: tuple[float, ...] = (0.5,)
) -> list[ThreatModel]:
    """One `ThreatModel` for each claim of the suite on images of `shape` (C, H, W): threat models, and lengths.

    A union of several norms is examined ball by ball.

    The lengths of attacks without a radius are audited at some `quantiles` of them, in each norm in which the suite has
    no radius. Where a quantile is infinite, because the suite found too little, a fourth of the widest radius is taken.
    """
    found = [_claim(status, suite, norm, eps, names) for (norm, eps), names in threat_models(suite).items()]
    for union in unions(suite):
        attacks, bits = in_balls(suite, union), status.union(union)
        found += [
            _claim(status, attacks[norm, eps], norm, eps, list(attacks[norm, eps]), bits=bits)
            for norm, eps in union
            if all((norm, eps) != (other.norm, other.eps) for other in found)
        ]
    for norm, names in lengths_only(suite).items():
        best = np.min([_found_lengths(status, name) for name in names], axis=0)
        right = robust_share(status.bits[CLEAN], status.draws) >= 0.5
        for quantile in quantiles if right.any() else ():
            eps = float(np.quantile(best[right], quantile, method="lower"))
            if not np.isfinite(eps):
                eps = _UNFOUND * widest(norm, torch.zeros(1, *shape))
            if norm == "l0":
                eps = float(max(1, int(eps)))
            if eps > 0 and all((norm, eps) != (other.norm, other.eps) for other in found):
                found.append(_claim(status, suite, norm, eps, names, quantile))
    return found


def lengths_only(suite: Mapping[str, Attack]) -> dict[str, list[str]]:
    """Names of the minimum-norm attacks without a radius, by norm, in norms in which the suite has no radius."""
    with_radius = {norm for attack in suite.values() for norm, _ in balls(attack)}
    names: dict[str, list[str]] = {}
    for name, attack in suite.items():
        norm, eps = threat(attack)
        if attack.kind == "minimum-norm" and norm is not None and eps is None and norm not in with_radius:
            names.setdefault(norm, []).append(name)
    return names


def _found_lengths(status: SampleStatus, name: str) -> NDArray[np.float64]:
    """Length of what one attack found for each sample; infinite where it found nothing, which returns the image."""
    return np.where(robust_share(status.bits[name], status.draws) < 0.5, status.lengths[name], np.inf)


def _claim(
    status: SampleStatus,
    suite: Mapping[str, Attack],
    norm: str,
    eps: float,
    names: list[str],
    quantile: float | None = None,
    bits: Bits | None = None,
) -> ThreatModel:
    """One claim; with the `bits` under a union, one ball of that."""
    shares = robust_share(status.worst_case(norm, eps) if bits is None else bits, status.draws)
    accuracies = {
        name: float(robust_share(status.bits[CLEAN] & status.bits_under(name, norm, eps), status.draws).mean())
        for name in names
    }
    attacks = {name: suite[name] for name in names}
    robust = status.samples[shares >= 0.5]
    return ThreatModel(norm, eps, attacks, float(shares.mean()), robust, accuracies, quantile, bits is not None)
