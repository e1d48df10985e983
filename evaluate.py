"""How robust is this checkpoint? Attacks it with a suite and writes DIR/results.json and DIR/report.md.

    python evaluate.py --checkpoint CKPT --suite configs/suites/quick.yaml --output DIR [--devices 2] [...]
    python evaluate.py compare DIR1 DIR2 ... [--output FILE]

Run the same command again to resume after an interruption, with any number of processes.
"""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn

import datamodules
import defenses
import networks  # noqa: F401  (imported for its short class names)
from attacks import Attack
from evaluation.campaign import CLEAN, Campaign
from evaluation.checkpoint import build, catalogue, describe, load_network, plain
from evaluation.errors import exits
from evaluation.identity import data_part, digest_file, settle, suite_part, with_files
from evaluation.ledger import check_free
from evaluation.processes import Place, behave, place, spawn, tell_parent
from evaluation.progress import Bars
from evaluation.report import Incomplete, compare, headlines, refusals, write_report

Wrap = Callable[[nn.Module], nn.Module]


def options() -> ArgumentParser:
    """What evaluate.py can be told."""
    parser = ArgumentParser(prog="evaluate.py", description=__doc__, exit_on_error=False)
    parser.add_argument("--checkpoint", type=str, required=True, help="the .ckpt file of a training run")
    parser.add_argument("--suite", type=dict[str, Attack], required=True, sub_configs=True, help="attacks by name (YAML)")
    parser.add_argument("--data", type=datamodules.ImageData | None, sub_configs=True, help="other data than the training's")
    parser.add_argument("--network", type=nn.Module | None, sub_configs=True, help="take only tensors from the checkpoint")
    parser.add_argument("--defenses", type=list[Wrap], default=[], sub_configs=True, help="first: next to the classifier")
    parser.add_argument("--limit", type=int | None, help="only the first so many test images")
    parser.add_argument("--devices", type=int, default=1, help="number of processes")
    parser.add_argument("--accelerator", type=Literal["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--batch_size", type=int, default=128, help="images per step and process; no effect on outcomes")
    parser.add_argument("--workers", type=int, default=0, help="loader processes for each process")
    parser.add_argument("--seed", type=int, default=0, help="of all random draws, attackers' and defenders'")
    parser.add_argument("--output", type=Path, required=True, help="folder of this evaluation")
    return parser


def evaluate(argv: list[str], here: Place) -> int:
    """Do this process's share, or start the processes that do; write the report once all is there."""
    parser = options()
    settings = parser.parse_args(argv)
    for name in ("devices", "batch_size"):
        if settings[name] < 1:
            raise ValueError(f"--{name} must be at least 1, not {settings[name]}")
    objects = parser.instantiate(settings)
    device = _device(settings.accelerator, here)

    model, recorded = load_network(settings.checkpoint, objects.network)
    data = objects.data or _recorded_data(settings.checkpoint, recorded)
    have, need = getattr(model, "num_classes", None), data.num_classes
    if have is not None and have != need:
        raise ValueError(f"the network has {have} outputs and {type(data).__name__} {need} classes: give other --data")
    for wrap in objects.defenses:
        model = wrap(model)
    obligations = defenses.obligations(model)

    images = data.dataset("test")
    n = len(images) if settings.limit is None else min(settings.limit, len(images))
    parts = _parts(settings, objects, data_part(describe(data), images), n)
    identity = settle(settings.output, parts, {"checkpoint": settings.checkpoint})
    campaign = Campaign(objects.suite, images, n, settings.seed, settings.output, identity)
    command = shlex.join(["python", "evaluate.py", *argv])

    def finish() -> int:
        checkpoint = {"path": settings.checkpoint, "sha256": parts["checkpoint"]["sha256"]}
        told = {"checkpoint": checkpoint, "data": parts["data"], "defenses": parts["defenses"]}
        results = write_report(campaign, **told, obligations=obligations, command=command)
        for sentence in headlines(results, set(refusals(campaign.suite, obligations))):
            print(sentence)
        for warning in results["warnings"]:
            print(f"warning: {warning}")
        print(f"report: {settings.output / 'report.md'}")
        return 0

    bars = Bars({name: len(campaign.units(name)) for name in (CLEAN, *campaign.suite)}, n)
    if here.world == 1 and settings.devices > 1:
        check_free(settings.output, run="none")
        with bars:
            failed = spawn([sys.executable, str(Path(__file__).resolve()), *argv], settings.devices, bars.tell)
        return failed or finish()
    model.to(device)
    how = {"rank": here.rank, "world": here.world, "run": here.run, "alive": here.alive}
    batches = {"batch_size": settings.batch_size, "workers": settings.workers}
    if here.spawned:
        campaign.run(model, **how, **batches, tell=tell_parent)
        return 0
    with bars:
        campaign.run(model, **how, **batches, tell=bars.tell)
    try:
        return finish()
    except Incomplete:
        if here.world == 1:
            raise
        print(f"process {here.rank} of {here.world} is done; the last one writes the report")
        return 0


def _recorded_data(checkpoint: str, spec: dict[str, Any] | None) -> Any:
    if spec is None:
        raise ValueError(f"{checkpoint} does not record its data: give --data, for example configs/data/digits.yaml")
    try:
        return build(spec, catalogue(datamodules))
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not say how to load its data: {error}. Give --data") from error


def _parts(settings: Namespace, objects: Namespace, data: dict[str, Any], n: int) -> dict[str, Any]:
    """Everything that may change a number."""
    network = plain(settings.network.as_dict()) if settings.network else None
    given = [plain(entry.as_dict()) for entry in settings.defenses]
    return {
        "checkpoint": {"sha256": digest_file(settings.checkpoint), "network": network},
        "suite": suite_part(objects.suite),
        "data": data,
        "defenses": with_files(given),
        "seed": settings.seed,
        "limit": n,
    }


def _device(accelerator: str, here: Place) -> torch.device:
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("--accelerator cuda: torch sees no GPU here; use --accelerator cpu, or auto")
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda", here.local % torch.cuda.device_count())


def compare_command(argv: list[str]) -> int:
    """Print several evaluations side by side."""
    parser = ArgumentParser(prog="evaluate.py compare", exit_on_error=False)
    parser.add_argument("folders", type=Path, nargs="+", help="--output folders of finished evaluations")
    parser.add_argument("--output", type=Path | None, help="also write the table to this file")
    settings = parser.parse_args(argv)
    text = compare(settings.folders)
    print(text, end="")
    if settings.output:
        settings.output.write_text(text, encoding="utf-8")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 an error of the user's, 143 after SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["compare"]:
        return exits(lambda: compare_command(argv[1:]))
    here = place()
    behave(here)
    return exits(lambda: evaluate(argv, here))


if __name__ == "__main__":
    sys.exit(main())
