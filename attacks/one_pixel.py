"""One-pixel attack: a few pixels chosen by differential evolution (Su et al. 2019)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import differential_evolution
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind, Knowledge
from adversarial_lightning.attacks.core.best_adversarial import is_adversarial
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.noise import Noise, noise_for


@dataclass(frozen=True)
class OnePixel(Attack):
    """Adversarial image with at most `pixels` changed pixels (all their channels), or the image itself.

    Su, Vargas and Sakurai, "One Pixel Attack for Fooling Deep Neural Networks", IEEE TEVC 2019, section III: a
    candidate is a list of pixels with their positions and new values; candidates evolve by differential evolution
    without crossover (eq. 3), and their fitness is the log-probability of `y`. The attack is black-box, but needs the
    model's logits. It ends at the first adversarial candidates, not at a certain confidence. The images are attacked
    one by one, a generation at a time.

    Args:
        norm: norm that is bounded; it counts values, and a pixel has one for each channel.
        pixels: number of pixels that may change.
        population: number of candidates in a generation, at least 5.
        generations: generations after the first; at most population (generations + 1) + 1 forward passes for an image.
        differential: F of eq. 3, the weight of the difference of two candidates.
        targeted: search for the class `y` instead of any other class than `y`.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    knowledge: ClassVar[Knowledge] = "scores"
    norm: Literal["l0"] = "l0"
    pixels: int = 1
    population: int = 400
    generations: int = 100
    differential: float = 0.5
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, pixels=self.pixels, generations=self.generations)
        at_least(5, population=self.population)
        between(0, 2, differential=self.differential)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        with torch.no_grad():
            todo = ~is_adversarial(model(x), y, self.targeted)
        z = x.clone()
        for i in todo.nonzero()[:, 0].tolist():
            z[i] = self.search(model, x[i], y[i], int(noise.key[i]))
        return z

    def search(self, model: nn.Module, x: Tensor, y: Tensor, key: int) -> Tensor:
        """Adversarial image for one image `x` (C, H, W) or (D,) with the label `y` (); `x` itself if none is found."""
        image = x if x.ndim == 3 else x.view(1, 1, -1)
        channels, height, width = image.shape
        random = np.random.default_rng(key % 2**64)
        first = random.random((self.population, self.pixels, 2 + channels)) * [height, width, *[1] * channels]
        first[..., 2:] = random.normal(128 / 255, 127 / 255, first[..., 2:].shape).clip(0, 1)
        found, generation = x, 0

        def fitness(genes: np.ndarray) -> np.ndarray:
            nonlocal found, generation
            z = self.paint(image, genes).view(-1, *x.shape)
            members = Noise.keyed(key, torch.arange(len(z), device=x.device))
            with torch.no_grad(), noise_for(model, members.fork(generation)):
                logits = model(z)
            generation += 1
            label = y.expand(len(z))
            score = -F.cross_entropy(logits.double(), label, reduction="none") * (-1 if self.targeted else 1)
            fooled = is_adversarial(logits, label, self.targeted)
            if found is x and fooled.any():
                found = z[score.masked_fill(~fooled, torch.inf).argmin()]
            energies: np.ndarray = score.nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9).cpu().numpy()
            return energies

        differential_evolution(
            fitness,
            bounds=[(0, height - 1e-6), (0, width - 1e-6), *[(0, 1)] * channels] * self.pixels,
            strategy="rand1bin",
            recombination=1.0,  # the paper's form without crossover
            mutation=self.differential,
            init=first.reshape(self.population, -1),
            maxiter=self.generations,
            seed=random,
            tol=0,
            polish=False,
            vectorized=True,
            updating="deferred",
            callback=lambda *_: found is not x,
        )
        return found

    def paint(self, image: Tensor, genes: np.ndarray) -> Tensor:
        """Images (S, C, H, W) of the `genes` (pixels (2 + C), S): row, column and values of each pixel."""
        pixels = torch.from_numpy(genes.reshape(self.pixels, -1, genes.shape[1]).copy())
        z = image.repeat(pixels.shape[-1], 1, 1, 1)
        member = torch.arange(len(z), device=z.device)
        for pixel in pixels:  # positions are cut off in float64: float32 rounds 223.999999 up, out of the image
            row, column = pixel[:2].long().to(z.device)
            z[member, :, row, column] = pixel[2:].T.to(image)
        return z
