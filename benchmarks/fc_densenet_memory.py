"""Memory of one training step of MALADE's sDAE at 224x224, on a CPU: FC-DenseNet with a frozen ResNet-152 behind it.

python benchmarks/fc_densenet_memory.py [--batches 1 2] [--variant 56] [--to 8]

Each batch size is a process of its own; its peak of resident memory less that of a process which only builds the
networks is the memory of the step. Beyond the measured batches it is extrapolated along a straight line. A GPU has
other convolutions, with other workspaces, and a context of its own: this is not a measurement of one.
"""

import argparse
import resource
import subprocess
import sys

import torch

from adversarial_lightning.attacks import Noise
from adversarial_lightning.lightning_modules import DenoisingAutoencoder
from adversarial_lightning.networks import FCDenseNet, TorchvisionClassifier


def step(batch: int, variant: int, recompute: bool) -> None:
    """One step of Adam on Eq. 8; with a batch of 0 the networks only."""
    torch.manual_seed(0)
    classifier = TorchvisionClassifier("resnet152").eval().requires_grad_(False)
    module = DenoisingAutoencoder(FCDenseNet(variant=variant, recompute=recompute), classifier, sigma2=0.1)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(module.network.parameters(), lr=1e-3)
    if batch:
        x, y = torch.rand(batch, 3, 224, 224), torch.arange(batch)
        module.objective(module.terms(x, y, Noise.keyed(0, torch.arange(batch))), y).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--to", type=int, default=8, help="batch size to extrapolate to")
    parser.add_argument("--variant", type=int, choices=(56, 67, 103), default=56)
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)  # batch, recompute
    options = parser.parse_args()
    if options.child is not None:
        step(options.child[0], options.variant, bool(options.child[1]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return

    def peak(batch: int, recompute: bool) -> float:
        words = [
            sys.executable,
            __file__,
            "--variant",
            str(options.variant),
            "--child",
            str(batch),
            str(int(recompute)),
        ]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout) / 2**20

    empty = peak(0, True)
    print(f"networks and interpreter alone: {empty:.2f} GiB")
    for recompute in (True, False):
        found = {batch: peak(batch, recompute) - empty for batch in options.batches}
        low, high = min(found), max(found)
        slope = (found[high] - found[low]) / max(1, high - low)
        way = "blocks recomputed" if recompute else "all kept"
        sizes = ", ".join(f"batch {batch} {gib:.2f} GiB" for batch, gib in found.items())
        whole = empty + found[high] + slope * (options.to - high)
        print(f"FC-DenseNet{options.variant} at 224x224, {way}: step {sizes}; {slope:.2f} GiB an image more")
        print(f"  whole process at batch {options.to}, extrapolated: {whole:.1f} GiB (target <= 12 GB on a GPU)")


if __name__ == "__main__":
    main()
