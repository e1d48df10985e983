"""How robust is this checkpoint? Attacks it with a suite; writes results.json, report.md and report.html into DIR.

    python evaluate.py --checkpoint CKPT --suite configs/suites/quick.yaml --output DIR [--devices 2] [...]
    python evaluate.py fit-detector --checkpoint CKPT --detector FILE.yaml --attack FILE.yaml
    python evaluate.py compare DIR1 DIR2 ... [--output FILE.md|FILE.html|FOLDER]

Run the same command again to resume after an interruption, with any number of processes.
"""

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn

import datamodules
import defenses
import detectors
import networks  # noqa: F401  (imported for its short class names)
from attacks import Attack
from evaluation import Campaign, build, catalogue, describe, write_comparison, write_report
from evaluation.audit import audited
from evaluation.cascade import CLEAN, Mode
from evaluation.checkpoint import Spec, check_fit, plain
from evaluation.detection import calibration, score_images, threshold
from evaluation.errors import exits
from evaluation.haste import Precision, hasten
from evaluation.identity import data_part, digest_file, identify, settle, suite_part, with_files
from evaluation.locks import check_free
from evaluation.merge import Incomplete
from evaluation.parity import parity
from evaluation.processes import Place, behave, foretell_parent, place, spawn, tell_parent
from evaluation.progress import Bars
from evaluation.report import headlines
from evaluation.statistics import Results
from evaluation.weights import open_network, prove, record

Wrap = Callable[[nn.Module], nn.Module]
Detect = Callable[[nn.Module], detectors.Detector]


def options() -> ArgumentParser:
    """What evaluate.py can be told."""
    parser = ArgumentParser(prog="evaluate.py", description=__doc__, exit_on_error=False)
    add = parser.add_argument
    add("--checkpoint", type=str | None, help="the .ckpt file of a training run")
    add("--weights", type=str | None, help="instead: a state dict from elsewhere (.pt, .safetensors), with --network")
    add("--published", type=float | None, help="clean accuracy that was published for --weights, such as 0.8492")
    add("--suite", type=dict[str, Attack], required=True, sub_configs=True, help="YAML file: attacks by name")
    add("--data", type=datamodules.ImageData | None, sub_configs=True, help="YAML file; default: as in training")
    add("--network", type=nn.Module | None, sub_configs=True, help="YAML file; only tensors are taken from CKPT")
    add("--defenses", type=list[Wrap], default=[], sub_configs=True, help="YAML list; first: next to the network")
    add("--detector", type=Detect | None, sub_configs=True, help="YAML file; turns away what looks adversarial")
    add("--fpr", type=float, default=0.05, help="share of clean images turned away; detector-aware attacks aim at it")
    add("--calibrate", type=Literal["val", "test"], default="val", help="whose clean images give the threshold")
    add("--limit", type=int | None, help="only the first so many test images")
    add("--mode", type=Mode, default="full", help="worst_case: attack only what earlier attacks have left standing")
    add(
        "--draws", type=int | None, help="draws of the defender's noise; default: 20 if a defense is stochastic, else 1"
    )
    add("--audit", type=Literal["none", "brief", "quick", "full"], default="quick", help="how hard it is checked")
    add("--precision", type=Precision, default="float32", help="of the attacks; results are judged in float32")
    add("--compile", type=bool, default=False, help="compile the model for the attacks (torch.compile)")
    add("--devices", type=int, default=1, help="number of processes")
    add("--accelerator", type=Literal["auto", "cpu", "cuda"], default="auto")
    add("--batch_size", type=int, default=128, help="images per step and process; does not change outcomes")
    add("--workers", type=int, default=0, help="loader processes for each process")
    add("--seed", type=int, default=0, help="of all random draws, attackers' and defenders'")
    add("--output", type=Path, required=True, help="folder of this evaluation")
    return parser


