"""``lightning evaluate``: attack a checkpoint with a suite; write results.json, report.md and report.html.

    lightning evaluate --checkpoint CKPT --suite quick --output DIR [--devices 2] [...]

Run the same command again to resume after an interruption, with any number of processes.
"""

import shlex
import sys
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from adversarial_lightning import datamodules, defenses
from adversarial_lightning.attacks import Attack, expanded
from adversarial_lightning.checkpoints.load import check_own_weights
from adversarial_lightning.checkpoints.provenance import provenance
from adversarial_lightning.cli.class_names import prefer_ours
from adversarial_lightning.cli.configs import resolved
from adversarial_lightning.cli.messages import exits
from adversarial_lightning.cli.prepare import Detect, Evaluation, Wrap, calibrate, device, prepare
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation import run_campaign, write_report
from adversarial_lightning.evaluation.audit import cached_audit, untouched_copy
from adversarial_lightning.evaluation.campaign.identity import (
    claim_folder,
)
from adversarial_lightning.evaluation.campaign.launch import (
    Rank,
    find_rank,
    install_signal_handlers,
    report_to_parent,
    spawn,
)
from adversarial_lightning.evaluation.campaign.locks import check_free
from adversarial_lightning.evaluation.campaign.merge import Incomplete, merge
from adversarial_lightning.evaluation.campaign.precision import Precision, low_precision
from adversarial_lightning.evaluation.campaign.precision_check import check_precision
from adversarial_lightning.evaluation.campaign.progress import Bars
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, Mode
from adversarial_lightning.evaluation.outcomes.imported_proof import compared, record
from adversarial_lightning.evaluation.outcomes.model_error import RAISED
from adversarial_lightning.evaluation.outcomes.statistics import Results
from adversarial_lightning.evaluation.outcomes.subset import Choice
from adversarial_lightning.evaluation.report import headlines, published_words

_ABOUT = (
    "Attack a checkpoint with a suite; write results.json, report.md and report.html. "
    "The same command again resumes after an interruption. "
    "Exit status: 0 done, 2 an error of yours, 3 done, but the clean accuracy differs from --published, "
    "4 done, but the model raised an error on some images."
)


def options() -> ArgumentParser:
    """The options of ``lightning evaluate``."""
    prefer_ours()
    parser = ArgumentParser(prog="lightning evaluate", description=_ABOUT, exit_on_error=False)
    add = parser.add_argument
    add("--checkpoint", type=str | None, help="the .ckpt file of a training run")
    add("--weights", type=str | None, help="instead: a state dict from elsewhere (.pt, .safetensors), with --network")
    add("--weights_key", type=str | None, help="which entry of the file --weights, such as state_dict_ema")
    add("--weights_prefix", type=str | None, help="what the names in it begin with, such as module.model")
    add(
        "--weights_ignore",
        type=list[str],
        default=[],
        help="names or patterns that are left out, such as [criterion.*]",
    )
    add(
        "--published",
        type=float | None,
        help="clean accuracy that was published for this model, such as 0.8492; exit status 3 where ours differs",
    )
    add(
        "--suite",
        type=dict[str, Attack],
        required=True,
        sub_configs=True,
        help="file or packaged name: attacks by name",
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
        help="file or packaged name; tensors are from CKPT or --weights, else its own",
    )
    add(
        "--defenses",
        type=list[Wrap],
        default=[],
        sub_configs=True,
        help="file or packaged name; first: next to the network",
    )
    add(
        "--detector",
        type=Detect | None,
        sub_configs=True,
        help="file or packaged name; flags what looks adversarial",
    )
    add("--fpr", type=float, default=0.05, help="false positive rate of the detector; detector-aware attacks aim at it")
    add("--calibrate", type=Literal["val", "test"], default="val", help="split for the detector threshold")
    add("--limit", type=int | None, help="only so many of the test images")
    add("--sample", type=Choice, default="random", help="which: a random subset, or the first (then no interval)")
    add("--sample_seed", type=int, default=0, help="of the random subset: the same images for every model")
    add("--mode", type=Mode, default="full", help="worst_case: attack only samples that no earlier attack has broken")
    add("--draws", type=int | None, help="draws of the defense's noise; default: 20 if a defense is stochastic, else 1")
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


