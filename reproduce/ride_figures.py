"""Figures 2, 4 to 7, 9 and 10 to 12 and Tables 4 to 6 of RIDE's paper as data, on images with one network each.

python -m adversarial_lightning.reproduce.ride_figures --checkpoint CNN --output DIR
    [--defense configs/defenses/ride_mnist_fast.yaml]
    [--images 50] [--eps 0.1 0.2] [--panels 5a 5b 5c 5d 9] [--every 20]

Writes trace.csv (Figs. 2 and 6: per image and iteration the confidences of all classes and the distances), figures.json
(Figs. 4, 5, 7 and 9, Tables 4 to 6) and grid.npz (Figs. 10 to 12), then draws them (ride_pictures.py). Distances are
mean absolute differences in grey levels, 0 to 255. Figs. 2 to 6, the sweeps of filters and the grid are gray boxes:
PGD-40 (and FGSM) on the bare classifier; their x axis is the iteration of the fit. Fig. 7 is the white box: PGD with
BPDA through a complete fresh fit in each of 10 steps of eps / 5, from the image itself.
"""

import argparse
import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from adversarial_lightning import datamodules
from adversarial_lightning.attacks import FGSM, PGD, Attack, Noise, noise_for
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.configs import FOLDER
from adversarial_lightning.defenses import RIDE, Median, Purified, Purifier, TVBregman, TVChambolle
from adversarial_lightning.evaluation.outcomes.outcome import defender_noise, predict
from adversarial_lightning.evaluation.outcomes.statistics import wilson
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_images
from adversarial_lightning.reproduce.malade_noise import mean_with_interval
from adversarial_lightning.reproduce.papers.measure import measured
from adversarial_lightning.reproduce.record import record_benchmark
from adversarial_lightning.reproduce.ride_pictures import draw

SWEEPS: dict[str, tuple[type[Purifier], list[float]]] = {
    "median": (Median, [3, 5, 7, 9, 11]),
    "bregman": (TVBregman, [0.075, 0.125, 0.25, 0.5, 0.75, 1, 2, 5, 10, 20, 50]),
    "chambolle": (TVChambolle, [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]),
}


