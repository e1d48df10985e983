"""Time and memory of MALADE's chain: against N forwards of r; EOT batched or one by one; full gradient.

python benchmarks/malade_chain.py [--rounds 5] [--only chain eot memory]
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import torch
from timing import ratios, table

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.attacks.core.bpda import straight_through
from adversarial_lightning.attacks.core.gradient import ce, input_gradient
from adversarial_lightning.defenses import MALA, Purified
from adversarial_lightning.networks import ConvAutoencoder, Denoiser, MadryCNN
from adversarial_lightning.networks.eval_mode import frozen_eval


def setting(batch: int, steps: int, noise_std: float = 0.05) -> tuple[Purified, torch.Tensor, torch.Tensor]:
    """Untrained classifier with an untrained chain, and a batch of MNIST's shape."""
    torch.manual_seed(0)
    model = Purified(MadryCNN(), MALA(Denoiser(ConvAutoencoder()), 0.03, steps, noise_std)).eval()
    return model, torch.rand(batch, 1, 28, 28), torch.arange(batch) % 10


def gradient(batch: int, steps: int, samples: int, bpda: bool, at_once: int) -> Callable[[], object]:
    """Function for EOT gradients through the chain, or with the identity for it; limits the values of one batch."""
    model, x, y = setting(batch, steps)

    def run() -> None:
        way = straight_through(model.purifier) if bpda else nullcontext()
        draws = noise_for(model, Noise.keyed(0, torch.arange(batch)))
        with frozen_eval(model), draws, way, patch("adversarial_lightning.attacks.core.eot_batched._AT_ONCE", at_once):
            input_gradient(model, x, y, ce, samples)

    return run


def times(n: int, run: Callable[[], object]) -> Callable[[], object]:
    return lambda: [run() for _ in range(n)]


def chain(steps: int, noise_std: float) -> Callable[[], object]:
    model, x, _ = setting(64, steps, noise_std)

    def run() -> None:
        with torch.no_grad(), noise_for(model, Noise.keyed(0, torch.arange(64))):
            model.purifier(x)

    return run


def forwards(steps: int) -> Callable[[], object]:
    model, x, _ = setting(64, steps)

    def run() -> None:
        with torch.no_grad():
            for _ in range(steps):
                model.purifier.denoiser(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parts = ["chain", "eot", "memory"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # a child process: peak memory for this N
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of is not None:
        gradient(256, options.memory_of, 1, False, 2**16)()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    if "chain" in options.only:
        contestants = {
            "10 forwards of r": forwards(10),
            "chain without noise": chain(10, 0.0),
            "chain": chain(10, 0.05),
        }
        rows = ratios(contestants, options.rounds)
        print(table(rows, {"chain without noise": "<= 1.05", "chain": "<= 1.05"}) + "\n")
    if "eot" in options.only:
        eot(options.rounds)
    if "memory" in options.only:
        memory()


def eot(rounds: int) -> None:
    """EOT in one batch, one by one, and the lower bound of batching: as many different images without EOT."""
    for bpda in (True, False):
        for batch in (1, 16):
            many, size = 30 * batch, min(80, 30 * batch)
            name = f"EOT-30, batch {batch}, {'BPDA' if bpda else 'full gradient'}"
            found = ratios(
                {
                    f"{name}: together": gradient(batch, 5, 30, bpda, 2**16),
                    f"{name}: one by one": gradient(batch, 5, 30, bpda, 0),
                    f"{many} images, {size} at a time": times(many // size, gradient(size, 5, 1, bpda, 0)),
                    f"{many} images, {batch} at a time": times(30, gradient(batch, 5, 1, bpda, 0)),
                },
                rounds,
            )
            print(table(found, {f"{name}: one by one": ">= 4, or the ratio of the two below"}) + "\n")


def memory() -> None:
    """Peak memory of the full gradient, each chain in its own process."""
    peaks = []
    for steps in (0, 1, 25):
        words = [sys.executable, __file__, "--memory-of", str(steps)]
        peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
    print(f"peak memory of the full gradient at batch 256, N 25 over N 1: {peaks[2] / peaks[1]:.3f} (target <= 1.5)")
    above = (peaks[2] - peaks[0]) / max(1, peaks[1] - peaks[0])
    print(f"above that without a chain: {above:.2f} ({', '.join(f'{p / 1024:.0f} MiB' for p in peaks)} at N 0, 1, 25)")


if __name__ == "__main__":
    main()