def evaluate(argv: list[str], here: Place) -> int:
    """Do this process's share, or start the processes that do; write the report once all is there."""
    parser = options()
    if any(a.startswith("--data.") for a in argv) and not any(a.split("=")[0] == "--data" for a in argv):
        raise ValueError("--data.… changes a data file: name it before, for example --data configs/data/digits.yaml")
    settings = parser.parse_args(argv)
    if not 0 <= settings.fpr < 1:
        raise ValueError(f"--fpr is a share of at least 0 and below 1, not {settings.fpr}")
    for name in ("devices", "batch_size", "draws"):
        if settings[name] is not None and settings[name] < 1:
            raise ValueError(f"--{name} must be at least 1, not {settings[name]}")
    device = _device(settings.accelerator, here)
    model, campaign, parts, calibrate = _prepare(settings, parser.instantiate(settings))
    bars = Bars(
        {name: len(campaign.units(name)) for name in (CLEAN, *campaign.suite)},
        campaign.n,
        processes=max(here.world, settings.devices),
        quiet=here.rank > 0 or here.spawned,
    )
    if here.world == 1 and settings.devices > 1:
        check_free(campaign.folder, here.run)
        with bars:
            failed = spawn(
                [sys.executable, str(Path(__file__).resolve()), *argv], settings.devices, bars.tell, bars.foretell
            )
        if failed:
            return failed
        calibrate()
    else:
        model.to(device)
        calibrate()
        with bars:
            told = (tell_parent, foretell_parent(here)) if here.spawned else (bars.tell, bars.foretell)
            around = hasten(model, settings.precision, settings.compile)
            load = {"batch_size": settings.batch_size, "workers": settings.workers}
            campaign.run(model, here, **load, tell=told[0], foretell=told[1], around=around)
        if here.spawned:
            return 0
    obligations = defenses.obligations(model)

    def audit(merged: Results) -> dict[str, Any]:
        rows = min(settings.batch_size, 64)
        return audited(campaign, model, merged, obligations=obligations, level=settings.audit, rows=rows)

    def haste() -> dict[str, Any]:
        print("parity: attacking a few samples in float32 too", file=sys.stderr, flush=True)
        cases = parity(campaign, model, settings.batch_size)
        return {"precision": settings.precision, "compile": settings.compile, "cases": cases}

    model.to(device)
    try:
        results = write_report(
            campaign,
            checkpoint={"path": settings.checkpoint or settings.weights, "sha256": parts["checkpoint"]["sha256"]},
            data=parts["data"],
            defenses=parts["defenses"],
            obligations=obligations,
            command=shlex.join(["python", "evaluate.py", *argv]),
            model=model,
            audit=None if settings.audit == "none" else audit,
            haste=haste if settings.compile or settings.precision != "float32" else None,
        )
    except Incomplete:
        if here.world == 1:
            raise
        print(f"process {here.rank} of {here.world} is done; the last one writes the report")
        return 0
    print("\n".join([*headlines(results), *(f"warning: {text}" for text in results["warnings"])]))
    if settings.weights:
        print("\n".join(prove(campaign.folder, results["clean_accuracy"], results["n"], settings.published)))
    print(f"report: {campaign.folder / 'report.html'}")
    return 0


def _prepare(settings: Namespace, objects: Namespace) -> tuple[nn.Module, Campaign, Spec, Callable[[], None]]:
    """The model behind its defenses, the campaign in its folder, the parts of its identity, and what calibrates."""
    path = settings.checkpoint or settings.weights
    model, recorded, imported = open_network(settings.checkpoint, settings.weights, objects.network, settings.published)
    model, data = _defended(model, objects, path, recorded)
    detector = objects.detector(model) if objects.detector else None
    if detector is not None:
        model = detectors.Guarded(model, detector)
    images = data.dataset("test") if detector is None else detectors.set_two(data.dataset("test"), detector.seen)
    n = len(images) if settings.limit is None else min(settings.limit, len(images))
    draws = settings.draws or (20 if defenses.obligations(model)["eot"] else 1)
    parts = {
        "checkpoint": {"sha256": digest_file(path), "network": _spec(settings.network)},
        "suite": suite_part(objects.suite),
        "data": data_part(describe(data), images),
        "defenses": [_spec(entry) for entry in settings.defenses],
        "seed": settings.seed,
        "limit": n,
        "detector": _spec(settings.detector),
        "fpr": settings.fpr if settings.detector else None,
        **({"calibrate": settings.calibrate} if settings.calibrate != "val" else {}),
        "mode": settings.mode,
        "draws": draws,
        "haste": [settings.precision, settings.compile],
    }
    basics = objects.suite, images, n, settings.seed, settings.output, identify(parts)
    campaign = Campaign(*basics, mode=settings.mode, draws=draws, scored=detector is not None)
    settle(settings.output, parts)  # after everything that may be a mistake: it claims the folder
    if imported:
        record(settings.output, imported)

    def calibrate() -> None:
        """Set the detector's threshold from clean held-out images; from test images only if told (MALADE's paper)."""
        if detector is not None:
            held_out = images if settings.calibrate == "test" else data.dataset("val")
            measure = partial(score_images, detector, held_out, settings.batch_size, settings.seed)
            about = {"detector": parts["detector"], "aimed_fpr": settings.fpr, "own_theta": detector.own_theta}
            about["split"] = settings.calibrate
            detector.theta = threshold(calibration(campaign.folder, measure, about), settings.fpr)

    return model, campaign, parts, calibrate


