"""Detectors by the protocol of Li et al. 2021 (Tables 5-8 and 11-14), and under a detector-aware attack.

python -m adversarial_lightning.reproduce.detector_tables --er CKPT [--er-minus CKPT] [--undefended CKPT]
    --output FILE.json [...]

KD and LID use the undefended network, ER1 and ER2 the ER-Classifier, ER1-minus and ER2-minus E-CLA. A detector is
fitted on a fifth of the test images (set I) under one attack and tested on the others (set II) under every attack:
familiar where both are the same (Table 5; 14 with E-CLA), cross elsewhere (6-8), and C&W at confidence kappa
(11-13). Rates are at the detector's own threshold and, as Table 4 defines them, over all attacked images: an image on
which C&W found nothing is attacked too, and stays as it is; `found` counts the others, of which AUROC is. acc_nadv is
over clean and noisy images together, acc_nadv_clean and acc_nadv_noisy over each. `of` says how many images a rate is
of. `succeeded`: only images that are right before and wrong after the attack. The joint attack aims at the threshold
with 5 % false positives on set I.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adversarial_lightning import datamodules
from adversarial_lightning.attacks import (
    CW,
    FGSM,
    PGD,
    Attack,
    DetectorAwareAPGD,
    DetectorAwarePGD,
    FeatureAdversary,
    Joint,
    Noise,
    Within,
)
from adversarial_lightning.attacks.core.threshold import flagged
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue
from adversarial_lightning.detectors import (
    LID,
    DetectorGuardedModel,
    ERDetector,
    FittedDetector,
    KernelDensity,
    calibration_split,
    test_split,
)
from adversarial_lightning.detectors.fitting import features, versions_of
from adversarial_lightning.evaluation.outcomes.detection import auroc, criteria, score_images, threshold
from adversarial_lightning.evaluation.outcomes.statistics import sampling_interval
from adversarial_lightning.evaluation.outcomes.subset import Samples, random_images, random_subset
from adversarial_lightning.evaluation.report.formatting import percent
from adversarial_lightning.networks.features import bends
from adversarial_lightning.reproduce.record import record_benchmark

Versions = dict[str, Any]
SEED = 0


def attacks_of(options: Any) -> dict[str, Attack]:
    """Attacks of Li et al. 2021, section 4.5.1, by name; C&W has the radius `cw_eps`."""
    cheap = {
        "steps": options.cw_steps,
        "search_steps": options.cw_consts,
        "step_size": options.cw_step_size,
        "const": options.cw_const,
    }
    return {
        "pgd": PGD(eps=options.eps, steps=options.steps, step_size=options.step_size),
        "fgsm": FGSM(eps=options.eps),
        "cw": Within(CW(**cheap), options.cw_eps),
        "cw_confident": Within(CW(**cheap, kappa=options.kappa), options.cw_eps),
    }


def versions(network: nn.Module, images: Any, attack: Attack) -> Versions:
    """Clean, noisy and attacked versions of `images`, with sample numbers and correctness of the predictions.

    Every image has an attacked version; where a minimum-norm attack has not `found` one, it is the image itself.
    """
    x, noisy, z, found, index, std = versions_of(network, images, attack, seed=SEED, batch_size=100)
    z = torch.where(found.view(-1, 1, 1, 1), z, x)
    length = (z - x).flatten(1).norm(dim=1)
    y = images.labels.to(index.device)
    with torch.no_grad():
        clean_right, right = (torch.cat([network(b).argmax(1) for b in v.split(200)]) == y for v in (x, z))
    return {
        "clean": x,
        "noisy": noisy,
        "adversarial": z,
        "index": index,
        "found": found,
        "noise_std": std,
        "right": right.numpy(),
        "clean_right": clean_right.numpy(),
        "l2": float(length[found].mean()) if found.any() else None,
    }


def features_of(detector: FittedDetector, v: Versions, paired: bool) -> dict[str, Tensor]:
    """Features of the versions; `paired`: as in Ma et al. 2018's code, where references hold the clean original."""
    names = ("clean", "noisy", "adversarial")
    if not paired:
        return {name: features(detector, v[name], v["index"], SEED, 100) for name in names}
    assert isinstance(detector, LID)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows in torch.arange(len(v["clean"])).split(100):
        if len(rows) > detector.k + 1:
            with torch.no_grad():
                for name in names:
                    found[name].append(detector.among(v[name][rows], v["clean"][rows]))
    return {name: torch.cat(parts) for name, parts in found.items()}


