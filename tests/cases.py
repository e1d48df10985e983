"""Run small programs that each show one fault and exit with 0 once it is gone: ``make cases CASES=FOLDER``.

They were written for version 0.1, whose modules lay at the top level: they are copied into a temporary folder with the
names of today.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = "attacks|callbacks|datamodules|defenses|detectors|evaluation|lightning_modules|networks"
RENAMED = [
    (
        r"from evaluation\.checkpoint import describe, ",
        "from checkpoints.spec import describe\nfrom checkpoints.load import ",
    ),
    (r"from evaluation\.checkpoint import", "from checkpoints.load import"),
    (r"from evaluation\.outcome import", "from evaluation.outcomes.outcome import"),
    (r"from attacks\.norms import", "from attacks.core.norms import"),
    (
        r"from networks import (\w+), load_weights",
        r"from networks import \1\nfrom networks.foreign_weights import load_weights",
    ),
    (r"^import evaluate as program$", "from adversarial_lightning.cli import evaluate as program"),
    (rf"\bfrom ({ROOMS}|checkpoints)\b(?=[\w.]* import)", r"from adversarial_lightning.\1"),
    (r"\bimport (attacks|networks)\b", r"from adversarial_lightning import \1"),
    (
        r"(import pytorch_lightning as pl|lightning\.pytorch as L), networks\b",
        r"\1; from adversarial_lightning import networks",
    ),
    (r"(evaluate_batch\([^\n]*\))\[0\]$", r"\1[0][0]"),
    (r'(verdict"\] == )"fail"', r'\1"failed"'),
    (r'(verdict"\] == )"pass"', r'\1"passed"'),
    (r'(said, true = r\["worst_case"\]\[0\]\[")robust_accuracy', r"\1at_most"),
    (r"samples that the suite left stand\w+", "samples that the suite left robust"),
    (r"evaluation\.audit\.check import at_least", "evaluation.audit.check import lower_confidence_bound as at_least"),
    (r'"robust accuracy at" in', '"; n = " in'),
    (r"\bin evaluate_batch\(([^\n]*?)\)\)", r"in evaluate_batch(\1)[0])"),
]


def translated(text: str) -> str:
    """The program `text` with today's names."""
    for old, new in RENAMED:
        text = re.sub(old, new, text, flags=re.MULTILINE)
    return text


def main(folder: str, *names: str) -> int:
    """Run the programs of `folder` whose names begin with one of `names`, or all; return how many still fail."""
    failed = 0
    with tempfile.TemporaryDirectory() as copy:
        for path in sorted(Path(folder).glob("*.py")):
            (Path(copy) / path.name).write_text(translated(path.read_text(encoding="utf-8")), encoding="utf-8")
        programs = [p for p in sorted(Path(copy).glob("[!_]*.py")) if not names or p.name.startswith(names)]
        for path in programs:
            environment = {**os.environ, "REPO": str(ROOT), "TMPDIR": copy, "DATA": str(Path(folder).parent / "data")}
            command = [sys.executable, "-W", "ignore", path]
            run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            failed += run.returncode != 0
            said = (run.stdout.strip() or run.stderr.strip()).splitlines()[-1:]
            print(f"{'FAULT' if run.returncode else 'gone '} {path.stem}: {' '.join(said)[:200]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