def evaluate(argv: list[str], rank: Rank) -> int:
    """Do this process's share, or start the processes that do; write the report once all is there."""
    parser = options()
    if any(a.startswith("--data.") for a in argv) and not any(a.split("=")[0] == "--data" for a in argv):
        raise UserError("--data.… changes a data file: name it before, for example --data digits")
    settings = parser.parse_args(resolved(argv))
    check_settings(settings)
    where = device(settings.accelerator, rank)
    objects = parser.instantiate(settings)
    if settings.network and not (settings.checkpoint or settings.weights):
        check_own_weights(objects.network, lambda: parser.instantiate(settings).network)
    objects.suite = expanded(objects.suite)
    evaluation = prepare(settings, objects)
    campaign, model = evaluation.campaign, evaluation.model
    if settings.audit != "none" and not rank.spawned:
        evaluation.untouched = untouched_copy(model)
    claim_folder(settings.output, evaluation.parts)  # after everything that may be a mistake
    if evaluation.imported:
        record(settings.output, evaluation.imported)
    bars = Bars(
        {name: len(campaign.runs(name)) for name in (CLEAN, *campaign.suite)},
        campaign.n,
        quiet=rank.rank > 0 or rank.spawned,
    )
    if rank.world == 1 and settings.devices > 1:
        check_free(campaign.folder, rank.run)
        command = [sys.executable, "-m", "adversarial_lightning.cli", "evaluate", *argv]
        with bars:
            failed = spawn(command, settings.devices, bars.update)
        if failed:
            return failed
        model.to(where)  # the workers had the devices for themselves
        calibrate(evaluation, settings)
    else:
        model.to(where)
        calibrate(evaluation, settings)
        with bars:
            run_campaign(
                campaign,
                model,
                rank,
                batch_size=settings.batch_size,
                workers=settings.workers,
                on_progress=report_to_parent if rank.spawned else bars.update,
                attack_context=low_precision(model, settings.precision, settings.compile),
            )
        if rank.spawned:
            return 0
    try:
        merged = merge(campaign)
    except Incomplete:
        if rank.world == 1:
            raise
        print(f"process {rank.rank} of {rank.world} is done; the last one writes the report")
        return 0
    return report(evaluation, merged, settings, shlex.join(["lightning", "evaluate", *argv]))


def report(evaluation: Evaluation, merged: Results, settings: Namespace, command: str) -> int:
    """Audit a finished campaign, write the report, say the headlines.

    Exit status 4 where the model raised an error, 3 where --published differs, else 0.
    """
    campaign, model, parts = evaluation.campaign, evaluation.model, evaluation.parts
    adaptations = defenses.required_adaptations(model)
    audit = precision = None
    if settings.audit != "none":
        rows = min(settings.batch_size, 64)
        audit = cached_audit(
            campaign,
            model,
            merged,
            required_adaptations=adaptations,
            level=settings.audit,
            rows=rows,
            untouched=evaluation.untouched,
        )
    if settings.compile or settings.precision != "float32":
        print("precision check: attacking a few samples in float32 too", file=sys.stderr, flush=True)
        cases = check_precision(campaign, model, settings.batch_size)
        precision = {"attacks": settings.precision, "compile": settings.compile, "cases": cases}
    published = None
    if settings.published is not None:
        published = compared(merged["clean_accuracy"], settings.published, campaign.chosen)
    results = write_report(
        campaign,
        merged,
        facts={
            "model": provenance(evaluation.network, settings.checkpoint),
            "published": published,
            "class_names": list(evaluation.data.classes) if getattr(evaluation.data, "classes", None) else None,
            "weights": evaluation.imported.summary() if evaluation.imported else None,
        },
        checkpoint={"path": evaluation.source, "sha256": parts["checkpoint"]["sha256"]},
        data=parts["data"],
        defenses=parts["defenses"],
        required_adaptations=adaptations,
        command=command,
        model=model,
        audit=audit,
        precision=precision,
    )
    print("\n".join([*headlines(results), *(f"warning: {text}" for text in results["warnings"])]))
    if evaluation.imported:
        print("\n".join(evaluation.imported.lines()))
    if settings.weights or published:
        print(published_words(results))
    print(f"report: {campaign.folder / 'report.html'}")
    if results["raised"]:
        return RAISED
    return 3 if published and published["differs"] else 0


def check_settings(settings: Namespace) -> None:
    """Raise UserError for numbers that cannot be meant."""
    if not 0 <= settings.fpr < 1:
        raise UserError(f"--fpr is a share of at least 0 and below 1, not {settings.fpr}")
    if settings.published is not None and not 0 <= settings.published <= 1:
        raise UserError(f"--published {settings.published:g} is a share in [0, 1]: 0.8492 for 84.92 %")
    for name in ("devices", "batch_size", "draws"):
        if settings[name] is not None and settings[name] < 1:
            raise UserError(f"--{name} must be at least 1, not {settings[name]}")


def main(argv: list[str]) -> int:
    """Exit status: 0, 3 (--published differs) and 4 (the model raised errors) done, 2 a user's error, 143 SIGTERM."""
    rank = find_rank()
    install_signal_handlers(rank)
    return exits(lambda: evaluate(argv, rank))
