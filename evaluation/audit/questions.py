"""The table of all checks: what each asks, of which samples, its limit, and when it does not apply."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from adversarial_lightning.evaluation.audit import detector, interface, memory, outcomes, sanity, stored_rows
from adversarial_lightning.evaluation.audit import gradient_masking as masking
from adversarial_lightning.evaluation.audit import stronger_attacks as stronger
from adversarial_lightning.evaluation.audit.check import NO_SAMPLES, Answer, Check, Said, judged
from adversarial_lightning.evaluation.audit.inputs import Group, Inputs, Task
from adversarial_lightning.evaluation.audit.other_threats import broader_threats
from adversarial_lightning.evaluation.audit.stored_rows import EXCESS, NEEDED
from adversarial_lightning.evaluation.audit.stronger_attacks import no_more
from adversarial_lightning.evaluation.audit.surroundings import same_elsewhere
from adversarial_lightning.evaluation.audit.threat_models import ThreatModel

CANNOT_ASK = "the question can be asked, "  # and the key: the name of a check that could not be answered
_NO_COPY = "The model cannot be copied (copy.deepcopy raises an error), so whether it has a memory is not known."


def _always(task: Task) -> str:
    return ""


@dataclass(frozen=True)
class Question:
    """A check before it is answered.

    `key` is its id and, where several share that, a word. `group` are the samples that it examines, none of the stored
    rows. It does not apply where `unless` gives a reason; `copies` says that it needs copies of the model.
    """

    key: str
    name: str
    ask: Callable[[Task], Answer]
    limit: float | None = None
    group: Group | None = None
    unless: Callable[[Task], str] = _always
    copies: bool = False

    def check(self, audit: Inputs, claim: ThreatModel | None = None, where: str = "") -> Check:
        """The answer, about a claim where it is on one; `where` ends the names of the check and of its key."""
        id = self.key.split()[0]
        about = {"id": id, "name": self.name + (f", {claim.title}" if claim and where else ""), "limit": self.limit}
        task = Task(audit, claim, None, id)  # type: ignore[arg-type]
        answer: Answer = self.unless(task)
        if not answer and self.group is not None:
            task = replace(task, samples=audit.group(self.group, claim))  # type: ignore[arg-type]
            answer = "" if len(task.samples) else NO_SAMPLES
        if not answer and self.copies and audit.forgetful is None:
            about["name"], answer = CANNOT_ASK + self.key + where, Said(verdict="not shown", sentence=_NO_COPY)
        n = 0 if task.samples is None else len(task.samples)
        return judged(answer or self.ask(task), n=n, excludes=audit.budget.excludes, **about)  # type: ignore[arg-type]


MODEL = [
    Question("C1", "threat models are complete and kept", stored_rows.threat_model, 0.0),
    Question("C2", "clean accuracy of the same samples", stored_rows.clean_accuracy, 0.0),
    Question("C4 recorded", "accuracy decreases with the radius", stored_rows.monotone, EXCESS),
    Question(
        "C10 predicted", "gradients predict changes", masking.true_gradients, 0.25, "right", masking.declared_surrogate
    ),
    Question("C11", "a random defense is judged in several draws", stored_rows.several_draws, NEEDED),
    Question("C12", "hyper-parameters are stored", stored_rows.settings_stored, 0.0),
    Question("C16", "outcomes are reproduced", outcomes.repeated, 0.01),
    Question("C17", "other threats", broader_threats, None, "right"),
    Question("F1", "no undeclared randomness", interface.randomness, 0.0, "right"),
    Question("F1 attacks", "attacks draw from the given noise", stored_rows.attacks_draw, 0.0),
    Question("F2", "outputs are logits", interface.output_range, 0.0, "right"),
    Question("F5", "no undeclared optimisation at inference", interface.computes_at_inference, 0.0, "right"),
    Question("F6", "target classes", interface.targets),
]
MEMORY = [  # with points of the first claim's ball
    Question(
        "M1",
        "answers do not depend on earlier questions or on who asks",
        memory.same_answers,
        0.0,
        "right",
        copies=True,
    ),
    Question("M2", "recorded outcomes hold without a memory", outcomes.repeated_on_copies, 0.01, "right", copies=True),
    Question(
        "M4",
        "answers do not depend on clock, files, process or environment",
        same_elsewhere,
        0.0,
        "right",
        copies=True,
    ),
]
CLAIM = [
    Question(
        "C3 recorded", "recorded iterative attacks beat single steps", stored_rows.iterative_beats_single_step, EXCESS
    ),
    Question("C3", "one step finds no more than many", no_more(stronger.single_step), 0.005, "robust"),
    Question("C4", "unbounded attacks reach chance", sanity.unbounded, None, "robust"),
    Question("C5", "more steps and starts find no more", no_more(stronger.converged), 0.005, "robust"),
    Question("C6 recorded", "recorded gradient attacks beat queries", stored_rows.gradients_beat_queries, 0.002),
    Question("C6", "attacks without gradients find no more", no_more(stronger.gradient_free), 0.002, "robust"),
    Question("C7", "random noise finds no more", no_more(stronger.random_points), 0.002, "robust"),
    Question("C8", "examples of other networks find no more", no_more(stronger.transferred), 0.002, "robust"),
    Question("C9", "the worst case of each sample", stored_rows.worst_case, 0.0),
    Question("C10 declared", "the suite adapts to the defense", stored_rows.declared),
    Question(
        "C13 active", "points planted in the ball are found", sanity.active, 0.05, "right", sanity.draws_at_random
    ),
    Question("C15", "other objectives and step sizes find no more", no_more(stronger.tuned), 0.01, "robust"),
    Question(
        "M3",
        "attacks on copies without a memory find no more",
        no_more(stronger.without_memory),
        0.005,
        "robust",
        copies=True,
    ),
    Question(
        "F2",
        "the cross-entropy is not saturated",
        masking.saturation,
        0.05,
        "robust",
        masking.losses_beside_cross_entropy,
    ),
    Question("F3", "gradients exist", masking.zero_gradients, 0.01, "robust"),
    Question("I2", "gradients are stable", masking.stable_gradients, 0.5, "robust", masking.no_small_steps),
    Question("I3", "no success is lost", masking.silent_success, 0.01, "robust", masking.cannot_be_watched),
    Question("I4", "the attack has converged", masking.optimised, 0.5, "robust", masking.cannot_be_watched),
    Question(
        "C10 past",
        "gradients past the defense find no more",
        stronger.around_purifiers,
        0.005,
        "robust",
        sanity.no_purifier,
    ),
    Question(
        "C13 off",
        "the attack works without the defense",
        sanity.undefended,
        0.01,
        "right",
        sanity.no_purifier,
    ),
    Question("A1", "all experiments together find no more", stronger.altogether, 0.01, "robust"),
]
DETECTOR = [  # of what classifier and detector hold together, which is no part of the claim on the classifier
    Question("D2", "nothing more gets past classifier and detector", detector.got_past, 0.002, "held"),
    Question("D1", "the score's slope explains its changes", detector.slopes, 0.25, "held"),
]