def odds(detector: FittedDetector, f: Tensor) -> Any:
    """Log-odds of the fitted regression for features."""
    return (((f - detector.mean) / detector.std) @ detector.weight + detector.bias).cpu().numpy()


def rates(
    detector: FittedDetector, f: dict[str, Tensor], v: Versions, theta: float, paired: bool = False
) -> dict[str, Any]:
    """Criteria of Table 4 at the detector's own threshold, and rates that the paper does not print."""
    found = v["found"].numpy()[: len(f["adversarial"])]  # a last batch may be too small for paired features
    scores = {name: odds(detector, part) for name, part in f.items()}
    flags = {name: flagged(s, detector.own_theta) for name, s in scores.items()}
    passed = np.concatenate([scores["clean"], scores["noisy"]])
    entry: dict[str, Any] = {
        "n": len(scores["adversarial"]),
        "found": int(found.sum()),
        "auroc": auroc(passed, scores["adversarial"][found]),
        "tpr_at_5": share(flagged(scores["adversarial"][found], threshold(passed, 0.05))),
    }
    entry |= {f"acc_nadv_{name}": float((~flags[name]).mean()) for name in ("clean", "noisy")}
    if not paired:
        entry |= criteria(flags["adversarial"], v["right"], np.concatenate([flags["clean"], flags["noisy"]]))
        succeeded = v["clean_right"] & ~v["right"]
        entry["succeeded"] = {
            "n": int(succeeded.sum()),
            "auroc": auroc(passed, scores["adversarial"][succeeded]),
        }
        entry["clean_accuracy"] = float(v["clean_right"].mean())
        entry["clean_and_accepted"] = float((v["clean_right"] & ~flags["clean"]).mean())
        entry["fpr_set_two_at_5"] = float(flagged(scores["clean"], theta).mean())
    return entry


def guides(images: Any, path: Path, a_class: int = 3) -> str:
    """Write a file with the first images of each class, whose codes an attack may imitate; returns its path."""
    chosen = torch.cat([(images.labels == t).nonzero()[:a_class, 0] for t in images.labels.unique()])
    x, y, _ = images.__getitems__(chosen.tolist())
    save_file({"images": x, "labels": y}, path)
    return str(path)


def joint_attack(options: Any, layer: str, imitated: str) -> Joint:
    """Joint attack: Auto-PGD on both constraints, also targeted; selective and orthogonal PGD; codes of guides."""
    shared: dict[str, Any] = {"eps": options.eps, "steps": options.joint_steps, "random_start": True}
    aware: list[Attack] = [DetectorAwareAPGD(**shared, detector_weight=w) for w in options.weights]
    aware += [DetectorAwareAPGD(**shared, detector_weight=options.weights[0], targeted=True)]
    aware += [DetectorAwarePGD(**shared, combine="selective"), DetectorAwarePGD(**shared, combine="orthogonal")]
    matching = FeatureAdversary(layer, imitated, **shared)
    return Joint([*aware, matching], restarts=options.joint_restarts, n_targets=options.joint_targets)


