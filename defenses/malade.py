"""MALADE and MALA: Langevin dynamics from the input towards high data density (Srinivasan et al. 2021).

Srinivasan, Rohrer, Marban, Müller, Samek and Nakajima, "Robustifying Models Against Adversarial Attacks by Langevin
Dynamics", 2021.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.checks import at_least, check_arguments
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.unroll import unroll
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.defenses.base import Purifier
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks import Denoiser

Module = TypeVar("Module", bound="Denoising")
Clip = Literal["none", "final", "each"]


def towards(x: Tensor, r: Tensor, pull: float) -> Tensor:
    """Langevin drift x + alpha score(x) as ``(1 - c) x + c r``, c = `pull` = alpha / sigma2; exactly r at c = 1."""
    return (1 - pull) * x + pull * r


def broken_to_nan(z: Tensor) -> Tensor:
    """Set all pixels of a row of `z` that is not finite to NaN: clipping would hide an overflow as black and white."""
    finite = z.flatten(1).isfinite().all(1)
    return z if bool(finite.all()) else torch.where(finite.view(-1, *[1] * (z.ndim - 1)), z, torch.nan)


def load_denoiser(denoiser: Denoiser | str) -> Denoiser:
    """Load the `Denoiser` of a `DenoisingAutoencoder` checkpoint, or take one as it is; frozen, in eval mode."""
    if isinstance(denoiser, str):
        if not Path(denoiser).is_file():
            raise UserError(f"denoiser must name the .ckpt file of a DenoisingAutoencoder run: no file {denoiser!r}")
        network, _ = load_network(denoiser)
        if not isinstance(network, Denoiser):
            raise UserError(f"{denoiser} holds a {type(network).__name__}, no denoiser: train a DenoisingAutoencoder")
        denoiser = network
    return denoiser.eval().requires_grad_(False)


class Denoising(nn.Module):
    """Module whose ``denoiser`` stays in eval mode when the rest changes its mode."""

    denoiser: Denoiser

    def train(self: Module, mode: bool = True) -> Module:
        super().train(mode)
        self.denoiser.eval()
        return self


class Chain(Denoising, Purifier):
    """Abstract base of MALA and MALADE: N Langevin steps along the score of a denoiser, started at the input.

    Backwards the chain is recomputed step by step (`attacks.core.unroll`): the full gradient costs one step's memory.
    An image whose chain is not finite comes out as NaN, and evaluation counts it as misclassified.
    """

    stochastic = True  # where noise_std and steps are above 0

    def __init__(
        self,
        denoiser: Denoiser | str,
        step_size: float,
        steps: int,
        noise_std: float,
        annealing: float,
        clip: Clip,
    ) -> None:
        super().__init__()
        check_arguments(Chain, clip=clip)
        self.denoiser = load_denoiser(denoiser)
        sigma2 = self.denoiser.sigma2
        at_least(0, step_size=step_size, steps=steps, noise_std=noise_std)
        if not 0 < annealing <= 1:
            raise UserError(f"annealing must lie in (0, 1], not {annealing}")
        if step_size > 2 * sigma2:
            raise UserError(
                f"step_size {step_size} is {step_size / sigma2:.3g} times sigma2 = {sigma2:g} of the denoiser, and "
                f"chains diverge above 2 times: choose at most {2 * sigma2:g}"
            )
        self.step_size, self.steps, self.noise_std = step_size, steps, noise_std
        self.annealing, self.clip = annealing, clip
        self.stochastic = noise_std > 0 and steps > 0
        self.trained_for = self.denoiser.trained_for

    def forward(self, x: Tensor) -> Tensor:
        for state in self.states(x):
            x = state
        return x

    def states(self, x: Tensor) -> Iterator[Tensor]:
        noise = self.own_noise(x) if self.stochastic else Noise.keyed(0, torch.zeros(len(x), dtype=torch.int64))
        for t in range(self.steps):
            yield x
            x = unroll(partial(self.step, t), x, noise, 1)
        x = broken_to_nan(x)
        yield x.clamp(0, 1) if self.clip == "final" else x

    def step(self, t: int, x: Tensor, noise: Noise) -> Tensor:
        """One Langevin step from x_t to x_{t+1} (B, C, H, W): Eqs. 7 and 11; draws only where noise_std is above 0."""
        z = towards(x, self.denoiser(x), self.pull(t))
        if self.noise_std:
            z = z + self.noise_std * self.annealing ** (t / 2) * noise.normal(x)
        return broken_to_nan(z).clamp(0, 1) if self.clip == "each" else z

    def quiet(self, x: Tensor, steps: int | None = None) -> Tensor:
        """First `steps` steps of the chain (none: all) without noise and clipping: a surrogate for `attacks.BPDA`."""
        for t in range(self.steps if steps is None else steps):
            x = towards(x, self.denoiser(x), self.pull(t))
        return x

    def pull(self, t: int) -> float:
        """Pull c = alpha_t / sigma2 of step `t`."""
        return self.step_size / self.denoiser.sigma2 * self.annealing**t


class MALADE(Chain):
    """Langevin dynamics along the score of a supervised denoising autoencoder (Eq. 11).

    The paper prints no step size, number of steps or noise: the defaults were chosen on held-out MNIST images (see
    `reproduce/select_malade.py`). Nor does it say that images are clipped. There is no rejection step (footnote 7).
    A valid Langevin chain has noise_std^2 = 2 step_size; here it is free, as in the paper.

    Args:
        denoiser: the .ckpt file of an sDAE, or a `networks.Denoiser`. It belongs to one classifier.
        step_size: alpha, at most twice the sigma2 of the denoiser; sigma2 itself replaces x by r(x).
        steps: N; 0 leaves the image as it is.
        noise_std: delta, standard deviation of the noise of a step, in pixels of [0, 1]; 0 for a deterministic chain.
        annealing: gamma; alpha and delta^2 are multiplied by it after each step.
        clip: clip to [0, 1] at the end, after each step, or (against the contract of images) not at all.
    """

    def __init__(
        self,
        denoiser: Denoiser | str,
        step_size: float = 0.03,
        steps: int = 10,
        noise_std: float = 0.0735,
        annealing: float = 1.0,
        clip: Clip = "final",
    ) -> None:
        super().__init__(denoiser, step_size, steps, noise_std, annealing, clip)
        if self.trained_for is None:
            raise UserError("MALADE needs a denoiser that was trained with a classifier (an sDAE): for a DAE use MALA")


class MALA(Chain):
    """Langevin dynamics along the score of a denoising autoencoder (Eq. 7): MALADE's control, without class labels.

    Args:
        denoiser: the .ckpt file of a DAE, or a `networks.Denoiser`.
        step_size: alpha, at most twice the sigma2 of the denoiser; sigma2 itself replaces x by r(x).
        steps: N; 0 leaves the image as it is.
        noise_std: delta, standard deviation of the noise of a step, in pixels of [0, 1]; 0 for a deterministic chain.
        annealing: gamma; alpha and delta^2 are multiplied by it after each step.
        clip: clip to [0, 1] at the end, after each step, or (against the contract of images) not at all.
    """

    def __init__(
        self,
        denoiser: Denoiser | str,
        step_size: float = 0.03,
        steps: int = 10,
        noise_std: float = 0.0735,
        annealing: float = 1.0,
        clip: Clip = "final",
    ) -> None:
        super().__init__(denoiser, step_size, steps, noise_std, annealing, clip)
        if self.trained_for is not None:
            raise UserError("MALA's denoiser must not know the classes (a DAE); this one is an sDAE: use MALADE")
