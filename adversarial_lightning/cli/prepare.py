"""Objects behind the words of the command line: model, defenses, detector, data and campaign."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from adversarial_lightning import datamodules, defenses, detectors
from adversarial_lightning.checkpoints.files import digest_file, digest_weights
from adversarial_lightning.checkpoints.load import check_fit, open_network
from adversarial_lightning.checkpoints.spec import PACKAGE, Spec, build, catalogue, describe, plain
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation import Campaign
from adversarial_lightning.evaluation.audit import Untouched
from adversarial_lightning.evaluation.campaign.identity import (
    data_part,
    identify,
    images_part,
    suite_part,
    with_files,
)
from adversarial_lightning.evaluation.campaign.launch import (
    Rank,
)
from adversarial_lightning.evaluation.campaign.source_code import code_part, named
from adversarial_lightning.evaluation.outcomes.detection import calibration, score_images, threshold
from adversarial_lightning.networks.foreign_weights import Report

Wrap = Callable[[nn.Module], nn.Module]
Detect = Callable[[nn.Module], detectors.Detector]


@dataclass
class Evaluation:
    """Objects that the command line names: a network, the model behind its defenses, a campaign, its parts.

    `parts` are those of its identity. `source` is where the weights are from: a file, or the class of a network that
    brings its own.
    """

    network: nn.Module
    model: nn.Module
    detector: detectors.Detector | None
    data: Any
    campaign: Campaign
    parts: Spec
    source: str
    imported: Report | None
    untouched: Untouched | None = None  # the model before its first forward, for the audit


def prepare(settings: Namespace, objects: Namespace) -> Evaluation:
    """The model behind its defenses and its detector, the campaign, and the parts of its identity; writes nothing."""
    choice = {"key": settings.weights_key, "prefix": settings.weights_prefix, "ignore": settings.weights_ignore}
    network, recorded, imported = open_network(settings.checkpoint, settings.weights, objects.network, **choice)
    path = settings.checkpoint or settings.weights
    checkpoint = {"sha256": digest_file(path) if path else digest_weights(network), "network": _spec(settings.network)}
    if imported:
        checkpoint["weights"] = digest_weights(network)  # of a file that holds several, those that were taken
    source = path or settings.network.class_path
    model, data = defended(network, objects, source, recorded)
    detector = objects.detector(model) if objects.detector else None
    images = data.dataset("test")
    if detector is not None:
        model = detectors.DetectorGuardedModel(model, detector)
        images = detectors.test_split(images, detector.seen)
    n = len(images) if settings.limit is None else min(settings.limit, len(images))
    draws = settings.draws or (20 if defenses.required_adaptations(model)["eot"] else 1)
    campaign = Campaign(
        suite=objects.suite,
        data=images,
        n=n,
        seed=settings.seed,
        folder=settings.output,
        identity="",  # known below
        mode=settings.mode,
        draws=draws,
        scored=detector is not None,
        sample=settings.sample,
        sample_seed=settings.sample_seed,
    )
    parts = {
        "checkpoint": checkpoint,
        "suite": suite_part(objects.suite),
        "data": data_part(describe(data), images, list(campaign.positions.values())),
        "samples": asdict(campaign.chosen),
        "defenses": [_spec(entry) for entry in settings.defenses],
        "seed": settings.seed,
        "detector": _spec(settings.detector),
        "fpr": settings.fpr if settings.detector else None,
        "calibrate": settings.calibrate,
        "calibration_images": None,
        "mode": settings.mode,
        "draws": draws,
        "precision": [settings.precision, settings.compile],
        "code": code_part([settings[name] for name in ("network", "suite", "data", "defenses", "detector")]),
    }
    if detector is not None:
        held_out = images if settings.calibrate == "test" else data.dataset("val")
        parts["calibration_images"] = images_part(held_out, range(len(held_out)))
    campaign = replace(campaign, identity=identify(parts))
    return Evaluation(network, model, detector, data, campaign, parts, source, imported)


def calibrate(evaluation: Evaluation, settings: Namespace) -> None:
    """Set the detector's threshold from clean held-out images; from test images only if told (MALADE's paper)."""
    detector, campaign = evaluation.detector, evaluation.campaign
    if detector is None:
        return
    images = campaign.data if settings.calibrate == "test" else evaluation.data.dataset("val")
    about = {
        "detector": evaluation.parts["detector"],
        "aimed_fpr": settings.fpr,
        "own_theta": detector.own_theta,
        "split": settings.calibrate,
    }
    measure = partial(score_images, detector, images, settings.batch_size, settings.seed)
    detector.theta = threshold(calibration(campaign.folder, measure, about), settings.fpr)


def defended(model: nn.Module, objects: Namespace, source: str, recorded: Spec | None) -> tuple[nn.Module, Any]:
    """The model behind its defenses, and its data."""
    data = objects.data or _recorded_data(source, recorded)
    check_fit(model, data)
    for defense in objects.defenses:
        model = defense(model)
    return model, data


def _recorded_data(source: str, spec: Spec | None) -> Any:
    if spec is None:
        raise UserError(f"{source} does not record its data: give --data, for example digits")
    try:
        data = build(spec, catalogue(datamodules))
        if hasattr(data, "download"):
            data.download = False  # a file does not decide what is fetched
        return data
    except ValueError as error:
        raise UserError(f"{source} does not say how to load its data: {error}. Give --data") from error


def device(accelerator: str, rank: Rank) -> torch.device:
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("--accelerator cuda: torch sees no GPU here; use --accelerator cpu, or auto")
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank.local % torch.cuda.device_count())


def _spec(given: Any) -> Any:
    """Values that the user wrote, in plain types; classes by room and name, functions by path, files by their bytes."""
    values = given.clone(with_meta=False).as_dict() if isinstance(given, Namespace) else given
    return with_files(plain(_short(values)))


def _short(spec: Any) -> Any:
    """`spec` with this project's classes written as checkpoints write them: ``networks.SmallCNN``."""
    if isinstance(spec, list | tuple):
        return [_short(value) for value in spec]
    if isinstance(spec, Namespace):
        return _short(spec.as_dict())
    if isinstance(spec, dict):
        return {n: v.removeprefix(f"{PACKAGE}.") if n == "class_path" else _short(v) for n, v in spec.items()}
    return named(spec)
