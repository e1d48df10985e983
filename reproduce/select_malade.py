"""Chooses step size, length and noise of a MALADE (or MALA) chain on held-out images under adaptive attacks.

python -m adversarial_lightning.reproduce.select_malade --checkpoint CKPT --denoiser CKPT --output FILE.json
    [--images '[100, 300, 1000]']
python -m adversarial_lightning.reproduce.select_malade --config FILE.yaml   (the same options by name;
    --print_config writes such a file)

Every candidate is attacked by BPDA + EOT and by the full gradient through ITS chain; its score is the lower accuracy
(scored by BPDA alone, chains that mask gradients win). A candidate whose clean accuracy is more than --points below
that of the bare classifier is dropped. The best third is measured on more images; of equal ones the shorter chain wins,
then the smaller step. The table of all candidates is written, with how many images each was judged on; only images that
the classifier's training held out (and chose its checkpoint by) are read, never test images.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from adversarial_lightning import datamodules
from adversarial_lightning.attacks import BPDA, PGD, Noise
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.defenses import MALA, MALADE, Purified, required_adaptations
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.outcome import predict
from adversarial_lightning.networks import Denoiser
from adversarial_lightning.reproduce.record import record_benchmark


@dataclass(frozen=True)
class Candidate:
    """Chain: pull c = alpha / sigma2 of a step, steps N, noise delta / sqrt(2 alpha), annealing gamma."""

    pull: float
    steps: int
    noise: float
    annealing: float = 1.0


@dataclass(frozen=True)
class Score:
    """Accuracies on `images` images: without attack, under BPDA + EOT, under the full gradient (none: not attacked)."""

    images: int
    clean: float
    bpda: float | None = None
    full: float | None = None

    @property
    def robust(self) -> float:
        """Accuracy under the stronger attack; below 0 where no attack was run."""
        return -1.0 if self.bpda is None or self.full is None else min(self.bpda, self.full)


Row = tuple[Candidate, Score]


def halve(
    candidates: Sequence[Candidate], measure: Callable[[Candidate, int], Score], images: Sequence[int]
) -> list[Row]:
    """Successive halving: all measurements in their order, the winner's last."""
    rows: list[Row] = []
    for i, n in enumerate(images):
        found = [(candidate, measure(candidate, n)) for candidate in candidates]
        found.sort(key=lambda row: (row[1].robust, -row[0].steps, -row[0].pull))  # best last
        rows += found
        last = i == len(images) - 1
        keep = 1 if last else max(1, len(found) // 3)
        candidates = [candidate for candidate, score in found[-keep:] if score.robust >= 0]
        if not candidates:
            raise UserError("no candidate keeps the clean accuracy: allow more --points")
    return rows


def measure(
    network: nn.Module, denoiser: Denoiser, images: tuple[Tensor, Tensor, Tensor], options: Any
) -> Callable[[Candidate, int], Score]:
    """Function that scores a candidate: deterministic, keyed by the image."""
    x, y, index = images
    noise = Noise.keyed(options.seed, index)

    def accuracy(model: nn.Module, z: Tensor, rows: slice) -> float:
        count = options.draws if required_adaptations(model)["eot"] else 1
        _, right = predict(model, z, y[rows], [noise[rows].fork("defender").fork(k) for k in range(count)])
        return float(torch.stack([(right >> k & 1).float() for k in range(count)]).mean())  # one bit a draw

    def judge(candidate: Candidate, n: int) -> Score:
        rows, alpha = slice(0, n), candidate.pull * denoiser.sigma2
        kind = MALA if denoiser.trained_for is None else MALADE
        purifier = kind(denoiser, alpha, candidate.steps, candidate.noise * (2 * alpha) ** 0.5, candidate.annealing)
        model, known = Purified(network, purifier), slice(0, max(n, options.clean))
        bare, clean = accuracy(network, x[known], known), accuracy(model, x[known], known)
        if clean < bare - options.points / 100 - 1e-9:
            return Score(n, clean)
        left = []
        for way in (BPDA, lambda attack: attack):
            pgd = PGD(eps=options.eps, steps=options.steps, eot_samples=options.samples if purifier.stochastic else 1)
            parts = [slice(i, min(n, i + options.batch)) for i in range(0, n, options.batch)]
            z = [way(pgd)(model, x[p], y[p], noise[p].fork("attacker")) for p in parts]
            left.append(accuracy(model, torch.cat(z), rows))
        return Score(n, clean, *left)

    return judge


def main() -> None:
    parser = ArgumentParser(prog="select_malade", description=__doc__)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with these options")
    add("--checkpoint", type=str, required=True, help="the classifier's .ckpt")
    add("--denoiser", type=str, required=True, help="the .ckpt of its sDAE, or of a DAE")
    add("--output", type=Path, required=True, help="JSON file: the table of candidates")
    add("--images", type=list[int], default=[100, 300, 1000], help="held-out images of each round")
    add("--clean", type=int, default=0, help="least number of images for clean accuracy")
    add("--pull", type=list[float], default=[0.02, 0.05, 0.1, 0.2, 0.5, 1.0], help="alpha / sigma2")
    add("--length", type=list[int], default=[1, 5, 10, 25, 50], help="N")
    add("--noise", type=list[float], default=[0.0, 0.1, 0.3, 1.0], help="delta / sqrt(2 alpha)")
    add("--annealing", type=list[float], default=[1.0, 0.95], help="gamma")
    add("--eps", type=float, default=0.3, help="linf radius")
    add("--steps", type=int, default=40, help="of the attacks")
    add("--samples", type=int, default=10, help="EOT")
    add("--draws", type=int, default=5, help="of the defender")
    add("--points", type=float, default=2.0, help="largest allowed loss of clean accuracy, in per cent points")
    add("--batch", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--note", type=str, default="", help="remark for readers of the table")
    options = parser.parse_args()
    network, spec = load_network(options.checkpoint)
    denoiser, _ = load_network(options.denoiser)
    assert isinstance(denoiser, Denoiser)
    held_out = build(spec, catalogue(datamodules)).dataset("val")
    wanted = max(*options.images, options.clean)
    if wanted > len(held_out):
        raise SystemExit(f"only {len(held_out)} images were held out: lower --images and --clean to that")
    # In random order, so that the first n are a random subset, nested in that of the next round.
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    images = held_out.__getitems__(order[:wanted].tolist())
    grid = itertools.product(options.pull, options.length, options.noise, options.annealing)
    candidates = [Candidate(*values) for values in grid if values[1] > 1 or values[3] == 1]  # one step anneals nothing
    rows = halve(candidates, measure(network, denoiser, images, options), options.images)
    winner, score = rows[-1]
    alpha = winner.pull * denoiser.sigma2
    chain = {"step_size": alpha, "steps": winner.steps, "noise_std": winner.noise * (2 * alpha) ** 0.5}
    chain["annealing"] = winner.annealing
    apart = ("config", "checkpoint", "denoiser", "output", "note")
    record_benchmark(
        options.output,
        {name: Path(options[name]) for name in ("checkpoint", "denoiser")},
        {name: value for name, value in options.as_dict().items() if name not in apart} | {"split": "val"},
        {"winner": chain, "candidates": [{**asdict(c), **asdict(s), "robust": s.robust} for c, s in rows]},
        options.note,
    )
    print(", ".join(f"{name}: {value:.4g}" for name, value in chain.items()), f"# {score}")


if __name__ == "__main__":
    main()
