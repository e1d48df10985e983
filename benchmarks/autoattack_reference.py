"""AutoAttack (standard, linf) against the reference implementation: robust images and CPU time of both.

    python benchmarks/autoattack_reference.py --checkpoint ROBUST.ckpt [--images 200] [--offset 0] [--output DIR]

The reference is the authors' package (github.com/fra31/auto-attack) where it can be imported; else the copies of its
four parts in torchattacks, at its settings: APGD-CE and APGD-T of 100 steps, FAB-T of 100 steps, Square of 5,000
queries, each on the images that those before it left robust. (torchattacks' own AutoAttack runs 10 steps and is not
used.) Both attack the same batches, in alternating order. Targets: robust accuracy within one image in 200, CPU time <=
1/2. --output results/attacks records the results as autoattack_reference.json.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import AutoAttack, Noise
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.datamodules import MNIST
from adversarial_lightning.evaluation.outcomes.outcome import counting
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.reproduce.record import record_benchmark

Run = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, labels, numbers of the images -> images


def reference(model: nn.Module, eps: float, classes: int, seed: int) -> tuple[str, Run]:
    """Name of the installed reference, and a function that runs it."""
    try:
        import autoattack  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return "torchattacks' parts with the reference's settings", _parts(model, eps, classes, seed)

    def run(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        attack = autoattack.AutoAttack(
            model, norm="Linf", eps=eps, seed=seed, verbose=False, device=x.device, version="standard"
        )
        z: Tensor = attack.run_standard_evaluation(x, y, bs=len(x))
        return z

    return "the authors' package", run


def _parts(model: nn.Module, eps: float, classes: int, seed: int) -> Run:
    import torchattacks

    common = {"norm": "Linf", "eps": eps, "seed": seed}
    parts = [
        torchattacks.APGD(model, steps=100, loss="ce", rho=0.75, **common),
        torchattacks.APGDT(model, steps=100, rho=0.75, n_classes=classes, **common),
        torchattacks.FAB(
            model, steps=100, alpha_max=0.1, eta=1.05, beta=0.9, multi_targeted=True, n_classes=classes, **common
        ),
        torchattacks.Square(model, n_queries=5000, p_init=0.8, resc_schedule=False, **common),
    ]

    def run(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        best = x.clone()
        with torch.no_grad():
            rows = (model(x).argmax(1) == y).nonzero()[:, 0]
        for part in parts:
            if not len(rows):
                break
            z = part(x[rows].clone(), y[rows].clone()).detach()
            with torch.no_grad():
                broken = model(z).argmax(1) != y[rows]
            best[rows[broken]] = z[broken]
            rows = rows[~broken]
        return best

    return run


def judged(model: nn.Module, run: Run, x: Tensor, y: Tensor, index: Tensor, eps: float) -> tuple[Tensor, list[float]]:
    """Mask (B,) of robust images by a separate forward pass in the ball; CPU seconds, forwards and backwards."""
    with frozen_eval(model), torch.random.fork_rng(), counting(model) as passes:
        start = time.process_time()
        z = run(x.clone(), y.clone(), index).detach()
        seconds = time.process_time() - start
    if not bool((((z - x).abs() <= eps * (1 + 1e-5)) & (z >= 0) & (z <= 1)).all()):
        raise ValueError("an image left the ball or the box")
    with torch.no_grad():
        return model(z).argmax(1) == y, [seconds, passes.forwards, passes.backwards]


def compare(model: nn.Module, x: Tensor, y: Tensor, index: Tensor, eps: float, batch: int, seed: int) -> dict[str, Any]:
    """Results of both on all images."""
    attack = AutoAttack("standard", "linf", eps)
    classes = model(x[:1]).shape[1]
    name, theirs = reference(model, eps, classes, seed)
    runs: dict[str, Run] = {
        "ours": lambda x, y, index: attack(model, x, y, Noise.keyed(seed, index)),
        "reference": theirs,
    }
    robust: dict[str, list[Tensor]] = {who: [] for who in runs}
    costs: dict[str, list[list[float]]] = {who: [] for who in runs}
    for number, rows in enumerate(torch.arange(len(x)).split(batch)):
        for who in list(runs) if number % 2 else reversed(list(runs)):
            is_robust, cost = judged(model, runs[who], x[rows], y[rows], index[rows], eps)
            robust[who].append(is_robust)
            costs[who].append(cost)
        print(f"{min((number + 1) * batch, len(x))} of {len(x)} images", file=sys.stderr, flush=True)
    ours, others = (torch.cat(robust[who]) for who in runs)
    total = {who: torch.tensor(costs[who]).sum(0).tolist() for who in runs}
    return {
        "reference": name,
        "robust_accuracy": {"ours": ours.float().mean().item(), "reference": others.float().mean().item()},
        "only_ours_fools": index[~ours & others].tolist(),
        "only_reference_fools": index[ours & ~others].tolist(),
        "cpu_seconds": {who: round(total[who][0], 1) for who in runs},
        "forwards_an_image": {who: round(total[who][1] / len(x), 1) for who in runs},
        "backwards_an_image": {who: round(total[who][2] / len(x), 1) for who in runs},
        "cpu_time_ratio": round(total["ours"][0] / total["reference"][0], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="of a model trained against linf attacks on MNIST"
    )
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--offset", type=int, default=0, help="number of the first test image")
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder in which to write autoattack_reference.json")
    parser.add_argument("--note", default="", help="remark for readers of the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    index = torch.arange(options.offset, options.offset + options.images)
    x, y, _ = MNIST(root=options.data_root).dataset("test").__getitems__(index.tolist())
    model = load_network(options.checkpoint)[0].eval()
    figures = compare(model, x, y, index, options.eps, options.batch, options.seed)
    robust, count = figures["robust_accuracy"], len(figures["only_ours_fools"]) + len(figures["only_reference_fools"])
    print(f"the reference: {figures['reference']}")
    print("| AutoAttack | robust accuracy | CPU s | forwards / backwards an image |\n|---|---|---|---|")
    for who in ("ours", "reference"):
        passes = f"{figures['forwards_an_image'][who]:.0f} / {figures['backwards_an_image'][who]:.0f}"
        print(f"| {who} | {robust[who]:.4f} | {figures['cpu_seconds'][who]:.1f} | {passes} |")
    print(f"{count} images differ: only ours breaks {figures['only_ours_fools']},", end=" ")
    print(f"only the reference breaks {figures['only_reference_fools']} (target: robust accuracy within 1 in 200)")
    print(f"CPU time, ours over the reference: {figures['cpu_time_ratio']} (target <= 0.5)")
    if options.output is not None:
        names = ("images", "offset", "eps", "batch", "seed")
        settings = {"data": "MNIST test", "threads": 1, **{name: getattr(options, name) for name in names}}
        path = options.output / "autoattack_reference.json"
        record_benchmark(path, {"robust": options.checkpoint}, settings, figures, options.note)


if __name__ == "__main__":
    main()
