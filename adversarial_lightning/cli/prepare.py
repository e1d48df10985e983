"""Objects behind the words of the command line: model, defenses, detector, data and campaign."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from adversarial_lightning import datamodules, defenses, detectors
from adversarial_lightning.checkpoints.files import digest_file
from adversarial_lightning.checkpoints.load import check_fit, open_network
from adversarial_lightning.checkpoints.spec import PACKAGE, Spec, build, catalogue, describe, plain
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation import Campaign
from adversarial_lightning.evaluation.campaign.identity import (
    data_part,
    identify,
    suite_part,
    with_files,
)
from adversarial_lightning.evaluation.campaign.launch import (
    Rank,
)
from adversarial_lightning.evaluation.outcomes.detection import calibration, score_images, threshold
from adversarial_lightning.networks.foreign_weights import Report

Wrap = Callable[[nn.Module], nn.Module]
Detect = Callable[[nn.Module], detectors.Detector]


@dataclass
class Evaluation:
    """Objects that the command line names: a network, the model behind its defenses, a campaign, its parts."""

    network: nn.Module
    model: nn.Module
    detector: detectors.Detector | None
    data: Any
    campaign: Campaign
    parts: Spec
    imported: Report | None


def prepare(settings: Namespace, objects: Namespace) -> Evaluation:
    """The model behind its defenses and its detector, the campaign, and the parts of its identity; writes nothing."""
    path = settings.checkpoint or settings.weights
    network, recorded, imported = open_network(settings.checkpoint, settings.weights, objects.network)
    model, data = defended(network, objects, path, recorded)
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
        "checkpoint": {"sha256": digest_file(path), "network": _spec(settings.network)},
        "suite": suite_part(objects.suite),
        "data": data_part(describe(data), images),
        "samples": asdict(campaign.chosen),
        "defenses": [_spec(entry) for entry in settings.defenses],
        "seed": settings.seed,
        "detector": _spec(settings.detector),
        "fpr": settings.fpr if settings.detector else None,
        "calibrate": settings.calibrate,
        "mode": settings.mode,
        "draws": draws,
        "precision": [settings.precision, settings.compile],
    }
    campaign = replace(campaign, identity=identify(parts))
    return Evaluation(network, model, detector, data, campaign, parts, imported)


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


def defended(model: nn.Module, objects: Namespace, path: str, recorded: Spec | None) -> tuple[nn.Module, Any]:
    """The model behind its defenses, and its data."""
    data = objects.data or _recorded_data(path, recorded)
    check_fit(model, data)
    for defense in objects.defenses:
        model = defense(model)
    return model, data


def _recorded_data(checkpoint: str, spec: Spec | None) -> Any:
    if spec is None:
        raise UserError(f"{checkpoint} does not record its data: give --data, for example digits")
    try:
        data = build(spec, catalogue(datamodules))
        if hasattr(data, "download"):
            data.download = False  # a file does not decide what is fetched
        return data
    except ValueError as error:
        raise UserError(f"{checkpoint} does not say how to load its data: {error}. Give --data") from error


def device(accelerator: str, rank: Rank) -> torch.device:
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("--accelerator cuda: torch sees no GPU here; use --accelerator cpu, or auto")
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank.local % torch.cuda.device_count())


def _spec(given: Namespace | None) -> Any:
    """Values that the user wrote, in plain types; classes by room and name, files by their bytes."""
    return with_files(_short(plain(given.clone(with_meta=False).as_dict()))) if given else None


def _short(spec: Any) -> Any:
    """`spec` with this project's classes written as checkpoints write them: ``networks.SmallCNN``."""
    if isinstance(spec, list):
        return [_short(value) for value in spec]
    if isinstance(spec, dict):
        return {n: v.removeprefix(f"{PACKAGE}.") if n == "class_path" else _short(v) for n, v in spec.items()}
    return spec