def joint(detector: FittedDetector, theta: float, images: Any, train: Any, options: Any) -> dict[str, Any]:
    """Share of `images` on which no attack evades classifier and detector: PGD, also joint, joint in a large ball."""
    x, y, index = random_images(images, options.joint_images, SEED)
    samples = Samples("random", SEED, len(x), len(images))
    model = DetectorGuardedModel(detector.classifier, detector).eval()
    detector.theta = theta
    entry: dict[str, Any] = {"n": len(x), "theta": theta}
    large = argparse.Namespace(**(vars(options) | {"eps": 0.5, "joint_restarts": 1}))
    layer = detector.encoder if isinstance(detector, ERDetector) else bends(detector.classifier)[-1]
    gone: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        imitated = guides(train, Path(folder) / "guides.safetensors")
        attacks: dict[str, Attack] = {"pgd": attacks_of(options)["pgd"]}
        attacks |= {
            "joint": joint_attack(options, layer, imitated),
            "joint_eps_0.5": joint_attack(large, layer, imitated),
        }
        for name, attack in attacks.items():
            z = attack(model, x, y, Noise.keyed(SEED, index).fork(name))
            with torch.no_grad():
                wrong, accepted = model(z).argmax(1) != y, ~flagged(model.detector.score(z), theta)
            gone[name] = {"wrong": wrong, "both": wrong & accepted}
    for name, found in gone.items():
        both = found["both"] | (gone["pgd"]["both"] if name == "joint" else False)
        share = float(1 - both.double().mean())
        entry[name] = {"robust": share, "interval": sampling_interval(share, samples)}
        entry[name]["robust_without_detector"] = float(1 - found["wrong"].double().mean())
    return entry


def table(title: str, detector: FittedDetector, network: nn.Module, data: Any, sets: Any, options: Any) -> Any:
    """Every row of one detector: trained on each attack, tested on each."""
    two, chosen = sets
    rows: dict[str, Any] = {"width": None, "rows": {}}
    start = time.perf_counter()
    detector.eval().fit_reference(data.dataset("train"), 200)
    if densities := getattr(detector, "densities", None):
        rows["width"], rows["log_density_by_width"] = float(densities.width), densities.curve
    for paired in (False, True) if isinstance(detector, LID) else (False,):
        known = {name: features_of(detector, v, paired) for name, v in chosen["one"].items()}
        tests = {name: features_of(detector, v, paired) for name, v in chosen["two"].items()}
        for trained, f in known.items():
            hit = chosen["one"][trained]["found"][: len(f["adversarial"])]
            if not hit.any():
                print(f"{title}: {trained} found nothing in set I, so nothing is fitted on it")
                continue
            detector.fit_detector(f["clean"], f["noisy"], f["adversarial"][hit])
            theta = threshold(odds(detector, f["clean"]), 0.05)
            for tested, g in tests.items():
                name = f"{trained} -> {tested}" + " (paired)" * paired
                rows["rows"][name] = rates(detector, g, chosen["two"][tested], theta, paired)
            if trained == options.joint_trained_on and not paired:
                rows["theta_val"] = threshold(score_images(detector, data.dataset("val"), 200, SEED), 0.05)
                rows["joint"] = joint(detector, theta, two, data.dataset("train"), options)
    rows["seconds"] = round(time.perf_counter() - start, 1)
    print(f"\n{title}: width {rows['width']}, {rows['seconds']} s")
    for name, r in rows["rows"].items():
        if "acc_com" in r:
            shown = " ".join(f"{cell(r, k):>15s}" for k in COLUMNS)
            succeeded = r["succeeded"]
            print(f"  {name:22s} {shown} | AUROC {words(r['auroc'])} of {r['found']}, ", end="")
            print(f"succeeded {words(succeeded['auroc'])} of {succeeded['n']}")
        else:
            print(f"  {name:22s} AUROC {words(r['auroc'])} of {r['found']}")
    if "joint" in rows:
        said = {k: (v["robust"], v["robust_without_detector"]) for k, v in rows["joint"].items() if isinstance(v, dict)}
        print(
            f"  robust at 5 % false positives, with and without detector (n {rows['joint']['n']}): {said}", flush=True
        )
    return rows


def share(flags: Any) -> float | None:
    return float(flags.mean()) if len(flags) else None


def cell(row: dict[str, Any], criterion: str) -> str:
    """A rate in per cent with its number of images, such as ``42 % of 800``."""
    n = row["of"][criterion]
    return f"- of {n}" if row[criterion] is None else f"{percent(row[criterion], n)} of {n}"


def words(area: float | None) -> str:
    return "-" if area is None else f"{area:.3f}"


