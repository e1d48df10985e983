"""Adapters to the attacks of foolbox, adv-lib and autoattack, for cross-checks (extra ``reference``).

foolbox (Rauber et al. 2017), adv-lib (Rony and Ben Ayed) and autoattack (Croce and Hein 2020a) are optional: each is
imported when its attack runs. Their random numbers come from the global generators of torch and numpy, which are seeded
from our noise and restored afterwards. Every result is verified by a separate forward pass.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind, Knowledge
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, distance
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import stochastic


def foreign(module: str, package: str) -> Any:
    """Import `module`; raises ValueError that tells how to install `package` if that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from modules that the libraries import
            return import_module(module)
    except ImportError as error:
        raise UserError(
            f"this attack needs {package}, which cannot be imported ({error}): "
            "pip install 'adversarial-lightning[reference]', or see its project page"
        ) from error


@contextmanager
def seeded(noise: Noise) -> Iterator[int]:
    """Context with torch's and numpy's global generators seeded from the first row of `noise`; yields the seed."""
    seed = int(noise.fork("reference").key[0]) % 2**32
    state = np.random.get_state()
    devices = [noise.key.device] if noise.key.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed)
            yield seed
    finally:
        np.random.set_state(state)


def deterministic(model: nn.Module) -> None:
    """Raise ValueError for a stochastic `model`: its noise is keyed by row, and the libraries reorder rows."""
    if stochastic(model):
        raise UserError(
            "reference attacks run on deterministic models only: use our own attacks with eot_samples (EOT)"
        )


def nearest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    norm: str,
    targeted: bool,
    run: Callable[[Tensor, Tensor], Tensor],
    one_by_one: bool,
) -> Tensor:
    """Adversarial images from ``run(x, y)``; x itself for failures and for rows that need no attack.

    An attack with random numbers runs `one_by_one`, seeded by the row, so that results do not depend on the batch.
    """
    deterministic(model)
    best = BestAdversarial(model, x, y, partial(distance, norm), targeted)
    z = x.clone()
    todo = [int(i) for i in (~best.done).nonzero()[:, 0]]
    for rows in [[i] for i in todo] if one_by_one else [todo] if todo else []:
        with seeded(noise[torch.tensor(rows, device=x.device)]):
            z[rows] = run(x[rows].clone(), y[rows].clone()).detach().to(x)
    z = torch.where(z.isfinite(), z, x).clamp(0, 1)
    with torch.no_grad():
        best.update(z, model(z))
    return best.point


def _foolbox(attack: Callable[[Any], Any], model: nn.Module, targeted: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Function (x, y) -> images of the foolbox attack ``attack(foolbox.attacks)``; x itself if it finds no start."""
    fb: Any = foreign("foolbox", "foolbox")

    def run(x: Tensor, y: Tensor) -> Tensor:
        classifier = fb.PyTorchModel(model, bounds=(0, 1), device=x.device)
        goal = fb.criteria.TargetedMisclassification(y) if targeted else fb.criteria.Misclassification(y)
        try:
            found: Tensor = attack(fb.attacks)(classifier, x, goal, epsilons=None)[1]
        except ValueError as error:
            if "init_attack failed" not in str(error):
                raise
            return x
        return found

    return run


@dataclass(frozen=True)
class ReferenceBrendelBethge(Attack):
    """foolbox's Brendel-Bethge attack (Brendel et al. 2019): a walk along the decision boundary.

    One image at a time. An image without a starting point is returned unchanged. Also needs numba.

    Args:
        norm: norm to minimise.
        steps: number of steps.
        targeted: reach the target `y` instead of leaving the label `y`; the start, blended noise, rarely reaches it.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    norm: Literal["linf", "l2", "l1", "l0"] = "l2"
    steps: int = 1000
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        name = {"linf": "Linfinity", "l2": "L2", "l1": "L1", "l0": "L0"}[self.norm] + "BrendelBethgeAttack"
        foreign("numba", "numba")
        run = _foolbox(lambda attacks: getattr(attacks, name)(steps=self.steps), model, self.targeted)
        return nearest(model, x, y, noise, self.norm, self.targeted, run, one_by_one=True)


@dataclass(frozen=True)
class ReferencePointwise(Attack):
    """foolbox's pointwise attack (Schott et al. 2019): resets pixels of an adversarial image, one after another.

    One image at a time, from salt-and-pepper noise. An image without a starting point is returned unchanged.

    Args:
        norm: l0, or l2 (then with a search along each pixel).
        targeted: reach the target `y` instead of leaving the label `y`.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    knowledge: ClassVar[Knowledge] = "decisions"
    norm: Literal["l0", "l2"] = "l0"
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        search = self.norm == "l2"
        run = _foolbox(lambda attacks: attacks.PointwiseAttack(l2_binary_search=search), model, self.targeted)
        return nearest(model, x, y, noise, self.norm, self.targeted, run, one_by_one=True)


@dataclass(frozen=True)
class ReferenceALMA(Attack):
    """adv-lib's augmented Lagrangian method (ALMA, Rony et al. 2021), with its default settings.

    Args:
        norm: norm to minimise; the library's other distances are perceptual.
        steps: number of gradient steps.
        targeted: reach the target `y` instead of leaving the label `y`.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    norm: Literal["l2", "l1"] = "l2"
    steps: int = 1000
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        alma: Any = foreign("adv_lib.attacks.augmented_lagrangian", "adv-lib").alma

        def run(x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = alma(model, x, y, targeted=self.targeted, num_steps=self.steps, distance=self.norm)
            return found

        return nearest(model, x, y, noise, self.norm, self.targeted, run, one_by_one=False)


@dataclass(frozen=True)
class ReferenceSigmaZero(Attack):
    """adv-lib's sigma-zero (Cinà et al. 2024), an untargeted l0 attack.

    Args:
        norm: l0.
        steps: number of gradient steps.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    norm: Literal["l0"] = "l0"
    steps: int = 1000

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        sigma_zero: Any = foreign("adv_lib.attacks.sigma_zero", "adv-lib").sigma_zero

        def run(x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = sigma_zero(model, x, y, num_steps=self.steps)
            return found

        return nearest(model, x, y, noise, self.norm, False, run, one_by_one=False)


@dataclass(frozen=True)
class ReferenceAutoAttack(Attack):
    """The authors' AutoAttack (Croce and Hein 2020a), for numbers comparable with leaderboards.

    It uses one global generator for a batch, so results depend on the batch. Images that it does not break are returned
    unchanged. float32 only.

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        version: standard (APGD-CE, APGD-T, FAB-T, Square), plus or rand.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: Radius = 0.3
    version: Literal["standard", "plus", "rand"] = "standard"

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        autoattack: Any = foreign("autoattack", "auto-attack (github.com/fra31/auto-attack)")
        name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[self.norm]
        if self.version != "rand":
            deterministic(model)
        with seeded(noise) as seed:
            run = autoattack.AutoAttack(
                model, norm=name, eps=float(self.eps), seed=seed, verbose=False, device=x.device, version=self.version
            )
            z: Tensor = run.run_standard_evaluation(x.clone(), y.clone(), bs=len(x))
        z = torch.where(z.isfinite(), z.to(x), x)
        return x + NORMS[self.norm].project(z - x, self.eps)
