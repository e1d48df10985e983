"""Fitted detectors: logistic regression of "adversarial" on features of an image."""

import inspect
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.detectors.base import Detector
from adversarial_lightning.errors import UserError


class FittedDetector(Detector):
    """Abstract base: score = log-odds of "adversarial" by logistic regression on standardised `features`.

    Li et al. 2021 (ER-Classifier), Algorithm 2, Feinman et al. 2017 and Ma et al. 2018 differ in the features only.
    `fit_reference` sees clean training images, `fit_detector` the features of clean, noisy (both negative) and
    adversarial images of set I; everything that is learnt is a buffer. The regression has C = 1, scikit-learn's
    default and our choice: the code of Feinman et al. and Ma et al. chooses C by cross-validation, Li et al. do not
    say. Log-odds, not probabilities, because in float32 a sigmoid saturates and hides its gradient from an attacker; 0
    is a probability of 1/2, the papers' threshold.

    A fitted detector is one safetensors file: buffers, and in its header as JSON the settings, the digest of the
    classifier's weights, the numbers of set I and how it was fitted. Leaves list their settings as attributes of the
    same names and end their constructor with ``self.load(fitted)``.
    """

    own_theta = 0.0
    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.about: dict[str, Any] = {}
        for name in ("weight", "bias", "mean", "std"):
            self.register_buffer(name, torch.empty(0))

    @abstractmethod
    def fit_reference(self, images: Any, batch_size: int = 128) -> None:
        """Fit the reference (such as densities) to clean training `images`, a data set with sample numbers."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Features (B, F) of images: differentiable; a row depends on its own image only."""

    def fit_detector(self, clean: Tensor, noisy: Tensor, adversarial: Tensor) -> None:
        """Fit scaler and logistic regression (C = 1) to features (n, F) of the images of set I.

        Raises ValueError where one of the two classes is missing or a feature is not finite.
        """
        x = torch.cat([clean, noisy, adversarial]).double().cpu().numpy()
        y = np.repeat([0, 1], [len(clean) + len(noisy), len(adversarial)])
        if y.all() or not y.any():
            kind = "adversarial" if len(x) and y.all() else "clean or noisy"
            raise UserError(f"all {len(x)} images to fit a detector on are {kind}: it needs both kinds")
        if not np.isfinite(x).all():
            raise UserError(f"{int((~np.isfinite(x)).any(1).sum())} images of set I have features that are not finite")
        scaler = StandardScaler().fit(x)
        model = LogisticRegression().fit(scaler.transform(x), y)
        learnt = {"weight": model.coef_[0], "bias": model.intercept_[0], "mean": scaler.mean_, "std": scaler.scale_}
        for name, values in learnt.items():
            setattr(self, name, torch.as_tensor(values).to(clean))

    def score(self, x: Tensor) -> Tensor:
        """Log-odds of "adversarial", (B,)."""
        if not len(self.weight):
            raise UserError(f"{type(self).__name__} is not fitted: run evaluate.py fit-detector, or name its file")
        odds: Tensor = ((self.features(x) - self.mean) / self.std) @ self.weight + self.bias
        return odds

    def probability(self, x: Tensor) -> Tensor:
        """Probability of "adversarial" in [0, 1], (B,)."""
        return self.score(x).sigmoid()

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor except the classifier and the file."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if name not in ("classifier", "fitted")}

    def learnt(self) -> dict[str, Tensor]:
        """Buffers by name, without those of the classifier."""
        return {name: t for name, t in self.named_buffers() if not name.startswith("classifier.")}

    def save(self, path: str | Path) -> None:
        """Write the fitted detector, without its classifier."""
        about = {
            "detector": type(self).__name__,
            "settings": self.settings(),
            "classifier": digest_weights(self.classifier),
            "seen": sorted(self.seen),
            "about": self.about,
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self.learnt().items()}
        save_file(tensors, path, metadata={"about": json.dumps(about)})

    def load(self, path: str | Path | None) -> None:
        """Read the file that `save` wrote; does nothing without a path.

        Raises ValueError for another kind of file, and for one fitted with other settings or on another classifier.
        """
        if path is None:
            return
        if not Path(path).is_file():
            raise UserError(f"there is no fitted detector {path}: python evaluate.py fit-detector makes one")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            kind, settings, digest = about["detector"], about["settings"], about["classifier"]
            seen, self.about = frozenset(map(int, about["seen"])), about["about"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no fitted detector ({error}): run evaluate.py fit-detector") from error
        own = json.loads(json.dumps(self.settings()))
        different = [name for name in {**own, **settings} if own.get(name) != settings.get(name)]
        if kind != type(self).__name__ or different:
            what = f"with other {', '.join(different)}" if different else f"as {kind}"
            raise UserError(f"{path} was fitted {what}, not for this {type(self).__name__}: fit one")
        if digest != (found := digest_weights(self.classifier)):
            raise UserError(
                f"{path} was fitted on another network, whose weights have the digest {digest[:12]}…, not "
                f"{found[:12]}…: fit a detector on this one"
            )
        if set(tensors) != set(self.learnt()):
            raise UserError(f"{path} is no whole {kind}: its tensors are {', '.join(sorted(tensors))}")
        self.seen = seen
        for name, tensor in tensors.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(module), leaf, tensor)
