"""Makes a network of the zoo from a run of the papers' tables and its records.

python -m adversarial_lightning.reproduce.zoo TRAINING --name NAME [--runs runs] [--records results/papers/records]
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from adversarial_lightning.checkpoints import zoo
from adversarial_lightning.checkpoints.files import digest_file
from adversarial_lightning.checkpoints.load import load_checkpoint
from adversarial_lightning.errors import UserError
from adversarial_lightning.reproduce.papers.paper import known, trainings

MOST = 10, 25e6  # networks, bytes in all


def about(training: str, checkpoint: Path, records: Path) -> dict[str, Any]:
    """Provenance of a checkpoint: experiment, words, seed, commit, data, figures with n and interval, audit.

    Raises UserError where nothing is recorded of this checkpoint: a network without figures is not given away.
    """
    spec = trainings()[training]
    digest, figures, audit, data = digest_file(checkpoint), [], None, None
    for path in sorted((records / training).glob("*.json")):
        content = json.loads(path.read_text())
        if content.get("checkpoint") != digest or "samples" not in content:
            continue
        n, data = content["samples"]["n"], content["data"]
        clean = content["clean"]
        figures.append({"what": "clean", "n": n, "accuracy": clean["accuracy"], "interval": clean["interval"]})
        figures += [
            {"what": name, "norm": a["norm"], "eps": a["eps"], "n": n}
            | {"accuracy": a["robust_accuracy"], "interval": a["interval"]}
            for name, a in content["attacks"].items()
            if a["kind"] == "budget"
        ]
        audit = content["audit"] or audit
    if not figures:
        raise UserError(f"{records / training} records nothing of {checkpoint}: evaluate it first (lightning paper)")
    words = {"experiment": spec.experiment, "arguments": list(spec.arguments), "leaves_out": spec.leaves_out}
    return {
        **{"training": training, **words, "seed": 0, "checkpoint": digest, "commit": _commit()},
        **{"data": data, "figures": figures, "audit": audit},
    }


def make(training: str, name: str, runs: Path, records: Path) -> Path:
    """Write the file of a network. UserError for an unknown training, and where the zoo would be too large."""
    if training not in trainings():
        raise UserError(f"there is no training {training!r}{known(training, trainings())}")
    checkpoint = runs / training / "checkpoints" / f"{trainings()[training].weights}.ckpt"
    content = load_checkpoint(checkpoint)
    path = zoo.FOLDER / f"{name}.safetensors"
    zoo.save(path, content, about(training, checkpoint, records))
    files = list(zoo.FOLDER.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    if len(files) > MOST[0] or size > MOST[1]:
        path.unlink()
        raise UserError(f"the zoo would hold {len(files)} networks of {size / 1e6:.1f} MB, at most {MOST} are allowed")
    return path


def _commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training")
    parser.add_argument("--name", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--records", type=Path, default=Path("results/papers/records"))
    options = parser.parse_args()
    print(make(options.training, options.name, options.runs, options.records))
