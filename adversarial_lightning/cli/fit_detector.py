"""``lightning fit-detector``: fit a detector to a checkpoint, and keep it in a file."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from adversarial_lightning import datamodules, detectors
from adversarial_lightning.attacks import Attack
from adversarial_lightning.checkpoints.load import open_network
from adversarial_lightning.cli.class_names import prefer_ours
from adversarial_lightning.cli.configs import resolved
from adversarial_lightning.cli.messages import exits
from adversarial_lightning.cli.prepare import Detect, Wrap, defended, device
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.launch import Rank, find_rank


def options() -> ArgumentParser:
    """The options of ``lightning fit-detector``."""
    prefer_ours()
    parser = ArgumentParser(prog="lightning fit-detector", exit_on_error=False)
    add = parser.add_argument
    add("--checkpoint", type=str, required=True, help="the .ckpt file of a training run")
    add(
        "--detector",
        type=Detect,
        required=True,
        sub_configs=True,
        help="file or packaged name; writes its `fitted` file",
    )
    add(
        "--attack",
        type=Attack,
        required=True,
        sub_configs=True,
        help="file or packaged name; makes adversarial images",
    )
    add(
        "--data",
        type=datamodules.ImageData | None,
        sub_configs=True,
        help="file or packaged name; default: as in training",
    )
    add(
        "--network",
        type=nn.Module | None,
        sub_configs=True,
        help="file or packaged name; only tensors are from CKPT",
    )
    add(
        "--defenses",
        type=list[Wrap],
        default=[],
        sub_configs=True,
        help="file or packaged name; first: next to the network",
    )
    add("--accelerator", type=Literal["auto", "cpu", "cuda"], default="auto")
    add("--batch_size", type=int, default=128)
    add("--seed", type=int, default=0, help="of set I, a fifth of the test images, and of all random draws")
    add("--output", type=Path | None, help="instead of the file that the detector's YAML calls `fitted`")
    return parser


def fit_detector(argv: list[str], rank: Rank) -> int:
    """Fit a detector to a checkpoint: references from training images, the rest from set I of the test images."""
    parser = options()
    settings = parser.parse_args(resolved(argv))
    if settings.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, not {settings.batch_size}")
    arguments = settings.detector.get("init_args") or Namespace()
    output = settings.output or arguments.get("fitted")
    if output is None:
        raise UserError("name the file to write: --output FILE, or `fitted` in the detector's YAML")
    if "fitted" in arguments:
        arguments.fitted = None
    objects = parser.instantiate(settings)
    model, recorded, _ = open_network(settings.checkpoint, None, objects.network)
    model, data = defended(model, objects, settings.checkpoint, recorded)
    detector = objects.detector(model).to(device(settings.accelerator, rank))
    about = detectors.fit_on(detector, data, objects.attack, seed=settings.seed, batch_size=settings.batch_size)
    detector.save(output)
    found = {name: about[name] for name in ("set_one", "adversarial", "width", "auroc_set_one")}
    print(", ".join(f"{name} {value}" for name, value in found.items() if value is not None))
    print(f"fitted detector: {output}")
    return 0


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 an error of the user's."""
    rank = find_rank()
    return exits(lambda: fit_detector(argv, rank))