COLUMNS = ("acc_nadv", "acc_com", "acc_adv", "acc_cla")
Detectors = Mapping[str, Callable[[Any], FittedDetector]]
DETECTORS: dict[str, Detectors] = {
    "undefended": {"KD": KernelDensity, "LID": LID},
    "er": {"ER1": ERDetector, "ER2": lambda net: ERDetector(net, code="combined")},
    "er_minus": {"ER1-minus": ERDetector, "ER2-minus": lambda net: ERDetector(net, code="combined")},
}


def settings() -> argparse.ArgumentParser:
    """Parser of the command line, whose defaults are those of the measures, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--er", type=Path, help="checkpoint of an ER-Classifier: ER1, ER2")
    add("--er-minus", type=Path, help="of its network without regularization (E-CLA): ER1-minus, ER2-minus")
    add("--undefended", type=Path, help="of a plain network: KD, LID")
    add("--output", type=Path, required=True)
    add("--root", help="folder of the data, where it is not the checkpoint's")
    add("--train-limit", type=int, help="training images in the banks, a random subset; default: all")
    add("--test-limit", type=int, help="test images, a random subset; default: all")
    add("--eps", type=float, default=0.3)
    add("--steps", type=int, default=40)
    add("--step-size", type=float, default=0.01)
    add("--cw-eps", type=float, default=5.49, help="0.007 times 784 pixels")
    add("--cw-steps", type=int, default=1000)
    add("--cw-consts", type=int, default=9)
    add("--cw-step-size", type=float, default=0.01)
    add("--cw-const", type=float, default=0.001)
    add("--kappa", type=float, default=9.0)
    add("--confident", type=int, default=100, help="images of the high-confidence test")
    add("--joint-images", type=int, default=1000)
    add("--joint-steps", type=int, default=200)
    add("--joint-restarts", type=int, default=10)
    add("--joint-targets", type=int, default=9)
    add("--joint-trained-on", default="pgd")
    add("--weights", type=float, nargs="+", default=[0.1, 1, 10, 100], help="of the detector in the joint attack")
    add("--note", default="")
    return parser


def protocol(
    checkpoint: Path, detectors: Detectors, options: argparse.Namespace, attacks: Sequence[str] | None = None
) -> tuple[dict[str, Any], Samples]:
    """Rows of each of `detectors` of a checkpoint's network, under `attacks` (all), its attacked images, and set II."""
    network, spec = load_network(checkpoint)
    assert spec is not None
    moved = {"root": options.root} if options.root else {}
    limits = {"train_limit": options.train_limit, "test_limit": options.test_limit}
    data = build({**spec, "init_args": {**spec["init_args"], **moved, **limits}}, catalogue(datamodules))
    one = calibration_split(data.dataset("test"), SEED)
    two = test_split(data.dataset("test"), frozenset(one.indices.tolist()))
    chosen: dict[str, dict[str, Versions]] = {"one": {}, "two": {}}
    for name, attack in attacks_of(options).items():
        if attacks is None or name in attacks:
            few = two.select(random_subset(two.indices, options.confident, SEED)) if name == "cw_confident" else two
            chosen["two"][name] = versions(network, few, attack)
            if name != "cw_confident":
                chosen["one"][name] = versions(network, one, attack)
    made = {
        k: {"l2": v["l2"], "noise_std": v["noise_std"], "n": len(v["right"]), "found": int(v["found"].sum())}
        for k, v in chosen["two"].items()
    }
    print(f"{checkpoint}: {json.dumps(made)}", flush=True)
    figures: dict[str, Any] = {"adversarial": made}
    for title, make in detectors.items():
        figures[title] = table(title, make(network), network, data, (two, chosen), options)
    return figures, Samples("random", SEED, len(two), two.drawn_from or len(two))


def main() -> None:
    options = settings().parse_args()
    files = {"undefended": options.undefended, "er": options.er, "er_minus": options.er_minus}
    checkpoints = {name: path for name, path in files.items() if path is not None}
    figures = {place: protocol(path, DETECTORS[place], options)[0] for place, path in checkpoints.items()}
    kept = {k: v for k, v in vars(options).items() if k not in (*files, "output", "root", "note")} | {"seed": SEED}
    record_benchmark(options.output, checkpoints, kept, figures, options.note)


if __name__ == "__main__":
    main()