def panels(settings: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Changes of RIDE's `settings` by curve and panel of Figs. 5 and 9; all curves have equally many iterations."""
    once = {"steps": settings["steps"] * settings["stages"], "stages": 1}
    prior = {"random_input": True, "noisy_target": False}
    kinds = {"DIP": once | prior, "I-DIP": prior, "DAE": once, "RIDE": {}}
    bare = {f"{name}, no dropout": change | {"dropout": 0.0} for name, change in kinds.items()}
    ratios = [(p, noisy) for p in (0.9, 0.8) for noisy in (True, False)]
    return {
        "5a": kinds | bare,
        "5b": {f"n {n}": {"noisy_copies": n} for n in (1, 2, 4, 8)},
        "5c": {f"alpha {alpha:g}": {"alpha": alpha} for alpha in (0.7, 0.8, 0.9, 0.95, 1.0)},
        "5d": {f"sigma {sigma:g}": {"sigma": sigma} for sigma in (0.0, 0.05, 0.1, 0.2, 0.5, 2.0)},
        "9": {
            f"p {p:g}, {'noisy' if noisy else 'fixed'} target": {"mask_ratio": p, "noisy_target": noisy}
            for p, noisy in ratios
        },
    }


def levels(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference (B,) of images in [0, 1], in grey levels."""
    return 255 * (a - b).abs().flatten(1).mean(1)


@torch.no_grad()
def confidences(classifier: nn.Module, x: Tensor) -> Tensor:
    """Class probabilities (B, K)."""
    p: Tensor = classifier(x).softmax(1)
    return p


def follow(classifier: nn.Module, ride: RIDE, z: Tensor, x: Tensor, noise: Noise, every: int) -> list[dict[str, Any]]:
    """Record the fits to `z`, with clean images `x`, every few iterations; iteration 0 is the images themselves.

    Each has "iteration", "stage", and for all images "confidences" (B, K), "dist2gt" and "dist2adv" (B,).
    """
    parts = []
    for rows in torch.arange(len(z)).split(ride.images_per_pass(z)):
        looks = [(0, 0, z[rows])]
        looks += [(m.iteration, m.stage, m.estimate) for m in ride.run(z[rows], noise[rows], every)]
        parts.append([(i, t, confidences(classifier, e), levels(e, x[rows]), levels(e, z[rows])) for i, t, e in looks])
    names = ("confidences", "dist2gt", "dist2adv")
    return [
        {"iteration": look[0][0], "stage": look[0][1]}
        | {name: torch.cat([part[k] for part in look]).cpu() for k, name in enumerate(names, 2)}
        for look in zip(*parts, strict=True)
    ]


def curves(rows: list[dict[str, Any]], y: Tensor) -> dict[str, list[float]]:
    """Means over the images of the rows of `follow`, by iteration: Figs. 4, 5 and 9."""
    return {
        "iteration": [row["iteration"] for row in rows],
        "accuracy": [float((row["confidences"].argmax(1) == y.cpu()).float().mean()) for row in rows],
        "dist2gt": [float(row["dist2gt"].mean()) for row in rows],
        "dist2adv": [float(row["dist2adv"].mean()) for row in rows],
    }


def white_box(model: Purified, x: Tensor, y: Tensor, index: Tensor, pgd: PGD, draws: int) -> dict[str, Any]:
    """Fig. 7: PGD through the purifier, recorded in each step, and its result under the defender's own draws.

    "adversarial" and "defended" are the accuracies of the bare classifier on the attacker's images, as they are and as
    the purifier made them in that step; the last of them are the end, in the first of the defender's draws.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    watch = model.purifier.register_forward_hook(lambda _, args, out: seen.append((args[0].detach(), out.detach())))
    try:
        z = pgd(model, x, y, Noise.keyed(0, index).fork("attacker"))
    finally:
        watch.remove()
    noises = defender_noise(0, index, draws if model.purifier.stochastic else 1)
    with noise_for(model, noises[0]), torch.no_grad():
        seen.append((z, model.purifier(z)))
    right = torch.stack([predict(model, z, y, [noise])[1] for noise in noises]).float()
    g = seen[-1][1]
    hits = [[float((confidences(model.classifier, v).argmax(1) == y).float().mean()) for v in pair] for pair in seen]
    distances = {"defend2adv": levels(g, z), "adv2gt": levels(z, x), "defend2gt": levels(g, x)}
    return {
        "adversarial": [a for a, _ in hits],
        "defended": [d for _, d in hits],
        "end": {"draws": len(noises), "mean": float(right.mean()), "worst": float(right.amin(0).mean())},
        "distances": {name: values.tolist() for name, values in distances.items()},
    }


def sweep(network: nn.Module, views: dict[str, Tensor], y: Tensor) -> list[dict[str, Any]]:
    """Tables 4 to 6: accuracy with every filter no larger than the images, on each of their `views`."""
    rows = []
    for name, (kind, values) in SWEEPS.items():
        for value in values if kind is not Median else [v for v in values if v <= min(views["clean"].shape[2:])]:
            purifier = kind(int(value) if kind is Median else value)
            hits = {k: confidences(network, purifier(v)).argmax(1) == y for k, v in views.items()}
            rows.append({"filter": name, "value": value} | {k: float(h.float().mean()) for k, h in hits.items()})
    return rows


def gray_box(network: nn.Module, x: Tensor, y: Tensor, index: Tensor, radii: list[float]) -> dict[str, Tensor]:
    """Clean images, and their adversarial versions by FGSM and PGD-40 on the bare classifier, by name."""
    views, noise = {"clean": x}, Noise.keyed(0, index).fork("attacker")
    for eps in radii:
        attacks: dict[str, Attack] = {"fgsm": FGSM(eps=eps), "pgd": PGD(eps=eps, steps=40)}
        views |= {f"{name}_{eps:g}": attack(network, x, y, noise) for name, attack in attacks.items()}
    return views


def measure(options: argparse.Namespace) -> None:
    """Compute all figures and write them into the output folder."""
    network, spec = load_network(options.checkpoint)
    data = build(spec, catalogue(datamodules))
    settings = yaml.safe_load(Path(options.defense).read_text())[0]["init_args"]["purifier"]["init_args"]
    settings = {"steps": 2000, "stages": 5} | settings
    ride = RIDE(**settings)
    network.to(options.device)
    x, y, index = (v.to(options.device) for v in random_images(data.dataset("test"), options.images))
    held_x, held_y, held_index = (v.to(options.device) for v in random_images(data.dataset("val"), options.images))
    views = gray_box(network, x, y, index, options.eps)
    z, noise = views[f"pgd_{options.eps[-1]:g}"], Noise.keyed(0, index).fork("defender")
    found: dict[str, Any] = {
        "bare": {k: float((confidences(network, v).argmax(1) == y).float().mean()) for k, v in views.items()}
    }
    found["sweep"] = {
        "test": sweep(network, views, y),
        "val": sweep(network, gray_box(network, held_x, held_y, held_index, options.eps), held_y),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    seen = follow(network, ride, z, x, noise, options.every)
    write_trace(seen, y, options.output / "trace.csv")
    found["panels"] = {}
    for panel in options.panels:
        changes = panels(settings)[panel].items()
        runs = {name: follow(network, RIDE(**settings | c), z, x, noise, options.every) for name, c in changes}
        found["panels"][panel] = {name: curves(rows, y) for name, rows in runs.items()}
    defenses: dict[str, Purifier] = {"median": Median(3), "bregman": TVBregman(), "RIDE": ride}
    found["clean"], found["seconds"], grid = {}, {}, {"clean": x, "adversarial": z}
    for name, purifier in defenses.items():
        with noise_for(purifier, noise), torch.no_grad():
            start = time.perf_counter()
            found["clean"][name] = float((confidences(network, purifier(x)).argmax(1) == y).float().mean())
            found["seconds"][name] = (time.perf_counter() - start) / len(x)
            grid[name] = purifier(z)
    found["white_box"] = {f"{eps:g}": {} for eps in options.eps}
    for eps in options.eps:
        pgd = PGD(eps=eps, steps=10, step_size=eps / 5, random_start=False)
        for name, purifier in defenses.items():
            model = Purified(network, purifier)
            found["white_box"][f"{eps:g}"][name] = white_box(model, x, y, index, pgd, options.draws)
    used = {"seed": 0, "images": options.images, "eps": options.eps, "every": options.every, "ride": settings}
    record_benchmark(
        options.output / "figures.json", {"classifier": Path(options.checkpoint)}, used, found, options.note
    )
    pixels = {name: (255 * v[:10]).round().to("cpu", torch.uint8).numpy() for name, v in grid.items()}
    answers = {f"{name} class": confidences(network, v[:10]).argmax(1).cpu().numpy() for name, v in grid.items()}
    arrays: dict[str, Any] = {"label": y[:10].cpu().numpy(), **pixels, **answers}
    np.savez_compressed(options.output / "grid.npz", **arrays)


QUICK: dict[str, Any] = {  # of the measures: 2,000 iterations at ten times the paper's learning rate
    "channels": (1, 16, 16, 16, 1),
    "dropout_after": (2, 3),
    "steps": 400,
    "stages": 5,
    "learning_rate": 1e-3,
}
LOOKS = (100, 400, 2000)  # iterations at which `panel` reads its curves


@dataclass(frozen=True)
class GrayBoxes:
    """Test images of a run (x, y, index), `z` of them by PGD-40 on its network alone, and which images they are."""

    network: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    z: Tensor
    samples: Samples

    @classmethod
    def of(cls, checkpoint: Path, n: int | None, eps: float) -> "GrayBoxes":
        network, spec = load_network(checkpoint)
        images = build(spec, catalogue(datamodules)).dataset("test")
        x, y, index = random_images(images, n or len(images))
        z = gray_box(network, x, y, index, [eps])[f"pgd_{eps:g}"]
        chosen = Samples("all" if len(x) == len(images) else "random", 0, len(x), len(images))
        return cls(network, x, y, index, z, chosen)

    @property
    def defender(self) -> Noise:
        return Noise.keyed(0, self.index).fork("defender")


def panel(
    *,
    checkpoint: Path,
    data: str | None,
    n: int | None,
    output: Path,
    panel: str,
    dropout: bool = True,
    eps: float = 0.2,
) -> dict[str, Any]:
    """Curves of a panel of Figs. 4, 5, 8 or 9 after 100, 400 and 2,000 of 2,000 iterations, with 95 % intervals.

    Accuracies, and the mean distance to the fitted image in grey levels. `dropout`: only curves with it, or without.
    """
    about, found = GrayBoxes.of(checkpoint, n, eps), dict[str, tuple[float | None, list[float] | None]]()
    for name, change in panels(QUICK)[panel].items():
        if (change.get("dropout") == 0.0) == dropout:
            continue
        for row in follow(about.network, RIDE(**QUICK | change), about.z, about.x, about.defender, LOOKS[0]):
            if (at := row["iteration"]) in LOOKS:
                accuracy = float((row["confidences"].argmax(1) == about.y).double().mean())
                found[f"{name}, accuracy at {at}"] = accuracy, list(wilson(accuracy, about.samples.n))
                found[f"{name}, dist2adv at {at}"] = mean_with_interval(row["dist2adv"].double())
    return measured(about.samples, found)


def last_target(*, checkpoint: Path, data: str | None, n: int | None, output: Path, eps: float = 0.2) -> dict[str, Any]:
    """Footnote 1: accuracy with x_est^(T), with x^(T), and the difference in pairs, with 95 % intervals."""
    about = GrayBoxes.of(checkpoint, n, eps)
    ride, hits = RIDE(**QUICK), {"x_est": [], "x^(T)": []}  # type: ignore[var-annotated]
    for rows in torch.arange(len(about.z)).split(ride.images_per_pass(about.z)):
        *_, last = ride.run(about.z[rows], about.defender[rows])
        for name, image in (("x_est", last.estimate), ("x^(T)", last.target)):
            hits[name].append(confidences(about.network, image).argmax(1) == about.y[rows])
    right = {name: torch.cat(parts).double() for name, parts in hits.items()}
    found: dict[str, tuple[float | None, list[float] | None]] = {
        "difference": mean_with_interval(right["x_est"] - right["x^(T)"])
    }
    for name, each in right.items():
        found[name] = float(each.mean()), list(wilson(float(each.mean()), len(each)))
    return measured(about.samples, found)


def white_boxes(*, checkpoint: Path, data: str | None, n: int | None, output: Path, eps: float = 0.1) -> dict[str, Any]:
    """Fig. 7 after PGD-10 with BPDA: accuracies of adversarial and defended images, and mean distances in grey levels.

    Behind RIDE in 200 steps, a median filter of 3 and total variation; "defended" is the first of the defender's draws.
    """
    about, found = GrayBoxes.of(checkpoint, n, eps), dict[str, tuple[float | None, list[float] | None]]()
    quick = RIDE(**QUICK | {"steps": 100, "stages": 2})
    defenses: dict[str, Purifier] = {"median": Median(3), "bregman": TVBregman(10), "RIDE": quick}
    pgd = PGD(eps=eps, steps=10, step_size=eps / 5, random_start=False)
    for name, purifier in defenses.items():
        seen = white_box(Purified(about.network, purifier), about.x, about.y, about.index, pgd, 1)
        for view in ("adversarial", "defended"):
            found[f"{name}, {view}"] = seen[view][-1], list(wilson(seen[view][-1], about.samples.n))
        for view, values in seen["distances"].items():
            found[f"{name}, {view}"] = mean_with_interval(torch.tensor(values).double())
    return measured(about.samples, found)


def write_trace(rows: list[dict[str, Any]], y: Tensor, path: Path) -> None:
    """Write one line for each image and recorded iteration: Figs. 2 and 6."""
    classes = rows[0]["confidences"].shape[1]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image", "label", "iteration", "stage", "dist2gt", "dist2adv", *map("p{}".format, range(classes))]
        )
        for i, label in enumerate(y.tolist()):
            for row in rows:
                numbers = [row["dist2gt"][i], row["dist2adv"][i], *row["confidences"][i]]
                writer.writerow([i, label, row["iteration"], row["stage"], *(f"{v:.5g}" for v in map(float, numbers))])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="the classifier")
    add("--output", type=Path, required=True)
    add("--defense", default=FOLDER / "defenses" / "ride_mnist_fast.yaml", help="YAML file with RIDE")
    add("--images", type=int, default=50, help="number of test images, a random subset")
    add("--eps", type=float, nargs="+", default=[0.1, 0.2], help="linf radii; the last is that of Figs. 2 to 6 and 9")
    add("--panels", nargs="*", default=["5a"], choices=["5a", "5b", "5c", "5d", "9"])
    add("--every", type=int, default=20, help="iterations of the fit between recorded ones")
    add("--draws", type=int, default=5, help="new fits that judge the result of the white-box attack")
    add("--device", default="cpu")
    add("--note", default="", help="remark for readers of this run")
    options = parser.parse_args(argv)
    measure(options)
    draw(options.output)
    found = json.loads((options.output / "figures.json").read_text())["figures"]
    ends = {eps: {n: w["end"] for n, w in rows.items()} for eps, rows in found["white_box"].items()}
    print(json.dumps({"bare": found["bare"], "clean": found["clean"], "white_box": ends}, indent=2))


if __name__ == "__main__":
    main()
