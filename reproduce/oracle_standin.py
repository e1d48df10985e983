"""Labels of attacked images by an ensemble of classifiers, instead of the people of Table 4.2 (Matyasko 2020).

python -m adversarial_lightning.reproduce.oracle_standin NAME=CKPT ... --output DIR [--images 1000]
    [--train-limit N] [--epochs 8]
    [--oracle FILE] [--data-root data]

Matyasko (2020, Table 4.2) had annotators label attacked MNIST images. THIS IS NO HUMAN DATA: five classifiers that were
never attacked label them, of five kinds so that attacks transfer badly (2 convolutional nets, 1 dense, nearest
neighbours and an RBF machine on 50 principal components), trained on shifted, turned, scaled, bent, blurred and noisy
digits so that small perturbations do not change their predictions. Each image is shown with 8 draws of noise;
probabilities are averaged; the oracle abstains below 0.5 or where fewer than 3 members agree. Four controls come with
every table:

clean images; the attacks' norms as random noise; real images of the target; attacks on the first model, which must be
one without a defense. Where a control fails, the oracle is unreliable and the table says so.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import Tensor, nn
from torchvision.transforms import v2

from adversarial_lightning.attacks import HighConfidence, Noise
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.datamodules import MNIST
from adversarial_lightning.evaluation.outcomes.statistics import bootstrap, mean, wilson
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_images
from adversarial_lightning.evaluation.report.formatting import lengths
from adversarial_lightning.networks import MLP, LeNet5, SmallCNN
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.reproduce.papers.measure import measured

SEED = 20_001  # nothing that is evaluated has it
UNKNOWN = -1


def augment(x: Tensor) -> Tensor:
    """Augmented digits `x` (B, 1, H, W) in [0, 1]; draws from torch's global generator."""
    bend = v2.Compose([v2.RandomAffine(15, (0.1, 0.1), (0.85, 1.15)), v2.RandomApply([v2.ElasticTransform(30.0)], 0.3)])
    x = torch.cat([bend(part) for part in x.split(10)])
    x = torch.cat([v2.RandomApply([v2.GaussianBlur(3, (0.3, 1.2))], 0.3)(part) for part in x.split(10)])
    noisy = x + torch.rand(len(x), 1, 1, 1) * 0.3 * torch.randn_like(x)
    return noisy.clamp(0, 1)


