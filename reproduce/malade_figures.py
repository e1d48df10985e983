"""Figures 3, 5, 6, 7 and C.8 to C.18 of MALADE's paper on MNIST, as data and as pictures (malade_pictures.py).

python -m adversarial_lightning.reproduce.malade_figures --checkpoint CNN --sdae CKPT --output DIR
    [--dae CKPT] [--robust CKPT [--robust_sdae CKPT]] [--panels 3 5 6 7 c8 c15] [--images 200] [--note TEXT]

Fig. 3: of one adversarial image, the probabilities of its class and of the best other after 0, 1, 10 and 25 steps.
Fig. 5: accuracy over the linf radius under BPDA + EOT (bare models: PGD), and under the full gradient beside it, which
the paper does not show. Fig. 6 is on ImageNet there; here its panels b to d on MNIST (panel a is Fig. 5): what a
detector at three false positive rates adds, in the paper's accounting (a clean image that is flagged is a failure,
an adversarial one is a success) and in the strict one (both are failures), under the combined attack, for each image
the best of its weights. Fig. 7: lengths of the score of clean and adversarial images, with AUROC. Figs. C.8 to C.14:
adversarial images of seven attacks on CNN + MALADE; C.15 to C.18: three of them along the chain, with the classifier's
decisions. Without a DAE there is no Magnet and no MALA. A robust classifier gets the DAE's chain unless there is an
sDAE for it. Runs of more --panels into one folder are merged.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from adversarial_lightning import datamodules
from adversarial_lightning.attacks import (
    BPDA,
    EAD,
    PGD,
    Boundary,
    DetectorAwarePGD,
    GrayBox,
    Noise,
    ReconstructionPGD,
    noise_for,
)
from adversarial_lightning.attacks.core.norms import distances
from adversarial_lightning.attacks.core.threshold import flagged
from adversarial_lightning.attacks.corruptions import SaltAndPepper
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.defenses import MALA, MALADE, Magnet, Purified
from adversarial_lightning.detectors import DetectorGuardedModel, ScoreNorm
from adversarial_lightning.evaluation.outcomes.detection import auroc, score_images, threshold
from adversarial_lightning.evaluation.outcomes.outcome import predict
from adversarial_lightning.evaluation.outcomes.subset import random_images
from adversarial_lightning.networks import Denoiser
from adversarial_lightning.reproduce.malade_pictures import draw
from adversarial_lightning.reproduce.record import record_benchmark

CHAIN: dict[str, Any] = {"step_size": 0.03, "noise_std": 0.0735}
COLUMNS = [0, 1, 2, 5, 10]  # steps of the chain that C.15 to C.18 show
PANELS = ["3", "5", "6", "7", "c8", "c15"]


def per_step(model: Purified, x: Tensor, y: Tensor, noise: Noise) -> dict[str, list[Any]]:
    """Fig. 3: predictions along one chain of images `x` (B, C, H, W), which were attacked on the bare network."""
    rows: dict[str, list[Any]] = {"steps": [0, 1, 10, 25], "true": [], "best_other": []}
    chain = type(model.purifier)(model.purifier.denoiser, steps=max(rows["steps"]), **CHAIN)
    with noise_for(chain, noise), torch.no_grad():
        states = list(chain.states(x))
    for step in rows["steps"]:
        with torch.no_grad():
            p = model.classifier(states[step].clamp(0, 1)).softmax(1)
        own = p.gather(1, y[:, None])[:, 0]
        rows["true"].append(own.tolist())
        rows["best_other"].append(p.scatter(1, y[:, None], 0.0).amax(1).tolist())
    return rows


def stochastic(model: nn.Module) -> bool:
    return isinstance(model, Purified) and bool(model.purifier.stochastic)


def right(model: nn.Module, z: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """Mask (draws, B) of correct predictions of `model` for `z` in each of the defender's draws."""
    draws = [noise.fork("defender").fork(k) for k in range(5 if stochastic(model) else 1)]
    _, bits = predict(model, z, y, draws)
    return torch.stack([(bits >> k & 1).bool() for k in range(len(draws))])


