"""Time of an ER-Classifier step against the sum of its parts: the attack, four forwards, three backwards.

python benchmarks/er_step.py [--width 32] [--batch 100] [--steps 10] [--rounds 7]
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from timing import ratios, table
from torch import Tensor

from adversarial_lightning.attacks import PGD, Noise
from adversarial_lightning.lightning_modules import ERClassifier
from adversarial_lightning.networks import ERNet


def alone(module: Any) -> list[Any]:
    """Make `module` do its training step without a Trainer; returns its optimizers."""

    class Alone:
        strategy, current_epoch, global_rank = None, 0, 0

    optimizers = [found["optimizer"] for found in module.configure_optimizers()]
    module._trainer, module.optimizers, module.lr_schedulers = Alone(), lambda: optimizers, lambda: []
    module.manual_backward, module.log_dict = lambda loss: loss.backward(), lambda values: None
    return optimizers


def contest(attack: PGD | None, options: Any) -> dict[str, Any]:
    """Functions for the sum of the parts of a step and for the step, of two modules with equal weights."""
    x, y = torch.rand(options.batch, 1, 28, 28), torch.randint(0, 10, (options.batch,))
    index = torch.arange(options.batch)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        module = ERClassifier(ERNet(width=options.width), attack)
        found.append((module, alone(module)))
    (ours, _), (plain, (encoder, classifier, critic)) = found
    net, judge, noise = plain.network, plain.critic, Noise.keyed(0, index)
    assert judge is not None

    def parts() -> None:
        """Parts of a step: PGD; Q without a graph; D, C(Q) and D(Q) forwards and backwards; four optimiser steps."""
        z = x if attack is None else attack(net, x, y, noise)
        with torch.no_grad():
            codes = net.encoder(z)
        descend(judge(codes).mean() - judge(torch.randn_like(codes)).mean(), critic)
        descend(F.cross_entropy(net(z), y), encoder, classifier)
        judge.requires_grad_(False)
        descend(-judge(net.encoder(z)).mean(), encoder)
        judge.requires_grad_(True)

    return {"its parts": parts, "step": lambda: ours.training_step((x, y, index), 0)}


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"width": 32, "batch": 100, "steps": 10, "rounds": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for title, attack in {"ER": PGD(steps=options.steps), "ER-minus": None}.items():
        rows = ratios(contest(attack, options), options.rounds)
        print(table({f"{title}, {name}": row for name, row in rows.items()}, {f"{title}, step": "<= 1.10"}))


if __name__ == "__main__":
    main()
