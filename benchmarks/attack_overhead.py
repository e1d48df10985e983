"""Time of PGD-40 against its 40 forwards and backwards, and against other installed libraries.

    python benchmarks/attack_overhead.py [--batch 128] [--rounds 7]

torchattacks and adv-lib are compared where they can be imported (pip install torchattacks adv-lib).
"""

import argparse
from collections.abc import Callable

import torch
from timing import ratios, table

from adversarial_lightning.attacks import PGD, Noise
from adversarial_lightning.networks import SmallCNN


def contestants(batch: int, steps: int) -> dict[str, Callable[[], object]]:
    """PGD with `steps` steps on SmallCNN by each implementation; the floor first."""
    torch.manual_seed(0)
    model = SmallCNN().eval()
    torch.nn.init.normal_(model.head[-1].weight, std=0.1)
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    frozen = [p.requires_grad_(False) for p in model.parameters()]

    def floor() -> None:
        for _ in range(steps):
            z = x.detach().requires_grad_()
            torch.autograd.grad(model(z).sum(), z)

    noise = Noise.keyed(0, torch.arange(batch))
    attack = PGD(eps=0.3, steps=steps, step_size=0.01)
    runs: dict[str, Callable[[], object]] = {"floor": floor, "ours": lambda: attack(model, x, y, noise)}
    try:
        import torchattacks

        theirs = torchattacks.PGD(model, eps=0.3, alpha=0.01, steps=steps)
        runs["torchattacks"] = lambda: theirs(x, y)
    except ImportError as error:
        print(f"torchattacks is left out: {error}")
    try:
        from adv_lib.attacks import pgd_linf

        runs["adv-lib"] = lambda: pgd_linf(model, x, y, ε=0.3, steps=steps, absolute_step_size=0.01)
    except ImportError as error:
        print(f"adv-lib is left out: {error}")
    assert frozen
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = ratios(contestants(options.batch, options.steps), options.rounds)
    print(table(rows, {"ours": "<= 1.05"}))
    others = [rows[name][0] for name in ("torchattacks", "adv-lib") if name in rows]
    if others:
        print(f"\nours over the better library: {rows['ours'][0] / min(others):.3f} (target <= 0.97)")
