"""Kernel density of the last hidden layer, and the variance under dropout (Feinman et al. 2017).

Feinman, Curtin, Shintre and Gardner, "Detecting Adversarial Samples from Artifacts", 2017.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.detectors.density import ClassDensities
from adversarial_lightning.detectors.fitted import FittedDetector
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.networks.features import bends, outputs


def width(sigma: float | None, h: float | None) -> float | None:
    """Width sigma of exp(-d^2 / sigma^2), from sigma or scikit-learn's h = sigma / sqrt(2). ValueError for both."""
    if sigma is not None and h is not None:
        raise UserError(f"sigma ({sigma}) and h ({h}) say the same: give one")
    return sigma if h is None else h * math.sqrt(2)


def fit_densities(densities: ClassDensities, codes: Any, images: Any, batch_size: int, device: torch.device) -> None:
    """Fit `densities` to the codes of all `images` by true label, in batches; ``codes(x) -> (logits, codes)``."""
    found, labels, classes = [], [], 0
    for start in range(0, len(images), batch_size):
        x, y, _ = images.__getitems__(list(range(start, min(start + batch_size, len(images)))))
        logits, code = codes(x.to(device))
        found.append(code)
        labels.append(y.to(device))
        classes = logits.shape[1]
    densities.fit(torch.cat(found), torch.cat(labels), classes)


class KernelDensity(FittedDetector):
    """Log density of a hidden layer's output among those of training images of the predicted class.

    Departures: the code is the last hidden activation, as in their code, where Li et al. 2021 (ER-Classifier) say "the
    final layer output" (`layer` takes any other); the log of the density, which itself underflows; the width is chosen
    on training images where none is given (theirs: h 1.20 on MNIST, 0.26 on CIFAR10); only set I scales the features,
    where their code lets test images in; the regression has the fixed C of `FittedDetector`. The second feature is the
    variance of the softmax over passes with dropout, the mean over the classes; only dropout layers are switched on,
    and they draw from `noise`.

    Args:
        classifier: images -> logits; evaluate.py hands over the defended model.
        layer: name of the module whose output is the code; none: the last activation or pooling.
        sigma: width of the kernel exp(-d^2 / sigma^2).
        h: the same as scikit-learn writes it, sigma / sqrt(2).
        uncertainty: the second feature.
        passes: forwards with dropout for it.
        fitted: the file that evaluate.py fit-detector wrote.
    """

    noise: Noise | None = None

    def __init__(
        self,
        classifier: nn.Module,
        layer: str | None = None,
        sigma: float | None = None,
        h: float | None = None,
        uncertainty: bool = False,
        passes: int = 50,
        fitted: str | None = None,
    ) -> None:
        super().__init__(classifier)
        self.layer, self.sigma, self.h, self.uncertainty, self.passes = layer, sigma, h, uncertainty, passes
        self.densities = ClassDensities(width(sigma, h), standardise=False)
        self.stochastic = uncertainty
        if passes < 2:
            raise UserError(f"passes must be at least 2 to have a variance, not {passes}")
        if uncertainty and not dropouts(classifier):
            raise UserError(f"uncertainty needs a network with dropout, which {type(classifier).__name__} has not")
        if layer is None and not bends(classifier):
            raise UserError(f"{type(classifier).__name__} has no activation to take codes from: name a layer")
        self.load(fitted)

    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and codes (B, D)."""
        name = bends(self.classifier)[-1] if self.layer is None else self.layer
        logits, found = outputs(self.classifier, x, [name])
        return logits, found[name].flatten(1)

    def fit_reference(self, images: Any, batch_size: int = 128) -> None:
        with frozen_eval(self), torch.no_grad():
            fit_densities(self.densities, self.codes, images, batch_size, self.weight.device)

    def features(self, x: Tensor) -> Tensor:
        logits, codes = self.codes(x)
        density = self.densities(codes, logits.argmax(1))
        return torch.stack([density, self.variance(x)], 1) if self.uncertainty else density[:, None]

    def variance(self, x: Tensor) -> Tensor:
        """Variance (B,) of the softmax over passes with dropout, averaged over classes."""
        noise = Noise.from_global(x) if self.noise is None else self.noise
        with dropping(self.classifier, noise):
            p = torch.stack([self.classifier(x).softmax(1) for _ in range(self.passes)])
        variance: Tensor = p.var(0, unbiased=False).mean(1)
        return variance


def dropouts(network: nn.Module) -> list[nn.Module]:
    """Dropout layers with a probability above 0."""
    return [m for m in network.modules() if isinstance(m, nn.Dropout | nn.Dropout2d) and m.p > 0]


@contextmanager
def dropping(network: nn.Module, noise: Noise) -> Iterator[None]:
    """Switch on only the dropout layers of `network` in this context; they draw from `noise`."""

    def drop(layer: Any, _: object, output: Tensor) -> Tensor:
        whole = output[:, :, :1, :1] if isinstance(layer, nn.Dropout2d) else output  # drops whole channels
        kept: Tensor = output * (noise.uniform(whole) >= layer.p) / (1 - layer.p)
        return kept

    handles = [layer.register_forward_hook(drop) for layer in dropouts(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
