"""Figures 3, 5 and 7 of MALADE's paper on MNIST, as data and as pictures.

python benchmarks/malade_figures.py --checkpoint CNN --sdae CKPT --dae CKPT --output DIR [--robust CKPT] [--images 200]

Fig. 3: of one adversarial image, the probabilities of its class and of the best other after 0, 1, 10 and 25 steps.
Fig. 5: accuracy over the linf radius under BPDA + EOT (bare models: PGD), and under the full gradient beside it, which
the paper does not show. Fig. 7: lengths of the score of clean and adversarial images, with AUROC. A robust classifier
gets the DAE's chain (MALA), because an sDAE belongs to one classifier.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import datamodules  # noqa: E402
from attacks import BPDA, PGD, GrayBox, Noise, drawing  # noqa: E402
from defenses import MALA, MALADE, Magnet, Purified  # noqa: E402
from detectors import ScoreNorm  # noqa: E402
from evaluation import build, catalogue, load_network  # noqa: E402
from evaluation.detection import auroc, threshold  # noqa: E402
from evaluation.outcome import predict  # noqa: E402

CHAIN = {"step_size": 0.03, "noise_std": 0.0735}


def per_step(model: Purified, x: Tensor, y: Tensor, noise: Noise) -> dict[str, list[Any]]:
    """Fig. 3: predictions along one chain of the images `x` (B, C, H, W), which an attack on the bare net has made."""
    rows: dict[str, list[Any]] = {"steps": [0, 1, 10, 25], "true": [], "best_other": []}
    for steps in rows["steps"]:
        kind = type(model.purifier)
        chain = kind(model.purifier.denoiser, steps=steps, **CHAIN)
        with drawing(chain, noise), torch.no_grad():
            p = model.classifier(chain(x)).softmax(1)
        own = p.gather(1, y[:, None])[:, 0]
        rows["true"].append(own.tolist())
        rows["best_other"].append(p.scatter(1, y[:, None], 0.0).amax(1).tolist())
    return rows


def curve(model: nn.Module, x: Tensor, y: Tensor, index: Tensor, options: Any) -> dict[str, list[float]]:
    """Fig. 5: mean accuracy over the defender's draws at each radius, by BPDA + EOT and by the full gradient."""
    purified = isinstance(model, Purified)
    stochastic = purified and model.purifier.stochastic
    found: dict[str, list[float]] = {}
    for name in ("bpda", "full") if purified else ("full",):
        found[name] = []
        for eps in options.eps:
            step = 2.5 * eps / options.steps
            pgd = PGD(eps=eps, steps=options.steps, step_size=step, samples=options.samples if stochastic else 1)
            noise = Noise.keyed(0, index)
            z = (BPDA(pgd) if name == "bpda" else pgd)(model, x, y, noise.fork("attacker")) if eps else x
            draws = [noise.fork("defender").fork(k) for k in range(5 if stochastic else 1)]
            _, right = predict(model, z, y, draws)
            found[name].append(sum(float((right >> k & 1).float().mean()) for k in range(len(draws))) / len(draws))
    return found


def draw(found: dict[str, Any], folder: Path) -> None:
    """One picture a figure."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    three, five, seven = figure.subplots(1, 3)
    for name, rows in found["fig3"].items():
        three.plot(rows["steps"], [p[0] for p in rows["true"]], "o-", label=f"{name}: its class")
        three.plot(rows["steps"], [p[0] for p in rows["best_other"]], "x--", label=f"{name}: best other")
    three.set(xlabel="steps", ylabel="probability", title="Fig. 3")
    for name, curves in found["fig5"]["accuracy"].items():
        for way, values in curves.items():
            style = "--" if way == "bpda" else "-"
            five.plot(found["fig5"]["eps"], values, style, label=f"{name}, {way}")
    five.set(xlabel="linf radius", ylabel="accuracy", ylim=(0, 1), title="Fig. 5 (dashed: BPDA + EOT)")
    for name, scores in found["fig7"].items():
        for kind in ("clean", "adversarial"):
            seven.hist(scores[kind], bins=20, histtype="step", label=f"{name}, {kind}")
    seven.set(xlabel="length of the score", title="Fig. 7")
    for panel in (three, five, seven):
        panel.legend(fontsize=5)
    FigureCanvasAgg(figure).print_png(str(folder / "figures.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="the CNN")
    add("--sdae", required=True, help="its sDAE")
    add("--dae", required=True)
    add("--robust", help="an adversarially trained classifier")
    add("--output", type=Path, required=True)
    add("--images", type=int, default=200, help="the first so many test images")
    add("--eps", type=float, nargs="+", default=[round(0.05 * i, 2) for i in range(11)])
    add("--steps", type=int, default=100)
    add("--samples", type=int, default=30, help="EOT")
    options = parser.parse_args()
    network, spec = load_network(options.checkpoint)
    x, y, index = build(spec, catalogue(datamodules)).dataset("test").__getitems__(list(range(options.images)))
    malade = Purified(network, MALADE(options.sdae, steps=10, **CHAIN))
    mala = Purified(network, MALA(options.dae, steps=10, **CHAIN))
    magnet = Purified(network, Magnet(options.dae))
    models: dict[str, nn.Module] = {"CNN": network, "CNN + Magnet": magnet, "CNN + MALADE": malade}
    if options.robust:
        robust, _ = load_network(options.robust)
        models |= {"robust": robust, "robust + Magnet": Purified(robust, Magnet(options.dae))}
        models["robust + MALA"] = Purified(robust, MALA(options.dae, steps=10, **CHAIN))
    noise = Noise.keyed(0, index)
    z = GrayBox(PGD(steps=40, step_size=0.02))(malade, x, y, noise.fork("attacker"))
    found: dict[str, Any] = {"images": options.images, "steps": options.steps, "samples": options.samples}
    one = slice(0, 1)
    found["fig3"] = {n: per_step(m, z[one], y[one], noise[one]) for n, m in (("MALADE", malade), ("MALA", mala))}
    accuracy = {name: curve(model, x, y, index, options) for name, model in models.items()}
    found["fig5"] = {"eps": options.eps, "accuracy": accuracy}
    found["fig7"] = {}
    for name, denoiser in (("MALADE", malade.purifier.denoiser), ("Magnet", magnet.purifier.denoiser)):
        with torch.no_grad():
            clean, adversarial = (ScoreNorm(network, denoiser).score(v).tolist() for v in (x, z))
        thetas = {f"{fpr:g}": threshold(clean, fpr) for fpr in (0.01, 0.05, 0.1)}  # drawn as lines, decide nothing
        found["fig7"][name] = {"clean": clean, "adversarial": adversarial, "theta": thetas}
        found["fig7"][name]["auroc"] = auroc(clean, adversarial)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "figures.json").write_text(json.dumps(found) + "\n")
    draw(found, options.output)
    print({name: values["auroc"] for name, values in found["fig7"].items()}, accuracy)


if __name__ == "__main__":
    main()
