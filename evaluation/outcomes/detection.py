"""Detection figures: ROC, thresholds at false positive rates, and the accountings of two papers.

Scores are float64, higher = more suspicious; one that is not a number counts as infinite. The threshold rule is in
`attacks.core.threshold`. Li et al. 2021 (ER-Classifier), Table 4: ACC-ADV, ACC-NADV, ACC-CLA, ACC-COM.
Srinivasan et al. 2021 (MALADE): accuracy with a flagged clean image as a failure and a flagged adversarial one as a
success, and four ways to see it otherwise.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from adversarial_lightning.attacks.core.threshold import flagged
from adversarial_lightning.checkpoints.files import write_whole
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.outcome import defender_noise, detector_scores
from adversarial_lightning.evaluation.outcomes.types import Columns, Flags
from adversarial_lightning.networks.eval_mode import device_of

Scores = NDArray[np.float64]
LEVELS = (0.0, 0.01, 0.05, 0.1)  # false positive rates of every report
_POINTS = 101  # of a ROC curve


def threshold(clean: ArrayLike, fpr: float) -> float:
    """Threshold that at most the share `fpr` of the `clean` scores exceeds.

    The ceil((1 - fpr) n)-th smallest of n. A rate of 0 means no detector and gives infinity, not the largest score: the
    next clean image may well lie above that. Raises ValueError without scores, or for a rate outside [0, 1].
    """
    scores = np.sort(_numbers(clean))
    if not len(scores) or not 0 <= fpr <= 1:
        raise UserError(f"a threshold needs scores and a rate in [0, 1], not {len(scores)} scores and {fpr}")
    if fpr == 0:
        return math.inf
    rank = math.ceil(round((1 - fpr) * len(scores), 9))  # rounded, so that 0.9 x 10 is 9
    return float(scores[rank - 1]) if rank else -math.inf


def auroc(clean: ArrayLike, adversarial: ArrayLike) -> float | None:
    """Area under the ROC curve, ties counting half; None where one side is empty."""
    truth, ranks = _ranked(clean, adversarial)
    return None if truth.all() or not truth.any() else float(roc_auc_score(truth, ranks))


def roc(clean: ArrayLike, adversarial: ArrayLike) -> dict[str, list[float]] | None:
    """False and true positive rates, ascending, thinned to at most 101 points; None where one side is empty."""
    truth, ranks = _ranked(clean, adversarial)
    if truth.all() or not truth.any():
        return None
    fpr, tpr, _ = roc_curve(truth, ranks)
    chosen = np.unique(np.linspace(0, len(fpr) - 1, _POINTS).round().astype(int))
    return {"fpr": fpr[chosen].round(6).tolist(), "tpr": tpr[chosen].round(6).tolist()}


def criteria(adversarial: Flags, right: Flags, passed: Flags, nadv: str = "acc_nadv") -> dict[str, Any]:
    """Criteria of Li et al., Table 4, from flags of attacked images and of others, and `of` how many images each is.

    `adversarial` and `passed` say which images are flagged, `right` which attacked images are classified correctly.
    An attack that failed counts: its image is one of those attacked.

    acc_adv: attacked images flagged; `nadv`: other images not flagged (acc_nadv: clean and noisy ones, acc_nadv_clean:
    clean ones alone); acc_cla: right among the attacked ones not flagged; acc_com: attacked images flagged or right.
    None where there is no such image. To flag everything gives acc_com 1: it says nothing without acc_nadv.
    """
    n, accepted = len(adversarial), int((~adversarial).sum())
    return {
        "acc_adv": _share(adversarial),
        nadv: _share(~passed),
        "acc_cla": _share(right[~adversarial]),
        "acc_com": _share(adversarial | right),
        "of": {"acc_adv": n, nadv: len(passed), "acc_cla": accepted, "acc_com": n},
    }


def malade(clean: Flags, clean_right: Flags, adversarial: Flags, right: Flags) -> dict[str, float | None]:
    """MALADE's four accuracies, from flags and correct predictions without and under the attack.

    All four have one entry a sample. `clean` and `robust`: the paper's (flagged is wrong without and right under an
    attack, so `clean` is at most 1 - FPR, and accuracy jumps between eps 0 and the smallest eps). clean_lenient: a
    flagged clean image is no failure. robust_error: neither flagged nor right. accepted_accuracy: right among those
    accepted under attack. strict: flagged is a failure there too.
    """
    return {
        "clean": _share(~clean & clean_right),
        "robust": _share(adversarial | right),
        "clean_lenient": _share(clean | clean_right),
        "robust_error": _share(~adversarial & ~right),
        "accepted_accuracy": _share(right[~adversarial]),
        "strict": _share(~adversarial & right),
    }


def closest_calls(parts: Iterable[Columns]) -> Columns:
    """For each sample the best row of several runs for the attacker: wrong before right, then the lowest score.

    `parts` need index, right and score; returns them in ascending order of the samples.
    """
    given = list(parts)
    rows = {key: np.concatenate([part[key] for part in given]) for key in given[0]}
    order = np.lexsort((_numbers(rows["score"]), rows["right"], rows["index"]))
    first = np.unique(rows["index"][order], return_index=True)[1]
    return {key: column[order][first] for key, column in rows.items()}


def account(clean: Columns, attacked: Columns, thresholds: Mapping[float | None, float]) -> dict[str, Any]:
    """Entry "detection" of results.json for one attack or one threat model.

    `clean` and `attacked` have one row a sample, ascending: index, right, score and, `attacked`, `counts` (the image
    was changed and lies in the ball). A sample that was not attacked, being wrong without an attack, is its own
    adversarial image: criteria are over all n samples. AUROC and ROC are over images that the attack changed,
    `changed` many; `succeeded` of them fool the classifier. `thresholds` by false positive rate, None for the one that
    the detector was fitted for.
    """
    at = np.searchsorted(clean["index"], attacked["index"])
    scores, right = clean["score"].copy(), clean["right"].copy()
    scores[at], right[at] = attacked["score"], attacked["right"]
    counts = attacked["counts"]
    changed, fooled = attacked["score"][counts], attacked["score"][counts & ~attacked["right"]]
    levels = []
    for fpr, theta in thresholds.items():
        known = flagged(clean["score"], theta)
        level = {"fpr": fpr, "theta": None if math.isinf(theta) else theta}
        found = flagged(scores, theta)
        level |= criteria(found, right, known, "acc_nadv_clean")
        levels.append({**level, "malade": malade(known, clean["right"], found, right)})
    return {
        **{"changed": len(changed), "succeeded": len(fooled)},
        "auroc": auroc(clean["score"], changed),
        "auroc_succeeded": auroc(clean["score"], fooled),
        "roc": roc(clean["score"], changed),
        "levels": levels,
    }


def calibration(folder: Path, measure: Callable[[], Scores], about: Mapping[str, Any]) -> Scores:
    """Scores of clean held-out images, measured once by whichever process is first and kept in calibration.json.

    `about` (detector, aimed_fpr, own_theta, split) is kept beside them. Raises ValueError where the file is damaged.
    """
    path = folder / "calibration.json"
    with FileLock(folder / "calibration.lock"):
        if not path.exists():
            scores = _numbers(measure())
            invalid = int(np.isposinf(scores).sum())
            kept = [None if math.isinf(score) else score for score in scores.tolist()]
            facts = {"split": "val", **about, "n": len(kept), "invalid": invalid, "scores": kept}
            write_whole(path, json.dumps(facts) + "\n")
    return calibrated(folder)[0]


def calibrated(folder: Path) -> tuple[Scores, dict[str, Any]]:
    """Content of calibration.json: the scores, and everything else."""
    path = folder / "calibration.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return _numbers([math.nan if score is None else score for score in about.pop("scores")]), about
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}): remove it and run the same command again") from error


def score_images(detector: nn.Module, images: Any, batch_size: int, seed: int) -> Scores:
    """Scores of a whole data set of numbered images, computed on the detector's device in batches of one shape."""
    device = device_of(detector)
    shape, scores = min(batch_size, len(images)), []
    for start in range(0, len(images), shape):
        rows = list(range(start, min(start + shape, len(images))))
        x, _, index = images.__getitems__(rows + [-1] * (shape - len(rows)))  # -1: a dummy
        found = detector_scores(detector, x.to(device), defender_noise(seed, index.to(device), 1)[0].fork("detector"))
        scores.append(found[: len(rows)].numpy())
    return np.concatenate(scores)


def _numbers(scores: ArrayLike) -> Scores:
    return np.nan_to_num(np.asarray(scores, np.float64), nan=np.inf, posinf=np.inf)


def _ranked(clean: ArrayLike, adversarial: ArrayLike) -> tuple[Flags, NDArray[np.int64]]:
    """Labels (adversarial or not), and ranks in place of scores: scikit-learn refuses infinite scores."""
    parts = _numbers(clean), _numbers(adversarial)
    truth = np.repeat([False, True], [len(part) for part in parts])
    return truth, np.unique(np.concatenate(parts), return_inverse=True)[1]


def _share(flags: Flags) -> float | None:
    return float(flags.mean()) if len(flags) else None
