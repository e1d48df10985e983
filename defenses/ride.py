"""RIDE: fits a small network to every image and classifies its output (Lin et al. 2019).

Lin, Pfister and Zhang, "White-Box Adversarial Defense via Self-Supervised Data Estimation", 2019.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor

from adversarial_lightning.attacks.core.checks import check_arguments
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.defenses.base import Purifier
from adversarial_lightning.defenses.fitting import FitSettings, PerImageFit
from adversarial_lightning.defenses.unrolled import unrolled
from adversarial_lightning.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class RideState:
    """State of a run at one iteration; images are in pixels of [0, 1].

    `estimate` is x_est, `target` is x^(t) after the last `combine`, `losses` (B,) are the masked losses of the last
    step, in the space of the network. The run continues to change `fit`.
    """

    iteration: int
    stage: int
    estimate: Tensor
    target: Tensor
    losses: Tensor
    fit: PerImageFit


def combine(target: Tensor, estimate: Tensor, alpha: float, suppression: bool) -> Tensor:
    """Next target x^(t) from x^(t-1) and x_est^(t), all (B, C, H, W): Eqs. 9 and 14.

    With the squared distance for both terms of Eq. 8 the minimiser is alpha x^(t-1) + (1 - alpha) x_est^(t) with
    alpha = lambda / (1 + lambda). Non-maximum suppression replaces pixels whose L1 distance over channels is strictly
    below the (lower) median of their image by x_est^(t).
    """
    mixed = alpha * target + (1 - alpha) * estimate
    if not suppression:
        return mixed
    d = (target - estimate).abs().sum(1, keepdim=True)
    tau = d.flatten(1).median(1).values.view(-1, 1, 1, 1)
    return torch.where(d < tau, estimate, mixed)


class RIDE(Purifier):
    """Robust iterative data estimation: T stages of K Adam steps on a fresh small network for every image.

    In stage t the network learns x^(t-1) + noise -> x^(t-1) + other noise on a random tenth of the pixels (Algorithm
    2); then x_est^(t), its mean output, is mixed into x^(t) (`combine`). The result is x_est^(T). Weights and Adam's
    state are kept from stage to stage. The paper's theorem says that the losses do not rise and are bounded if no inner
    fit raises them; it says nothing about accuracy, nor that gradients stay unknown to attackers: a suite without BPDA
    and EOT proves nothing here (`configs/suites/ride_honest_mnist.yaml`).

    DIP (Ulyanov et al. 2018), I-DIP and DAE are settings. DIP is ``random_input: true, noisy_target: false,
    stages: 1``, I-DIP the same with stages, DAE (Algorithm 1) is RIDE with one stage. Compare them at equal `steps`
    times `stages`.

    Images of a batch are fitted together, their draws are properties of the sample. Departures: x_est is the mean of
    `estimates` outputs without dropout (the release takes one training output: `estimates: 0`); the loss is the mean
    over kept values. `sigma` is in the units of `space`: the paper says 0.5 everywhere, the release's demo takes 0.1 on
    [0, 1]. A fit that ends with weights or an estimate that are not finite leaves its image as it is, with a warning;
    `diverged` (B,) says which of the last batch, `fallbacks` how many so far.

    Raises ValueError for images that are not finite, outside [0, 1], or with other channels than the network, and where
    one image does not fit into the memory.

    Args:
        channels: of the image, the hidden layers and the image again; 3-32-32-32-32-32-32-32-3 is ImageNet's network,
            1-16-16-16-1 MNIST's, 3-32-32-32-32-3 that of CIFAR-10. Of a U-Net: the widths on the way down.
        dropout_after: layers, from 1, whose outputs are dropped out: 4, 5, 6; MNIST and CIFAR-10: 2, 3.
        dropout: share of values that are dropped.
        steps: K, Adam steps of a stage.
        stages: T.
        alpha: weight of x^(t-1) in x^(t).
        suppression: replace pixels by x_est^(t) where it is near x^(t-1).
        sigma: standard deviation of the noise, in units of `space`.
        noisy_target: targets have noise, too.
        mask_ratio: share of the pixels that a step leaves out of the loss.
        random_input: the input is a fixed random image instead of the noisy target (DIP).
        noisy_copies: n, noisy copies of the image in a step.
        estimates: outputs whose mean is x_est; 0: the last training output, with dropout.
        learning_rate: of Adam.
        weight_decay: of Adam, coupled (added to the gradient).
        amsgrad: of Adam.
        architecture: a chain of convolutions (fcn) or a U-Net, whose layers count down, up and out; the paper gives no
            details of its own, which is about 8 points lower.
        loss: mean squared error, or (release) the norm of the whole image's error times the share of kept pixels.
        space: pixels of [0, 1] and a sigmoid behind the network, or normalised images and a linear output.
        mean: for normalised, per channel.
        std: for normalised, per channel.
        patience: an image is done where the mean loss of so many steps is not `gain` below that of as many before;
            none (the paper): after steps * stages.
        gain: see `patience`.
        max_images_per_pass: images fitted together; auto: as many as `memory` holds.
        memory: GiB for the fits; none: 80 % of what is free on a GPU; elsewhere 1/32, and one image at least.
    """

    differentiable = False
    stochastic = True

    def __init__(
        self,
        channels: Sequence[int] = (3, 32, 32, 32, 32, 32, 32, 32, 3),
        dropout_after: Sequence[int] = (4, 5, 6),
        dropout: float = 0.5,
        steps: int = 2000,
        stages: int = 5,
        alpha: float = 0.9,
        suppression: bool = True,
        sigma: float = 0.1,
        noisy_target: bool = True,
        mask_ratio: float = 0.9,
        random_input: bool = False,
        noisy_copies: int = 1,
        estimates: int = 16,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        amsgrad: bool = False,
        loss: Literal["mse", "norm"] = "mse",
        space: Literal["pixels", "normalized"] = "pixels",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        patience: int | None = None,
        gain: float = 0.01,
        max_images_per_pass: int | Literal["auto"] = "auto",
        memory: float | None = None,
        architecture: Literal["fcn", "unet"] = "fcn",
    ) -> None:
        super().__init__()
        check_arguments(RIDE, architecture=architecture)
        least = {"steps": (steps, 1), "stages": (stages, 1), "estimates": (estimates, 0)}
        least |= {"patience": (1 if patience is None else patience, 1)}
        least |= {"max_images_per_pass": (1 if max_images_per_pass == "auto" else max_images_per_pass, 1)}
        for name, (value, low) in least.items():
            if value < low:
                raise UserError(f"{name} must be at least {low}, not {value}")
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha must lie in [0, 1], not {alpha}")
        if not (memory is None or memory > 0):
            raise UserError(f"memory must be above 0, not {memory}")
        if space == "normalized" and not (len(mean) == len(std) == channels[0] and min(std) > 0):
            raise UserError(f"mean and std need {channels[0]} values each, and std positive ones: {mean}, {std}")
        self.fit_settings = FitSettings(
            channels=tuple(channels),
            dropout_after=tuple(dropout_after),
            dropout=dropout,
            sigmoid=space == "pixels",
            random_input=random_input,
            sigma=sigma,
            noisy_target=noisy_target,
            mask_ratio=mask_ratio,
            noisy_copies=noisy_copies,
            squared=loss == "mse",
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            unet=architecture == "unet",
        )
        self.steps, self.stages, self.alpha, self.suppression = steps, stages, alpha, suppression
        self.estimates, self.patience, self.gain = estimates, patience, gain
        self.mean, self.std = (mean, std) if space == "normalized" else ((0.0,), (1.0,))
        self.max_images_per_pass, self.memory = max_images_per_pass, memory
        self.fits: list[PerImageFit] = []  # of the last pass
        self.diverged, self.fallbacks = torch.zeros(0, dtype=torch.bool), 0

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.clone()
        at_once, noise = self.images_per_pass(x), self.own_noise(x).split()
        watch = Watch(-(-len(x) // at_once) * self.stages * self.steps, len(x))
        found, healthy, self.fits = [], [], list[PerImageFit]()
        for start in range(0, len(x), at_once):
            rows = slice(start, start + at_once)
            *_, last = self.run(x[rows], noise[rows], tick=watch.tick)
            found.append(last.estimate)
            self.fits.append(last.fit)
            healthy.append(last.estimate.flatten(1).isfinite().all(1))
        self.diverged = ~torch.cat(healthy)
        z = torch.cat(found).to(x.dtype)
        if bool(self.diverged.any()):
            self.fallbacks += int(self.diverged.sum())
            warnings.warn(
                f"{int(self.diverged.sum())} of {len(x)} fits diverged: images left as they are", stacklevel=2
            )
            z = torch.where(self.diverged.view(-1, 1, 1, 1), x, z)
        return z

    def frozen(self, x: Tensor) -> Tensor:
        """Surrogate for `BPDA`: h(x + noise; w) with the weights fitted to `x` in the last pass held fixed.

        Its gradient leaves out how the weights depend on `x`. Raises ValueError where the weights are of other images.
        """
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        parts = x.split([len(fit.noise) for fit in self._last(x)])
        z = [fit.frozen((part - mean) / std, self.estimates) for fit, part in zip(self.fits, parts, strict=True)]
        return torch.cat(z) * std + mean

    def unrolled(self, x: Tensor, steps: int | None = None) -> Tensor:
        """Surrogate for `BPDA`: the whole run with `steps` steps a stage (none: its own), differentiable in `x`.

        The gradient includes how the weights depend on `x`. Draws are new ones from the streams of the last pass, which
        must have been fitted to `x`, else ValueError.
        """
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        z = unrolled(
            self.fit_settings,
            Noise(torch.cat([fit.noise.fork("unrolled").key for fit in self._last(x)])),
            (x - mean) / std,
            lambda target, estimate: combine(target, estimate, self.alpha, self.suppression),
            steps=self.steps if steps is None else steps,
            stages=self.stages,
            estimates=self.estimates,
        )
        return z * std + mean

    def _last(self, x: Tensor) -> list[PerImageFit]:
        if sum(len(fit.noise) for fit in self.fits) != len(x):
            raise UserError(f"the last pass did not fit {len(x)} images to the end (with patience, some end early)")
        return self.fits

    def run(
        self, x: Tensor, noise: Noise, every: int | None = None, tick: Callable[[], object] = lambda: None
    ) -> Iterator[RideState]:
        """Fit images (B, C, H, W) in one pass; yields a `RideState` after every stage and every `every` iterations.

        Yielding more often changes no result. A diverged fit has an estimate of NaN. Gradients are switched on inside,
        also where the caller has switched them off.
        """
        states = self._run(x, noise, every, tick)
        while True:
            with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
                state = next(states, None)
            if state is None:
                return
            yield state

    def _run(self, x: Tensor, noise: Noise, every: int | None, tick: Callable[[], object]) -> Iterator[RideState]:
        x = self._checked(x).detach()
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        target = (x - mean) / std  # a new tensor, so that x itself is never written to
        fit, rows = PerImageFit(self.fit_settings, noise, target), torch.arange(len(x), device=x.device)
        estimate, losses, live = x.clone(), x.new_zeros(len(x)), target
        window, before = x.new_zeros(len(x)), x.new_full((len(x),), torch.inf)
        for iteration in range(1, self.steps * self.stages + 1):
            losses[rows] = fit.step(live)
            tick()
            stage_ended, requested = iteration % self.steps == 0, every is not None and iteration % every == 0
            done = None
            if self.patience:
                window += losses
                if iteration % self.patience == 0:
                    done = (window > (1 - self.gain) * before)[rows]
                    window, before = torch.zeros_like(window), window
            if not (stage_ended or requested or (done is not None and bool(done.any()))):
                continue  # only reading `done` waits for the device
            with torch.no_grad():
                found = fit.estimate(live, self.estimates, iteration)
            found = torch.where(fit.finite().view(-1, 1, 1, 1), found, torch.nan)
            estimate[rows] = (found * std + mean).clamp(0, 1)
            if stage_ended:
                target[rows] = combine(live, found, self.alpha, self.suppression)
            if done is not None:
                rows = rows[~done]
                fit.keep(~done)
            live = target[rows]
            if stage_ended or requested or len(rows) == 0:
                pixels = (target * std + mean).clamp(0, 1)
                yield RideState(iteration, -(-iteration // self.steps), estimate.clone(), pixels, losses.clone(), fit)
            if len(rows) == 0:
                return

    def images_per_pass(self, x: Tensor) -> int:
        """Number of the images `x` that are fitted together.

        Raises ValueError where the memory does not hold one.
        """
        x = self._checked(x)
        each = self.fit_settings.bytes_per_image(x.shape[2], x.shape[3], x.element_size())
        if self.memory is not None:
            budget = self.memory * GIB
        elif x.is_cuda:
            budget = 0.8 * torch.cuda.mem_get_info(x.device)[0]
        else:
            budget = max(each, GIB / 32)  # what stays near a processor's caches is fastest
        if each > budget:
            raise UserError(
                f"fitting one image of {tuple(x.shape[1:])} takes {each / GIB:.2g} GiB, more than the memory of "
                f"{budget / GIB:.2g}: raise memory, or take fewer noisy_copies or channels"
            )
        most = len(x) if self.max_images_per_pass == "auto" else self.max_images_per_pass
        return min(most, int(budget // each))

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.fit_settings.channels[0]:
            raise UserError(
                f"the network is for {self.fit_settings.channels[0]} channels, the images are {tuple(x.shape)}: "
                "set channels"
            )
        if not bool(x.isfinite().all()):
            raise UserError("an image has pixels that are not finite")
        if x.min() < -1e-6 or x.max() > 1 + 1e-6:
            raise UserError(f"images must lie in [0, 1], not in [{float(x.min()):.3g}, {float(x.max()):.3g}]")
        return x if x.dtype == torch.float64 else x.float()


class Watch:
    """Progress on stderr of fitting `images` in `steps` steps, where that takes more than a minute."""

    def __init__(self, steps: int, images: int) -> None:
        self.steps, self.images, self.done, self.start, self.said = steps, images, -1, 0.0, 0.0

    def tick(self) -> None:
        """Count one step; the first one, which warms up, is not timed."""
        self.done, now = self.done + 1, time.monotonic()
        if self.done == 0:
            self.start, self.said = now, now - 50  # the first message comes after 10 s, then one a minute
        elif now - self.said >= 60:
            self.said, seconds = now, (now - self.start) * self.steps / self.done
            if seconds > 60:
                whole, left = (timedelta(seconds=round(s)) for s in (seconds, seconds * (1 - self.done / self.steps)))
                text = f"fitting {self.images} images takes about {whole} (h:min:s), {left} are left"
                print(text, file=sys.stderr, flush=True)
