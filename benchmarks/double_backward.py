"""Time of differentiating a gradient: margin maximization and the critic's attack, against the sum of their passes.

python benchmarks/double_backward.py [--batch 100] [--rounds 5] [--output results/margin]

--output records the results as double_backward.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import ratios, table
from torch import Tensor

from adversarial_lightning.attacks import Noise
from adversarial_lightning.lightning_modules import AdversaryCritic, MarginMaximization
from adversarial_lightning.lightning_modules.critic_settings import AttackSettings
from adversarial_lightning.lightning_modules.margin_maximization import multiclass_hinge
from adversarial_lightning.networks import Critic, LeNet5
from adversarial_lightning.reproduce.record import record_benchmark


def saved(run: Callable[[], object]) -> float:
    """Peak memory that autograd keeps for backward passes during `run`, in MiB."""
    alive = peak = 0

    class Kept:
        def __init__(self, t: Tensor) -> None:
            nonlocal alive, peak
            self.t, self.size = t, t.numel() * t.element_size()
            alive += self.size
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.t):
        run()
    return peak / 2**20


def data(batch: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(batch, 1, 28, 28, generator=g), torch.randint(0, classes, (batch,), generator=g)


def margin_step(batch: int, route: Any, classes: int = 10) -> Callable[[], object]:
    """Loss and backward pass of a margin step on LeNet-5."""
    torch.manual_seed(0)
    module = MarginMaximization(LeNet5(classes), route=route)
    x, y = data(batch, classes)

    def run() -> None:
        module.network.zero_grad()
        module.losses(x, y, Noise.keyed(0, y))["loss"].backward()

    return run


def margin_passes(batch: int) -> Callable[[], object]:
    """Passes of route two_pass alone: 1 forward, K - 1 gradients, 1 with a graph, 1 double backward."""
    torch.manual_seed(0)
    net = LeNet5()
    data_x, y = data(batch)

    def run() -> None:
        net.zero_grad()
        x = data_x.detach().requires_grad_()
        z = net(x)
        for k in range(z.shape[1] - 1):
            torch.autograd.grad(z[:, k].sum(), x, retain_graph=True)
        (g,) = torch.autograd.grad(z[:, 0].sum(), x, create_graph=True)
        (multiclass_hinge(z, y).mean() + 0.1 * g.square().sum() / batch).backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="folder for the record")
    parser.add_argument("--note", default="", help="remark for readers of the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = options.batch

    print(f"## Margin step, LeNet-5, batch {batch}, 10 classes\n")
    routes = {f"route {r}": margin_step(batch, r) for r in ("two_pass", "full", "closest", "topk")}
    figures: dict[str, Any] = {}
    rows = ratios({"sum of the passes": margin_passes(batch), **routes}, options.rounds)
    figures["margin_over_its_passes"] = rows
    print(table(rows, {"route two_pass": "<= 1.15"}))
    print("\n| classes | kept by full, MiB | by two_pass, MiB |\n|---|---|---|")
    for classes in (2, 5, 10, 20):
        full, two = (saved(margin_step(batch, r, classes)) for r in ("full", "two_pass"))
        print(f"| {classes} | {full:.0f} | {two:.0f} |")
        figures.setdefault("margin_kept_mib", {})[classes] = {"full": round(full), "two_pass": round(two)}

    torch.manual_seed(0)
    module = AdversaryCritic(LeNet5(), Critic(hidden=[200, 200]), attack_settings=AttackSettings(confidence=0.99))
    net, (x, y) = module.network, data(batch)
    noise = Noise.keyed(0, torch.arange(batch))

    def search_and_attack() -> None:
        goal = module.attack_target(x, noise)
        module.attack(x, goal.target, goal.confidence, create_graph=False)

    def passes() -> None:
        """Passes of the attack alone: 1 forward and K - 1 gradients, then 5 times a forward and a gradient."""
        z = x.detach().requires_grad_()
        logits = net(z)
        for k in range(9):
            torch.autograd.grad(logits[:, k].sum(), z, retain_graph=True)
        for _ in range(5):
            z = x.detach().requires_grad_()
            torch.autograd.grad(net(z).log_softmax(1)[:, 0].sum(), z)

    print(f"\n## Critic step, LeNet-5, batch {batch}: closest boundary and 5 iterations of the attack\n")
    net.requires_grad_(False)
    rows = ratios({"sum of the passes": passes, "search and attack": search_and_attack}, options.rounds)
    print(table(rows, {"search and attack": "<= 1.15"}))
    figures["attack_over_its_passes"] = rows
    print("\n| attack steps | kept in the critic's step, MiB | in the classifier's, MiB |\n|---|---|---|")
    for steps in (5, 10):
        module.steps = steps
        net.requires_grad_(False)
        goal = module.attack_target(x, noise)
        critics = saved(lambda g=goal: module.critic_loss(x, y, g, noise))  # type: ignore[misc]
        net.requires_grad_(True)
        classifiers = saved(lambda g=goal: module.classifier_loss(x, y, g, noise))  # type: ignore[misc]
        print(f"| {steps} | {critics:.0f} | {classifiers:.0f} |")
        kept = {"critic": round(critics), "classifier": round(classifiers)}
        figures.setdefault("critic_kept_mib", {})[steps] = kept
    if options.output:
        settings = {"batch": batch, "rounds": options.rounds, "network": "LeNet5", "ratios": "median, minimum, maximum"}
        record_benchmark(options.output / "double_backward.json", {}, settings, figures, options.note)


if __name__ == "__main__":
    main()