def _spec(given: Namespace | None) -> Any:
    """What the user wrote, in plain values; files by their bytes."""
    return with_files(plain(given.clone(with_meta=False).as_dict())) if given else None


def _defended(model: nn.Module, objects: Namespace, path: str, recorded: Spec | None) -> tuple[nn.Module, Any]:
    """The model behind its defenses, and its data."""
    data = objects.data or _recorded_data(path, recorded)
    check_fit(model, data)
    for defense in objects.defenses:
        model = defense(model)
    return model, data


def _recorded_data(checkpoint: str, spec: Spec | None) -> Any:
    if spec is None:
        raise ValueError(f"{checkpoint} does not record its data: give --data, for example configs/data/digits.yaml")
    try:
        data = build(spec, catalogue(datamodules))
        if hasattr(data, "download"):
            data.download = False  # a file does not decide what is fetched
        return data
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not say how to load its data: {error}. Give --data") from error


def _device(accelerator: str, here: Place) -> torch.device:
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("--accelerator cuda: torch sees no GPU here; use --accelerator cpu, or auto")
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", here.local % torch.cuda.device_count())


def compare_command(argv: list[str]) -> int:
    """Print several evaluations side by side."""
    parser = ArgumentParser(prog="evaluate.py compare", exit_on_error=False)
    parser.add_argument("folders", type=Path, nargs="+", help="--output folders of finished evaluations")
    parser.add_argument(
        "--output", type=Path | None, help="also write it there: a .md or .html file, or a folder for both"
    )
    settings = parser.parse_args(argv)
    print(write_comparison(settings.folders, settings.output), end="")
    return 0


def fit_options() -> ArgumentParser:
    """What evaluate.py fit-detector can be told."""
    parser = ArgumentParser(prog="evaluate.py fit-detector", exit_on_error=False)
    add = parser.add_argument
    add("--checkpoint", type=str, required=True, help="the .ckpt file of a training run")
    add("--detector", type=Detect, required=True, sub_configs=True, help="YAML file; its `fitted` file is written")
    add("--attack", type=Attack, required=True, sub_configs=True, help="YAML file; makes the adversarial images")
    add("--data", type=datamodules.ImageData | None, sub_configs=True, help="YAML file; default: as in training")
    add("--network", type=nn.Module | None, sub_configs=True, help="YAML file; only tensors are taken from CKPT")
    add("--defenses", type=list[Wrap], default=[], sub_configs=True, help="YAML list; first: next to the network")
    add("--accelerator", type=Literal["auto", "cpu", "cuda"], default="auto")
    add("--batch_size", type=int, default=128)
    add("--seed", type=int, default=0, help="of set I, a fifth of the test images, and of all random draws")
    add("--output", type=Path | None, help="instead of the file that the detector's YAML calls `fitted`")
    return parser


def fit_command(argv: list[str], here: Place) -> int:
    """Fit a detector to a checkpoint: references from training images, the rest from set I of the test images."""
    parser = fit_options()
    settings = parser.parse_args(argv)
    if settings.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, not {settings.batch_size}")
    arguments = settings.detector.get("init_args") or Namespace()
    output = settings.output or arguments.get("fitted")
    if output is None:
        raise ValueError("name the file to write: --output FILE, or `fitted` in the detector's YAML")
    if "fitted" in arguments:
        arguments.fitted = None
    objects = parser.instantiate(settings)
    model, recorded, _ = open_network(settings.checkpoint, None, objects.network, None)
    model, data = _defended(model, objects, settings.checkpoint, recorded)
    detector = objects.detector(model).to(_device(settings.accelerator, here))
    about = detectors.fit_on(detector, data, objects.attack, seed=settings.seed, batch_size=settings.batch_size)
    detector.save(output)
    found = {name: about[name] for name in ("set_one", "adversarial", "width", "auroc_set_one")}
    print(", ".join(f"{name} {value}" for name, value in found.items() if value is not None))
    print(f"fitted detector: {output}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 an error of the user's, 143 after SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["compare"]:
        return exits(lambda: compare_command(argv[1:]))
    here = place()
    if argv[:1] == ["fit-detector"]:
        return exits(lambda: fit_command(argv[1:], here))
    behave(here)
    return exits(lambda: evaluate(argv, here))


if __name__ == "__main__":
    sys.exit(main())