def curve(model: nn.Module, x: Tensor, y: Tensor, index: Tensor, options: Any) -> dict[str, list[float]]:
    """Fig. 5: mean accuracy over the defender's draws at each radius, by BPDA + EOT and by the full gradient."""
    noise = Noise.keyed(0, index)
    found: dict[str, list[float]] = {}
    for name in ("bpda", "full") if isinstance(model, Purified) else ("full",):
        found[name] = []
        for eps in options.eps:
            step = 2.5 * eps / options.steps
            samples = options.samples if stochastic(model) else 1
            pgd = PGD(eps=eps, steps=options.steps, step_size=step, eot_samples=samples)
            z = (BPDA(pgd) if name == "bpda" else pgd)(model, x, y, noise.fork("attacker")) if eps else x
            found[name].append(float(right(model, z, y, noise).float().mean()))
    return found


def guarded_curve(
    model: Purified, thetas: dict[str, float], x: Tensor, y: Tensor, index: Tensor, options: Any
) -> dict[str, dict[str, list[float]]]:
    """Fig. 6b to d: MALADE's accountings over the radius, by false positive rate, under the combined attack.

    The attack's path does not depend on the threshold (`sum`) and it returns the least suspicious misclassified point,
    so one run serves all thresholds.
    """
    noise, detector = Noise.keyed(0, index), ScoreNorm(model.classifier, denoiser_of(model))
    both = DetectorGuardedModel(model, detector)

    def seen(z: Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            return right(model, z, y, noise).numpy(), detector.score(z).numpy()

    found: dict[str, dict[str, list[float]]] = {fpr: {"paper": [], "strict": []} for fpr in thetas}
    for eps in options.eps:
        attack = DetectorAwarePGD(
            eps=eps,
            steps=options.steps,
            combine="sum",
            theta=min(thetas.values()),
            random_start=True,
            eot_samples=options.samples if stochastic(model) else 1,
        )
        weights = options.weights if eps else []
        attacks = [replace(attack, detector_weight=weight) for weight in weights]
        tries = [seen(a(both, x, y, noise.fork("attacker"))) for a in attacks] or [seen(x)]
        for fpr, theta in thetas.items():
            flags = [flagged(score, theta) for _, score in tries]
            accepted = [~flags_of_draw & answers for flags_of_draw, (answers, _) in zip(flags, tries, strict=True)]
            defended = [flags_of_draw | answers for flags_of_draw, (answers, _) in zip(flags, tries, strict=True)]
            for name, each in (("paper", defended if eps else accepted), ("strict", accepted)):
                # Mean over the defender's draws; the weight that is worst for the image; mean over images.
                found[fpr][name].append(float(np.asarray(each, float).mean(1).min(0).mean()))
    return found


def crafted(model: Purified, x: Tensor, y: Tensor, index: Tensor, options: Any) -> dict[str, Tensor]:
    """Figs. C.8 to C.14: adversarial images of `x` by the attacks of Table 2, by name."""
    noise, pgd = Noise.keyed(0, index).fork("attacker"), {"eps": 0.3, "steps": options.steps, "step_size": 0.02}
    attacks = {
        "C.8 PGD": PGD(**pgd),
        "C.9 R+PGD": ReconstructionPGD(**pgd, reconstruction_weight=1.0, bpda=True),
        "C.10 BPDA": BPDA(PGD(**pgd)),
        "C.11 BPDAwEOT": BPDA(PGD(**pgd, eot_samples=options.samples)),
        "C.12 EAD": EAD(
            rule="en", beta=0.01, steps=min(100, options.steps), search_steps=9, step_size=0.01, const=0.01, fista=False
        ),
        "C.13 Boundary": Boundary(queries=options.queries, start="uniform"),
        "C.14 SaltnPepper": SaltAndPepper(0.25),
    }
    return {name: attack(model, x, y, noise) for name, attack in attacks.items()}


def denoiser_of(model: nn.Module) -> Denoiser:
    """Denoising network of a chain in front of a classifier."""
    denoiser: Denoiser = cast(Any, model).purifier.denoiser
    return denoiser


def along(model: Purified, z: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Images (K, B, C, H, W) after the steps COLUMNS of one chain, and their predicted classes (K, B)."""
    chain: Any = model.purifier
    states, noise = [z], noise.fork("defender").fork(0)
    with torch.no_grad():
        for t in range(max(COLUMNS)):
            states.append(chain.step(t, states[-1], noise))
        shown = torch.stack([states[k].clamp(0, 1) for k in COLUMNS])
        return shown, torch.stack([model.classifier(state).argmax(1) for state in shown])


def chains(model: Purified, x: Tensor, y: Tensor, index: Tensor, options: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Figs. C.15 to C.18: `along` for each radius (R, K, ...), the first image under PGD, three under BPDAwEOT."""
    noise = Noise.keyed(0, index)
    found = {}
    for name, rows in (("C.15", slice(0, 1)), ("C.16", slice(0, 3))):
        parts = []
        for eps in options.radii:
            pgd = PGD(eps=eps, steps=options.steps, eot_samples=1 if name == "C.15" else options.samples)
            attack = pgd if name == "C.15" else BPDA(pgd)
            z = attack(model, x[rows], y[rows], noise[rows].fork("attacker"))
            parts.append(along(model, z, noise[rows]))
        images, said = (torch.stack(each) for each in zip(*parts, strict=True))
        for i in range(images.shape[2]):
            found[f"C.{int(name[2:]) + i}"] = (images[:, :, i, 0], said[:, :, i])
    return found


def grey(images: Tensor) -> np.ndarray:
    return (255 * images).round().to(torch.uint8).numpy()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="the CNN")
    add("--sdae", required=True, help="its sDAE")
    add("--dae", help="the DAE of Magnet and MALA")
    add("--robust", help="an adversarially trained classifier")
    add("--robust_sdae", help="its sDAE")
    add("--output", type=Path, required=True)
    add("--panels", nargs="+", choices=PANELS, default=PANELS)
    add("--images", type=int, default=200, help="number of test images, a random subset")
    add("--eps", type=float, nargs="+", default=[round(0.05 * i, 2) for i in range(11)])
    add("--radii", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4], help="rows of Figs. C.15 to C.18")
    add("--steps", type=int, default=100)
    add("--samples", type=int, default=30, help="EOT")
    add("--weights", type=float, nargs="+", default=[0.01, 0.1, 1.0, 10.0], help="of the detector in Fig. 6")
    add("--queries", type=int, default=5625, help="of Boundary, in Fig. C.13")
    add("--note", default="")
    options = parser.parse_args(argv)
    network, spec = load_network(options.checkpoint)
    data = build(spec, catalogue(datamodules))
    x, y, index = random_images(data.dataset("test"), options.images)
    protected = Purified(network, MALADE(options.sdae, steps=10, **CHAIN))
    models: dict[str, nn.Module] = {"CNN": network, "CNN + MALADE": protected}
    if options.dae:
        models["CNN + Magnet"] = Purified(network, Magnet(options.dae))
    if options.robust:
        models["robust"], _ = load_network(options.robust)
    if options.robust and options.dae:
        models["robust + Magnet"] = Purified(models["robust"], Magnet(options.dae))
    if options.robust and options.robust_sdae:
        models["robust + MALADE"] = Purified(models["robust"], MALADE(options.robust_sdae, steps=10, **CHAIN))
    elif options.robust and options.dae:
        models["robust + MALA"] = Purified(models["robust"], MALA(options.dae, steps=10, **CHAIN))
    noise = Noise.keyed(0, index)
    options.output.mkdir(parents=True, exist_ok=True)
    figures, pictures = options.output / "figures.json", options.output / "pictures.npz"
    before: dict[str, Any] = json.loads(figures.read_text()) if figures.exists() else {}
    found: dict[str, Any] = before.get("figures", {})
    arrays: dict[str, Any] = dict(np.load(pictures)) if pictures.exists() else {}
    names = ("images", "eps", "radii", "steps", "samples", "weights", "queries")
    settings = {name: getattr(options, name) for name in names}
    settings = before.get("settings", {}) | dict.fromkeys(options.panels, settings)
    if {"3", "7"} & set(options.panels):
        z = GrayBox(PGD(steps=40, step_size=0.02))(protected, x, y, noise.fork("attacker"))
    if "3" in options.panels:
        one = slice(0, 1)
        found["fig3"] = {"MALADE": per_step(protected, z[one], y[one], noise[one])}
        if options.dae:
            mala = Purified(network, MALA(options.dae))
            found["fig3"]["MALA"] = per_step(mala, z[one], y[one], noise[one])
    if "5" in options.panels:
        accuracy = {name: curve(model, x, y, index, options) for name, model in models.items()}
        found["fig5"] = {"eps": options.eps, "accuracy": accuracy}
        print(accuracy)
    if "6" in options.panels:
        found["fig6"] = {"eps": options.eps, "accuracy": {}, "theta": {}}
        for name, model in models.items():
            if isinstance(model, Purified):
                detector = ScoreNorm(model.classifier, denoiser_of(model))
                clean = score_images(detector, data.dataset("val"), 250, 0)
                thetas = {f"{fpr:g}": threshold(clean, fpr) for fpr in (0.01, 0.05, 0.1)}
                found["fig6"]["theta"][name] = thetas
                found["fig6"]["accuracy"][name] = guarded_curve(model, thetas, x, y, index, options)
        print(found["fig6"])
    if "7" in options.panels:
        found["fig7"] = {}
        for name in (name for name in ("CNN + MALADE", "CNN + Magnet") if name in models):
            with torch.no_grad():
                detector = ScoreNorm(network, denoiser_of(models[name]))
                unmoved, moved = (detector.score(v).tolist() for v in (x, z))
            thetas = {
                f"{fpr:g}": threshold(unmoved, fpr) for fpr in (0.01, 0.05, 0.1)
            }  # drawn as lines, decide nothing
            found["fig7"][name] = {"clean": unmoved, "adversarial": moved, "theta": thetas}
            found["fig7"][name]["auroc"] = auroc(unmoved, moved)
        print({name: values["auroc"] for name, values in found["fig7"].items()})
    if "c8" in options.panels:
        ten = slice(0, 10)
        made = crafted(protected, x[ten], y[ten], index[ten], options)
        arrays["clean"], found["c8"] = grey(x[ten, 0]), {}
        for name, v in made.items():
            arrays[name] = grey(v[:, 0])
            lengths = {norm: float(d.float().mean()) for norm, d in distances(v - x[ten]).items()}
            found["c8"][name] = {
                **lengths,
                "right": right(protected, v, y[ten], noise[ten]).float().mean(0).tolist(),
            }
        print(found["c8"])
    if "c15" in options.panels:
        found["c15"] = {"radii": options.radii, "steps": COLUMNS, "labels": y[:3].tolist(), "said": {}}
        for name, (images, said) in chains(protected, x, y, index, options).items():
            arrays[name], found["c15"]["said"][name] = grey(images), said.tolist()
        print(found["c15"]["said"])
    np.savez_compressed(pictures, **arrays)
    files = {"checkpoint": options.checkpoint, "sdae": options.sdae, "dae": options.dae}
    files |= {"robust": options.robust, "robust_sdae": options.robust_sdae}
    record_benchmark(figures, {n: Path(file) for n, file in files.items() if file}, settings, found, options.note)
    draw(options.output)


if __name__ == "__main__":
    main()
