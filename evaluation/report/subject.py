"""Subject of an evaluation in words: the model, what stands in front of it, and whether it is what it should be."""

from collections.abc import Mapping, Sequence
from typing import Any

from adversarial_lightning.evaluation.report.after_audit import audit_state, audit_words
from adversarial_lightning.evaluation.report.formatting import (
    count,
    interval,
    percent,
    samples,
    settings,
    share_of,
    threat,
)

PIXELS = "pixels in [0, 1]"  # the unit of every radius
MOST_NAMED = 3  # training attacks that fit into a line
_BEST = {"max": "highest", "min": "lowest", None: "best"}


def class_name(label: int, names: Sequence[str] | None) -> str:
    """Name of a class; its number where the data has no names, or none for it; -1: logits that are not finite."""
    if label < 0:
        return "not finite"
    return names[label] if names and label < len(names) else str(label)


def short(spec: Any) -> str:
    """Name of the class of a spec, with those inside it: ``Purified(MALADE)``."""
    if not isinstance(spec, Mapping):
        return str(spec)
    parts = [short(v) for v in (spec.get("init_args") or {}).values() if isinstance(v, Mapping) and "class_path" in v]
    return str(spec["class_path"]).rpartition(".")[2] + (f"({', '.join(parts)})" if parts else "")


def model_words(results: Mapping[str, Any]) -> str:
    """The model in a few words: ``SmallCNN, trained by ATENT at linf 0.15``; empty where it was not recorded."""
    model = results.get("model")
    if not model:
        return ""
    found = short(model["network"])
    if model["method"]:
        radii = list(dict.fromkeys(threat(a["norm"], a["eps"]) for a in model["training_attacks"]))
        at = f" at {' and '.join(radii)}" if 0 < len(radii) <= MOST_NAMED else ""
        found += f", trained by {str(model['method']['class_path']).rpartition('.')[2]}{at}"
    return found


def model_in_table(results: Mapping[str, Any]) -> str:
    """The model for a cell: `model_words`, number of parameters, epoch, and whether it is the best or the last one."""
    model = results.get("model")
    if not model:
        return ""
    said = [model_words(results), f"{count(model['parameters'])} parameters"]
    said += [f"epoch {model['epoch']}"] if model["epoch"] is not None else []
    kind = (model["choice"] or {}).get("kind")
    return ", ".join(said + ([f"{kind} checkpoint"] if kind else []))


def defended_by(results: Mapping[str, Any], brief: bool = False) -> str:
    """Defenses in front of the network, and the detector, with their settings or `brief`, by name alone."""
    say = short if brief else settings
    front, detection = " and ".join(map(say, results["defenses"])), results.get("detection")
    found = [f"behind {front}"] if front else []
    found += [f"with detector {say(detection['detector'])}"] if detection else []
    return ", ".join(found) or "no defense"


def judged(results: Mapping[str, Any]) -> str:
    """What a robust accuracy is of, by name: ``SmallCNN behind Purified``; with a detector, its predictions alone."""
    model, front = results.get("model"), " and ".join(map(short, results["defenses"]))
    name = short(model["network"]) if model else "the model" if front or results.get("detection") else ""
    found = f" of {name}" if name else ""
    found += f" behind {front}" if front else ""
    return found + (" by its predictions alone" if results.get("detection") else "")


