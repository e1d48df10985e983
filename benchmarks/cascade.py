"""Time of mode worst_case against mode full: python benchmarks/cascade.py [--samples 320]

Evaluates a network adversarially trained on scikit-learn's digits with the four attacks of AutoAttack, one after the
other, at a fifth of their budgets, in both modes and at two radii. Prints the number of samples of each attack, seconds
and passes; fails where the worst cases differ. Target: at least 2x less time. Passes decrease by less, because Square
stops for every image that it breaks: its cost is that of the robust images, in both modes. The fewer are robust, the
more is saved.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from adversarial_lightning.attacks import APGD, FAB, PGD, Attack, Noise, Square, Targeted, Within
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.evaluation import Campaign, run_campaign
from adversarial_lightning.evaluation.campaign.merge import merge
from adversarial_lightning.evaluation.campaign.sample_status import Mode
from adversarial_lightning.networks import MLP


def robust_network(eps: float) -> MLP:
    """Perceptron after 300 steps of PGD-AT."""
    torch.manual_seed(0)
    net, attack = MLP(10, 64, [256]), PGD(eps=eps, steps=5)
    images = Digits(size=8).dataset("train")
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(300):
        x, y, index = images.__getitems__(torch.randint(len(images), (128,)).tolist())
        z = attack(net, x, y, Noise.keyed(step, index))
        optimizer.zero_grad()
        F.cross_entropy(net(z), y).backward()
        optimizer.step()
    return net.eval()


def suite(eps: float) -> dict[str, Attack]:
    """AutoAttack's ensemble with a fifth of its steps and queries."""
    aimed = APGD(eps=eps, steps=20, loss="dlr", targeted=True)
    return {
        "apgd_ce": APGD(eps=eps, steps=20),
        "apgd_t": Targeted(aimed, n_targets=9),
        "fab_t": Within(Targeted(FAB(steps=20, search_steps=0, targeted=True), n_targets=9), eps),
        "square": Square(eps=eps, queries=1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.2, 0.3])
    given = parser.parse_args()
    torch.set_num_threads(1)
    net, images = robust_network(0.2), Digits(size=8).dataset("test")
    modes: tuple[Mode, ...] = ("full", "worst_case")
    for eps in given.eps:
        costs: list[tuple[float, float, float]] = []
        worst = []
        for mode in modes:
            with tempfile.TemporaryDirectory() as name:
                c = Campaign(suite(eps), images, given.samples, 0, Path(name), "benchmark", mode)
                wall, cpu = time.perf_counter(), time.process_time()
                run_campaign(c, net, batch_size=given.batch)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                results = merge(c)
            passes = sum(a["forwards"] + a["backwards"] for a in results["attacks"])
            costs.append((passes, wall, cpu))
            worst.append(results["worst_case"])
            seen = ", ".join(f"{a['name']} {a['attacked']}" for a in results["attacks"])
            print(f"eps {eps:g}, {mode}: samples {seen}; {passes:,.0f} passes, {wall:.1f} s, {cpu:.1f} s of CPU")
        assert worst[0] == worst[1], "the modes disagree"
        ratios = [full / short for full, short in zip(*costs, strict=True)]
        share = 100 * worst[0][0]["robust_accuracy"]
        print(
            f"eps {eps:g}: the same worst case, {share:.1f} % of {given.samples} samples; full / worst_case: "
            f"clock {ratios[1]:.2f}x, CPU {ratios[2]:.2f}x, passes {ratios[0]:.2f}x (target for time >= 2)"
        )


if __name__ == "__main__":
    main()
