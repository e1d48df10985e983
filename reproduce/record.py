"""Records a run in results/TABLE/NAME: configuration, results, seed, machine and date.

python -m adversarial_lightning.reproduce.record --training runs/x --evaluation DIR --table mnist_linf --name atent
    [--note TEXT]
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch

RESULTS = Path(__file__).resolve().parent.parent / "results"


def machine() -> str:
    """Kind of machine: processor, cores in use, accelerator."""
    names = {line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")}
    parts = [f"{os.cpu_count()} cores of {', '.join(sorted(names)) or platform.processor() or platform.machine()}"]
    parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "; ".join(parts)


def about(note: str) -> dict[str, Any]:
    """Date, machine, versions and a note, recorded with all results."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {"torch": torch.__version__, "pytorch-lightning": pytorch_lightning.__version__},
        "note": note,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def without_arrays(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results without the arrays that only pictures need: ROC curves, and robust accuracy at 41 radii.

    Every accuracy, interval and length stays. Of a minimum-norm attack's `curve` the first point stays, radius 0: the
    key says that lengths, not one radius, are the outcome.
    """
    kept = {**results}
    for key in ("attacks", "worst_case"):
        kept[key] = [_without_arrays(entry) for entry in results[key]]
    return kept


def _without_arrays(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {**entry}
    if kept.get("curve"):
        kept["curve"] = {name: values[:1] for name, values in kept["curve"].items()}
    if kept.get("detection"):
        kept["detection"] = {name: value for name, value in kept["detection"].items() if name != "roc"}
    return kept


def written(content: Mapping[str, Any]) -> str:
    """Text of `content` as indented JSON, with lists of numbers on one line each."""
    text = json.dumps(content, indent=2)
    rows = re.compile(r"\[\n([^\[\]{}\"]*)\]")  # a string in JSON holds no line break
    return rows.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def record(training: Path, evaluation: Path, folder: Path, note: str) -> None:
    """Copy the configuration and the results of a run, without paths of this machine and without large arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    results = json.loads((evaluation / "results.json").read_text())
    checkpoint = torch.load(results["checkpoint"]["path"], weights_only=True, map_location="cpu")
    # Paths belong to the machine, not to the experiment.
    results["checkpoint"]["path"] = Path(results["checkpoint"]["path"]).name
    results["data"]["init_args"].pop("root", None)
    config = [
        line for line in (training / "config.yaml").read_text().splitlines() if not line.strip().startswith("root:")
    ]
    whole_path = rf"(?<!\w){re.escape(str(training))}(?!\w)"  # rb is no part of verbose
    (folder / "config.yaml").write_text(re.sub(whole_path, f"runs/{folder.name}", "\n".join(config)) + "\n")
    (folder / "results.json").write_text(written(without_arrays(results)))
    run = {**about(note), "epoch": checkpoint["epoch"]}
    (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n")


def record_benchmark(
    path: Path, checkpoints: dict[str, Path], settings: dict[str, Any], figures: dict[str, Any], note: str
) -> None:
    """Write the JSON file of a benchmark, such as results/attacks/x.json: `settings` hold the seed, too."""
    content = {
        "schema": 1,
        **about(note),
        "checkpoints": {title: hashlib.sha256(file.read_bytes()).hexdigest() for title, file in checkpoints.items()},
        "settings": settings,
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"recorded: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--evaluation", type=Path, required=True, help="--output of evaluate.py")
    parser.add_argument("--table", required=True, help="folder under results/")
    parser.add_argument("--name", required=True, help="row of the table; NAME/seed_1 is another training of NAME")
    parser.add_argument("--note", default="", help="remark for readers of this run")
    options = parser.parse_args()
    record(options.training, options.evaluation, RESULTS / options.table / options.name, options.note)
