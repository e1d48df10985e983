"""Audit of an evaluation: checks by machine, each with a figure, a limit and a sentence.

The list of Carlini et al. 2019 ("On Evaluating Adversarial Robustness"), the flags of AutoAttack (Croce and Hein 2020a)
and the indicators of attack failure (Pintor et al. 2022), as experiments: on the rows that a campaign has stored, and
on a few samples that are attacked again, with other and stronger attacks. A check fails where the samples show, with
99 % confidence, that its limit is exceeded; it passes where they show that no more is affected than the level excludes.
"""

from adversarial_lightning.evaluation.audit.cache import cached_audit
from adversarial_lightning.evaluation.audit.check import Check, failed
from adversarial_lightning.evaluation.audit.run import audit
from adversarial_lightning.evaluation.audit.untouched import Untouched, untouched_copy

__all__ = ["Check", "Untouched", "audit", "cached_audit", "failed", "untouched_copy"]