def fit(network: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """Train a member on augmented images."""
    steps = epochs * (len(x) // 100)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(2, steps))
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for rows in order[: len(order) // 100 * 100].split(100):
            optimizer.zero_grad()
            F.cross_entropy(network(augment(x[rows])), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


class Oracle:
    """Ensemble that labels images or abstains; `networks` are trained members, the others are fitted on `x`, `y`."""

    def __init__(self, networks: Sequence[nn.Module], x: Tensor, y: Tensor) -> None:
        self.networks = networks
        flat, more = x.flatten(1).numpy(), augment(x).flatten(1).numpy()
        self.pca = PCA(50, random_state=SEED).fit(flat)
        both = np.concatenate([self.pca.transform(flat), self.pca.transform(more)])
        labels = np.concatenate([y.numpy()] * 2)
        self.neighbours = KNeighborsClassifier(5, weights="distance").fit(both, labels)
        self.machine = SVC(C=5.0).fit(both[: 2 * len(flat) : 2], labels[: 2 * len(flat) : 2])

    def probabilities(self, x: Tensor) -> Tensor:
        """Probabilities of each member, (5, B, 10)."""
        with torch.no_grad():
            found = [network(x).softmax(1).double() for network in self.networks]
        low = self.pca.transform(x.flatten(1).numpy())
        found.append(torch.from_numpy(self.neighbours.predict_proba(low)))
        found.append(torch.from_numpy(4 * self.machine.decision_function(low)).softmax(1))
        return torch.stack(found)

    def label(self, x: Tensor, index: Tensor) -> Tensor:
        """Labels (B,) of images `x`, `UNKNOWN` for "?"; `index` keys the noise."""
        noise = Noise.keyed(SEED, index)
        looks = [self.probabilities((x + 0.1 * noise.normal(x)).clamp(0, 1)) for _ in range(8)]
        members = torch.stack(looks).mean(0)
        p, best = members.mean(0).max(1)
        agree = (members.argmax(2) == best).sum(0)
        return torch.where((p < 0.5) | (agree < 3), UNKNOWN, best)


def shares(labels: Tensor, target: Tensor, y: Tensor) -> dict[str, Any]:
    """Per cent labelled `target`, labelled `y`, and other, with Wilson's 95 % intervals; they add up to 100."""
    n = len(labels)
    counts = {"change": int((labels == target).sum()), "no_change": int((labels == y).sum())}
    counts["other"] = n - sum(counts.values())
    found: dict[str, Any] = {"n": n, **{name: 100 * c / max(n, 1) for name, c in counts.items()}}
    for name in ("change", "no_change") if n else ():
        found[f"{name}_interval"] = [100 * end for end in wilson(counts[name] / n, n)]
    return found


def judge(oracle: Oracle, network: nn.Module, x: Tensor, y: Tensor, pool: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Row of one model, with its controls: noise, and real images of the target (from `pool`)."""
    with frozen_eval(network), torch.no_grad():
        correct = network(x).argmax(1) == y
    x, y, index = x[correct], y[correct], torch.arange(len(correct))[correct]
    z = torch.cat([HighConfidence()(network, *part) for part in zip(x.split(250), y.split(250), strict=True)])
    moved = (z != x).flatten(1).any(1)
    if not moved.any():
        raise SystemExit("no attack on a model succeeded: there is nothing to judge")
    x, y, z, index = x[moved], y[moved], z[moved], index[moved]
    with frozen_eval(network), torch.no_grad():
        target = network(z).argmax(1)
    noise = Noise.keyed(SEED + 1, index).normal(x)
    size = NORMS["l2"].distance(z - x) / NORMS["l2"].distance(noise)
    noisy = (x + size.view(-1, 1, 1, 1) * noise).clamp(0, 1)
    rows = {int(t): (pool[1] == t).nonzero()[:, 0] for t in target.unique()}
    real = torch.stack([pool[0][rows[t][i % len(rows[t])]] for i, t in enumerate(target.tolist())])
    ratios = (NORMS["l2"].distance(z - x) / NORMS["l2"].distance(x)).tolist()
    return {
        "attacked": shares(oracle.label(z, index), target, y),
        "succeeded": float(moved.float().mean()),
        "failed": int((~moved).sum()),
        "relative_norm": mean(ratios),
        "relative_norm_interval": bootstrap(ratios, Samples("random", 0, len(ratios), 10**9)),
        "noise": shares(oracle.label(noisy, index), target, y),
        "real_target": shares(oracle.label(real, index), target, y),
    }


def trained(file: Path, epochs: int, x: Tensor, y: Tensor) -> list[nn.Module]:
    """Trained networks of the oracle, from `file` where it exists; else trained on `x`, `y` and kept there."""
    torch.manual_seed(SEED)
    networks: list[nn.Module] = [SmallCNN(), LeNet5(dropout=0.3), MLP(hidden=[800, 800], dropout=0.2)]
    if file.exists():
        states = torch.load(file, weights_only=True)
        for network, state in zip(networks, states, strict=True):
            network.load_state_dict(state)
        return [network.eval() for network in networks]
    networks = [fit(network, x, y, epochs) for network in networks]
    torch.save([network.state_dict() for network in networks], file)
    return networks


def measure(*, checkpoint: Path, data: str | None, n: int | None, output: Path, epochs: int = 12) -> dict[str, Any]:
    """Row of Table 4.2 of a checkpoint with its controls, on `n` random test images (none: all), as shares.

    The oracle is trained once for all models, and kept beside their run folders, which `output` (RUNS/NAME/evaluations/
    RECORD) lies in. "noise" and "clean" are the shares that noise of the same length and no change at all leave,
    "real_target" the share of real images of the target that are labelled so.
    """
    mnist = MNIST(root=data or "data", val_size=10_000)
    train, val, test = (mnist.dataset(split) for split in ("train", "val", "test"))
    x, y, _ = train.__getitems__(list(range(len(train))))
    pool_x, pool_y, _ = val.__getitems__(list(range(len(val))))
    images, labels, index = random_images(test, n or len(test))
    file = output.resolve().parents[2] / f"oracle_standin_{epochs}.pt"
    with FileLock(file.with_suffix(".lock")):
        oracle = Oracle(trained(file, epochs, x, y), x, y)
    row = judge(oracle, load_network(checkpoint)[0], images, labels, (pool_x, pool_y))
    clean = shares(oracle.label(images, index), torch.full_like(labels, -2), labels)
    kept = ((row["attacked"], "change"), (row["attacked"], "no_change"), (row["noise"], "no_change"))
    kept += ((row["real_target"], "change"), (clean, "no_change"))  # type: ignore[assignment]
    names = ("change", "no_change", "noise", "real_target", "clean")
    numbers: dict[str, tuple[float | None, list[float] | None]] = {
        name: (found[key] / 100, [end / 100 for end in found[f"{key}_interval"]])
        for name, (found, key) in zip(names, kept, strict=True)
    }
    numbers["succeeded"] = (row["succeeded"], wilson(row["succeeded"], row["attacked"]["n"] + row["failed"]))
    chosen: Literal["all", "random"] = "all" if len(images) == len(test) else "random"
    return measured(Samples(chosen, 0 if chosen == "random" else None, len(images), len(test)), numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=CKPT, the undefended one first")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--oracle", type=Path, help="where the trained members are kept")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    data = MNIST(root=options.data_root, val_size=10_000, train_limit=options.train_limit)
    train, val, test = (data.dataset(split) for split in ("train", "val", "test"))
    x, y, _ = train.__getitems__(list(range(len(train))))
    pool_x, pool_y, _ = val.__getitems__(list(range(len(val))))
    images, labels, index = random_images(test, options.images)
    oracle = Oracle(trained(options.oracle or options.output / "oracle.pt", options.epochs, x, y), x, y)
    clean = shares(oracle.label(images, index), torch.full_like(labels, -2), labels)
    rows = {}
    for model in options.models:
        name, _, path = model.partition("=")
        rows[name] = judge(oracle, load_network(path)[0], images, labels, (pool_x, pool_y))
    plain = next(iter(rows.values()))["attacked"]["no_change"]
    worst_noise = min(row["noise"]["no_change"] for row in rows.values())
    worst_real = min(row["real_target"]["change"] for row in rows.values())
    controls = [
        ("clean images, no change", clean["no_change"], 99.0),
        ("noise of equal norm, no change (worst model)", worst_noise, 98.0),
        ("real images of the target, change (worst model)", worst_real, 99.0),
        ("attacks on the undefended model, no change", plain, 90.0),
    ]
    lines = [
        "Labels by an ensemble of classifiers, instead of the people of Table 4.2 (Matyasko 2020). Not human data.",
        "",
        "| model | % change | % no change | % other | n | attack succeeded | mean relative norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        a = row["attacked"]
        low, high = a.get("change_interval", (0, 100))
        lines.append(
            f"| {name} | {a['change']:.1f} [{low:.1f}, {high:.1f}] | {a['no_change']:.1f} | {a['other']:.1f} "
            f"| {a['n']} | {100 * row['succeeded']:.1f} % | {row['relative_norm']:.3f} "
            f"{lengths(row['relative_norm_interval'], 1000)} |"
        )
    lines += ["", "| control | % | wanted | |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {v:.1f} | > {least:g} | {'holds' if v > least else 'FAILS'} |" for what, v, least in controls
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    (options.output / "standin.md").write_text(text)
    found = {"no_human_data": True, "clean": clean, "controls": controls, "models": rows}
    (options.output / "standin.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
