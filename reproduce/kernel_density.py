"""Time and memory of detectors: exact kernel densities against scikit-learn's, and LID features in a stream.

python -m adversarial_lightning.reproduce.kernel_density [--threads 2] [--queries 10000] [--points 60000] [--dim 32]
    [--images 10000]

Targets: <= 20 s on two cores and <= 1 GB for 10,000 queries of 60,000 codes in 32 dimensions; LID features of 10,000
images in memory that does not depend on their number. scikit-learn is timed on a hundredth of the queries.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from adversarial_lightning.detectors import LID
from adversarial_lightning.detectors.density import log_density
from adversarial_lightning.networks import ERBaseline


def peak() -> int:
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def density(queries: int, points: int, dim: int) -> None:
    q, p, before = torch.randn(queries, dim), torch.randn(points, dim), peak()
    start, busy = time.perf_counter(), time.process_time()
    with torch.no_grad():
        found = log_density(q, p, 1.0)
    wall, busy = time.perf_counter() - start, time.process_time() - busy
    print(f"log_density: {wall:.1f} s, {busy:.1f} s of processor, {peak()} MiB in all, {peak() - before} MiB for it")
    from sklearn.neighbors import KernelDensity

    few, start = max(1, queries // 100), time.perf_counter()
    theirs = KernelDensity(bandwidth=0.5**0.5, leaf_size=points + 1).fit(p.numpy()).score_samples(q[:few].numpy())
    wall = (time.perf_counter() - start) * queries / few
    error = float((found[:few] - torch.from_numpy(theirs)).abs().max())
    print(f"scikit-learn, one leaf: {wall:.0f} s (of {few} queries, scaled up); largest difference {error:.2g} nats")


def stream(images: int) -> None:
    """Compute LID features of random images, 100 at a time; only the sums are kept."""
    torch.manual_seed(0)
    detector = LID(ERBaseline("mnist")).eval()
    detector.images = torch.rand(500, 1, 28, 28)
    start, total = time.perf_counter(), torch.zeros(())
    with torch.no_grad():
        for _ in range(0, images, 100):
            total = total + detector.features(torch.rand(100, 1, 28, 28)).sum()
    print(f"LID of {images} images: {time.perf_counter() - start:.1f} s, {peak()} MiB in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--queries", type=int, default=10_000)
    add("--points", type=int, default=60_000)
    add("--dim", type=int, default=32)
    add("--images", type=int, default=10_000)
    add("--only", choices=["density", "stream"], help=argparse.SUPPRESS)  # a child process
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only == "density":
        density(options.queries, options.points, options.dim)
    elif options.only == "stream":
        stream(options.images)
    else:
        words = [f"--{name}={value}" for name, value in vars(options).items() if name not in ("only", "images")]
        runs = [["--only=density"], *(["--only=stream", f"--images={n}"] for n in (500, options.images))]
        for run in runs:
            subprocess.run([sys.executable, __file__, *words, *run], check=True)


if __name__ == "__main__":
    main()