def detector_words(results: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """Robustness of a threat model with the detector that it was judged with; empty without one."""
    detection = results.get("detection")
    if not detection:
        return ""
    level = next(d for d in case["detection"]["levels"] if d["fpr"] == detection["aimed_fpr"])
    shares = [share_of(level["malade"][key], results["n"]) for key in ("robust", "strict")]
    before = "before the audit " * bool(case.get("broken_by_audit"))
    return (
        f"{before}with detector {short(detection['detector'])} at {100 * detection['aimed_fpr']:g} % false positives "
        f"{shares[0]} if flagged images count as defended, {shares[1]} if they count as failures"
    )


def draws_words(results: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """What the accuracy of a stochastic model is a mean over, and how far it is from the worst; empty for others."""
    n, d = results["n"], case.get("draws")
    if not d:
        return ""
    before = "before the audit " * bool(case.get("broken_by_audit"))
    return (
        f"{before}mean over {d['n']} draws of the defense's noise, "
        f"95 % interval over draws {interval(d['interval'], n)}; "
        f"{percent(d['worst_draw'], n)} in the worst single draw, {percent(d['every_draw'], n)} right in every draw"
    )


def interval_note(results: Mapping[str, Any]) -> str:
    """What the intervals of accuracies are over, or why there are none."""
    if results["clean_interval"] is not None:
        return "intervals are over images"
    if results["samples"]["chosen"] == "all":
        return "no interval over images, because these are all of them"
    return "no interval, because the first images are no random sample of their set"


def subject(results: Mapping[str, Any]) -> str:
    """Subject of the evaluation in one line: model, defenses, data, samples, seed."""
    said = (
        model_words(results),
        defended_by(results),
        settings(results["data"]),
        samples(results),
        f"seed {results['seed']}",
    )
    return "; ".join(filter(None, said))


def model_facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Facts on the model by name: network, method, training attacks, epoch, choice of the checkpoint."""
    model = results.get("model")
    if not model:
        return {}
    attacks = [f"{a['attack']} at {threat(a['norm'], a['eps'])}, {PIXELS}" for a in model["training_attacks"] or ()]
    epoch = f"{model['epoch']} (counted from 0)" if model["epoch"] is not None else ""
    found = {
        "network": f"{settings(model['network'])}, {count(model['parameters'])} parameters",
        "method": settings(model["method"]) if model["method"] else "",
        "trained against": "; ".join(dict.fromkeys(attacks)),
        "epoch": f"{epoch}, after {count(model['steps'])} optimizer steps" if epoch and model["steps"] else epoch,
        "choice of checkpoint": choice_words(model["choice"]),
    }
    return {name: value for name, value in found.items() if value}


def choice_words(choice: Mapping[str, Any] | None) -> str:
    """How the checkpoint was chosen: ``best epoch: highest val/acc, 0.98, on the split val``."""
    if not choice:
        return ""
    which = {"best": "the best epoch", "last": "the last one saved", None: "neither known as the best nor as the last"}
    if not choice["monitor"]:
        return f"{which[choice['kind']]}; nothing was monitored"
    where = f" on the split {choice['split']}" if choice["split"] else ""
    by = f"{_BEST[choice['mode']]} {choice['monitor']}{where}"
    if choice["kind"] == "best":
        return f"{which['best']}: {by}, {choice['value']:.4g}"
    measured = [
        f"{w} {choice[k]:.4g}"
        for k, w in (("value", "when last measured"), ("best_value", "at best"))
        if choice[k] is not None
    ]
    return f"{which[choice['kind']]}; the best epoch has the {by}" + (f" ({', '.join(measured)})" if measured else "")


def published_words(results: Mapping[str, Any]) -> str:
    """Sentence on the published clean accuracy beside the measured one."""
    found, published = f"{100 * results['clean_accuracy']:.2f} % clean", results.get("published")
    if not published:
        return f"{found}; no published figure to compare with: --published 0.8492"
    said = f"{found}, {100 * published['clean_accuracy']:.2f} % published"
    if not published["differs"]:
        return f"{said}, which agrees"
    return (
        f"{said}, which DIFFERS: check normalisation, resizing, labels and the file before you believe any number here"
    )


def differs(results: Mapping[str, Any]) -> bool:
    """Whether the clean accuracy is known to differ from the published one: then nothing here can be believed."""
    return bool((results.get("published") or {}).get("differs"))


def raised_words(results: Mapping[str, Any]) -> str:
    """Phrase on the errors that the model raised; empty where there were none."""
    found = results.get("raised") or []
    errors = "; ".join(dict.fromkeys(each["error"] for each in found))
    under = ", ".join(dict.fromkeys(f"{each['attack']}" for each in found))
    return f"the model raised an error ({errors}) under {under}, which counts as wrong" if found else ""


def badge_state(results: Mapping[str, Any]) -> str:
    """State of the evaluation: the audit's, but ``failed`` where the model raised an error or `differs`."""
    return "failed" if differs(results) or results.get("raised") else audit_state(results["audit"])


def doubts(results: Mapping[str, Any]) -> list[str]:
    """Phrases on what stands against the whole evaluation, besides its audit."""
    different = "clean accuracy differs from the published one" if differs(results) else ""
    return [phrase for phrase in (different, raised_words(results)) if phrase]


def badge_words(results: Mapping[str, Any]) -> str:
    """Phrase for the state of the evaluation."""
    return "; ".join([*doubts(results), audit_words(results["audit"])])
