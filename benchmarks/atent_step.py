"""Time and memory of an ATENT step, against its K + 1 forwards and backwards and against a graph for every iterate.

python benchmarks/atent_step.py [--batch 64] [--rounds 5]
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import ratios, table
from torch import Tensor

from adversarial_lightning.attacks import Langevin, Noise
from adversarial_lightning.lightning_modules import ATENT
from adversarial_lightning.networks import SmallCNN


class Alone:
    """Replacement of the Trainer: one process, epoch 0."""

    strategy = None
    current_epoch = 0


def step(steps: int, batch: int, alpha: float = 0.9) -> tuple[ATENT, Callable[[], object], Tensor, Tensor]:
    """ATENT module, its training step without a Trainer, and a batch."""
    torch.manual_seed(0)
    module = ATENT(SmallCNN(), Langevin(steps=steps, step_size=0.01, noise_scale=1e-4), alpha=alpha)
    torch.nn.init.normal_(module.network.head[-1].weight, std=0.1)  # type: ignore[union-attr,index]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    module.optimizers = lambda: optimizer  # type: ignore[assignment,method-assign]
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[assignment,method-assign]
    module.log_dict = lambda values: None  # type: ignore[assignment,method-assign]
    module._trainer = Alone()  # type: ignore[assignment]
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    return module, lambda: module.training_step((x, y, torch.arange(batch)), 0), x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # a child process: peak memory for this K
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        _, run, _, _ = step(options.memory_of, 4 * options.batch)
        run(), run()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return

    module, ours, x, y = step(options.steps, options.batch)
    net, sampler, alpha = module.network, module.sampler, module.alpha

    def floor() -> None:
        """K + 1 forwards, K backwards to the input, and weight gradients for as many iterates as ours takes."""
        for k in range(options.steps + 1):
            z = x.detach().requires_grad_()
            loss = F.cross_entropy(net(z), y)
            if alpha * (1 - alpha) ** (options.steps - k) > module.tail_tol:
                loss.backward()
            else:
                torch.autograd.grad(loss, z)

    def graphs() -> None:
        """Algorithm 1 as printed: the average of K losses with all K graphs alive, then one backward."""
        noise = Noise.keyed(0, torch.arange(len(x)))
        z, mu = sampler.begin(x, noise), torch.zeros(())
        for k in range(options.steps):
            z = z.detach().requires_grad_()
            g = torch.autograd.grad(F.cross_entropy(net(z), y, reduction="sum"), z)[0]
            z = sampler.step(z.detach(), g, x, noise, last=k == options.steps - 1)
            mu = (1 - alpha) * mu + alpha * F.cross_entropy(net(z), y)
        net.zero_grad()
        mu.backward()

    rows = ratios(
        {"K+1 forwards and backwards": floor, "ATENT step": ours, "a graph for every iterate": graphs}, options.rounds
    )
    print(table(rows, {"ATENT step": "<= 1.10", "a graph for every iterate": ">= 1.7 x the ATENT step"}))
    ratio = rows["a graph for every iterate"][0] / rows["ATENT step"][0]
    print(f"\na graph for every iterate over the ATENT step: {ratio:.2f}")
    peaks = []
    for steps in (5, 40):
        words = [sys.executable, __file__, "--memory-of", str(steps), "--batch", str(options.batch)]
        peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
    ratio, used = peaks[1] / peaks[0], f"{peaks[1] / 1024:.0f} / {peaks[0] / 1024:.0f} MiB"
    print(f"peak memory, K 40 over K 5: {ratio:.3f} ({used}; target <= 1.05)")


if __name__ == "__main__":
    main()
