"""What MALADE's chain costs: against N forwards of r, EOT in one batch against one by one, memory of the full gradient.

python benchmarks/malade_chain.py [--rounds 5]
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from timing import ratios, table  # noqa: E402

from attacks import Noise, drawing, guard  # noqa: E402
from attacks.eot import straight_through  # noqa: E402
from attacks.gradient import input_gradient  # noqa: E402
from attacks.objectives import ce  # noqa: E402
from defenses import MALA, Purified  # noqa: E402
from networks import ConvAutoencoder, Denoiser, MadryCNN  # noqa: E402


def setting(batch: int, steps: int, noise_std: float = 0.05) -> tuple[Purified, torch.Tensor, torch.Tensor]:
    """An untrained classifier behind an untrained chain, with a batch of MNIST's shape."""
    torch.manual_seed(0)
    model = Purified(MadryCNN(), MALA(Denoiser(ConvAutoencoder()), 0.03, steps, noise_std)).eval()
    return model, torch.rand(batch, 1, 28, 28), torch.arange(batch) % 10


def gradient(batch: int, steps: int, samples: int, bpda: bool, at_once: int) -> Callable[[], object]:
    """EOT by the full gradient or with the identity for the chain, and at most so many values in one batch."""
    model, x, y = setting(batch, steps)

    def run() -> None:
        way = straight_through(model.purifier) if bpda else nullcontext()
        draws = drawing(model, Noise.keyed(0, torch.arange(batch)))
        with guard(model), draws, way, patch("attacks.gradient._AT_ONCE", at_once):
            input_gradient(model, x, y, ce, samples)

    return run


def chain(steps: int, noise_std: float) -> Callable[[], object]:
    model, x, _ = setting(64, steps, noise_std)

    def run() -> None:
        with torch.no_grad(), drawing(model, Noise.keyed(0, torch.arange(64))):
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
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # a child process: peak memory for this N
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of is not None:
        gradient(256, options.memory_of, 1, False, 2**16)()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return

    rows = ratios(
        {"10 forwards of r": forwards(10), "chain without noise": chain(10, 0.0), "chain": chain(10, 0.05)},
        options.rounds,
    )
    print(table(rows, {"chain without noise": "<= 1.05", "chain": "<= 1.05 and the noise"}))
    for bpda in (True, False):
        for batch in (1, 16):
            together, apart = gradient(batch, 5, 30, bpda, 2**16), gradient(batch, 5, 30, bpda, 0)
            name = f"EOT-30, batch {batch}, {'BPDA' if bpda else 'full gradient'}"
            found = ratios({"in one batch": together, f"{name}: one by one": apart}, max(2, options.rounds // 2))
            print("\n" + table(found, {f"{name}: one by one": ">= 4, or the floor"}))
    # The floor: what a batch of 480 costs beside 30 batches of 16, without any chain.
    net, x = MadryCNN().eval(), torch.rand(480, 1, 28, 28)
    with torch.no_grad():
        found = ratios(
            {"480 images": lambda: net(x), "30 x 16 images": lambda: [net(part) for part in x.chunk(30)]},
            options.rounds,
        )
    print("\n" + table(found, {"30 x 16 images": "the floor of batching, classifier only"}))
    peaks = []
    for steps in (0, 1, 25):
        words = [sys.executable, __file__, "--memory-of", str(steps)]
        peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
    print(f"\npeak memory of the full gradient at batch 256, N 25 over N 1: {peaks[2] / peaks[1]:.3f} (target <= 1.5)")
    above = (peaks[2] - peaks[0]) / max(1, peaks[1] - peaks[0])
    print(f"above that without a chain: {above:.2f} ({', '.join(f'{p / 1024:.0f} MiB' for p in peaks)} at N 0, 1, 25)")


if __name__ == "__main__":
    main()
