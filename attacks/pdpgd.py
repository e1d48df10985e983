"""PDGD and PDPGD: primal-dual minimum-norm attacks (Matyasko 2020, chapter 5).

Matyasko, "Towards Deep Neural Networks Robust to Adversarial Examples", doctoral thesis, Nanyang Technological
University, 2020.

The attack is a game of two players. The primal player minimises ``rho ||r|| + h(m(x + r))`` over the perturbation r,
where m is the margin of the label and h the hinge. The dual player updates ``rho = lambda_1 / lambda_2`` by
multiplicative weights: rho grows while x + r is adversarial and decreases while it is not. Every row has its own
multipliers. All schedules depend on the fraction of the steps done, so that they are complete also in a short run.
Departures from the thesis:

- The first run starts at x, later runs start at random; a fine-tuning run from the best point may follow, as in the
  author's code. Later runs can target the runners-up among the classes, which finds other minima.
- The dual player's indicator is the sign of success (the printed 0/1 can never lower a multiplier), and the primal
  player uses moving averages of the multipliers (again as in the author's code).
- Step sizes decay by the square of the thesis' linear schedule: to 1e-4 of the first one, not to 1e-2 (`decay` "linear"
  gives the printed one). With fewer than 300 steps, rho changes faster until x + r, once adversarial, is no longer so.
  Both keep the results of short runs close to those of long runs.
- rho starts at the length of the first gradient in l2, and at the thesis' 0.01 in the other norms.
- The proximal step uses Adam's metric. The Euclidean proximal step has another fixed point: 3 times too long in l1.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import input_gradient, margin
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, batch_view
from adversarial_lightning.attacks.core.prox import L1Penalty, L2Penalty, LinfPenalty, Penalty, QuasinormPenalty
from adversarial_lightning.errors import UserError

FLOOR = math.log(1e-6)  # smallest log rho; the largest is -FLOOR
PENALTIES: dict[str, Penalty] = {
    "linf": LinfPenalty(),
    "l2": L2Penalty(),
    "l1": L1Penalty(),
    "l0": QuasinormPenalty(),
}

Push = Callable[[Tensor, Tensor, Tensor], Tensor]  # (r, gradient of h, lambda_1) -> gradient for Adam
Pull = Callable[[Tensor, Tensor, Tensor], Tensor]  # (r, step times rho, Adam's metric) -> r after the proximal step
Distance = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PrimalDual(Attack):
    """Abstract base of `PDGD` and `PDPGD`: the primal-dual loop, without the primal step.

    Args:
        norm: norm that is minimised.
        steps: number of gradient steps in each run.
        step_size: Adam's first step, in pixels of [0, 1]. The default is our choice; the thesis tunes it on held-out
            images among 0.01, 0.05, 0.1, 0.5 and 1: `attacks.choose_step_size`.
        decay: of the step size: linear, to 1e-2 of the first one, as printed, or the square of that.
        restarts: number of runs.
        finetune: steps of one more run from the best point, with a hundredth of the step size; 0 for none.
        runners_up: runs after the first target this many of the most likely wrong classes in turn; 0 for any class.
        spread: later runs start uniformly within this distance (linf) of the image.
        ratio: first value of rho, the weight of the norm over the weight of h; none: 0.01, the thesis' value, but for
            l2 the length of the first gradient, with which both terms balance for a linear model.
        dual_step: change of log rho in each step.
        surrogate: h, hinge or softplus (smooth, for models on which the hinge makes no progress).
        targeted: `y` holds the classes to reach.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    kind: ClassVar[Kind] = "minimum-norm"

    norm: Literal["linf", "l2", "l1", "l0"] = "l2"
    steps: int = 500
    step_size: float = 0.3
    decay: Literal["square", "linear"] = "square"
    restarts: int = 1
    finetune: int = 0
    runners_up: int = 0
    spread: float = 0.5
    ratio: float | None = None
    dual_step: float = 0.1
    surrogate: Literal["hinge", "softplus"] = "hinge"
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, restarts=self.restarts, eot_samples=self.eot_samples)
        at_least(0, finetune=self.finetune, runners_up=self.runners_up, spread=self.spread)
        at_least(1e-12, step_size=self.step_size, dual_step=self.dual_step)
        at_least(1e-6, ratio=self.ratio)
        if self.runners_up and self.targeted:
            raise UserError("runners_up must be 0 in a targeted attack: its class is given")

    @abstractmethod
    def moves(self) -> tuple[Distance, Push, Pull]:
        """Distance that is minimised, gradient for Adam (push), and proximal step after Adam's step (pull)."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Do all runs; rows that are adversarial without an attack take part, and are returned unchanged."""
        distance, push, pull = self.moves()
        keep = BestAdversarial(model, x, y, distance, self.targeted)
        if bool(keep.done.all()):
            return x
        with torch.no_grad():
            logits = model(x)
        others = logits.scatter(1, y[:, None], -torch.inf).sort(1, descending=True).indices[:, :-1]
        best = torch.zeros_like(keep.length)  # log rho where the best point was found
        for i in range(self.restarts):
            z, aim = x, None
            if i:
                z = (x + self.spread * (2 * noise.fork(i).uniform(x) - 1)).clamp(0, 1)
                if self.runners_up:
                    aim = others[:, (i - 1) % min(self.runners_up, others.shape[1])]
            best = self.run(push, pull, model, keep, z, aim, best)
        if self.finetune:
            self.run(push, pull, model, keep, keep.point, None, best, finetuning=True)
        return keep.point

    def balance(self, gradient: Tensor) -> Tensor:
        """Logarithm (B,) of the first rho, from the first `gradient`."""
        if self.ratio is None and self.norm == "l2":
            dual = NORMS["l2"].distance(gradient)
            return torch.where(dual > 0, dual, 0.01).log().clamp(FLOOR, -FLOOR)
        return gradient.new_full((len(gradient),), math.log(0.01 if self.ratio is None else self.ratio))

    def run(
        self,
        push: Push,
        pull: Pull,
        model: nn.Module,
        keep: BestAdversarial,
        z: Tensor,
        aim: Tensor | None,
        best: Tensor,
        finetuning: bool = False,
    ) -> Tensor:
        """Run from `z` towards the classes `aim` (B,), if given; returns the new `best`."""
        x, logits = keep.x, torch.empty(0)
        steps, primal, dual = (self.finetune, 0.01, 0.1) if finetuning else (self.steps, 1.0, 1.0)

        def h(values: Tensor, y: Tensor) -> Tensor:
            nonlocal logits
            logits = values.detach() if not len(logits) else logits + values.detach()  # of all EOT draws
            if aim is not None:
                m = (values.gather(1, y[:, None]) - values.gather(1, aim[:, None]))[:, 0]
            else:
                m = margin(values, y) * (1 if self.targeted else -1)
            return F.relu(m) if self.surrogate == "hinge" else F.softplus(m)

        mean, square = torch.zeros_like(x), torch.zeros_like(x)
        been = lost = torch.zeros_like(keep.done)
        log_rho = best
        lambda_1 = torch.sigmoid(log_rho)  # lambda_2 = 1 - lambda_1
        for k in range(steps):
            logits = torch.empty(0)
            gradient, _ = input_gradient(model, z, keep.y, h, self.eot_samples)
            length = keep.length
            fooled = keep.update(z, logits / self.eot_samples)
            closer = keep.length < length
            if k == 0 and not finetuning:
                log_rho = self.balance(gradient)
                lambda_1 = torch.sigmoid(log_rho)
            best = torch.where(closer, lambda_1.logit(), best)
            # Adam (Kingma and Ba 2015).
            r = z - x
            gradient = push(r, gradient, lambda_1)
            mean, square = mean.lerp(gradient, 0.1), square.lerp(gradient * gradient, 0.001)
            metric = (square / (1 - 0.999 ** (k + 1))).sqrt_().add_(1e-8)
            left = 1 - 0.99 * k / max(steps - 1, 1)
            theta = primal * self.step_size * (left if self.decay == "linear" else left**2)
            z = (z - theta * mean / (1 - 0.9 ** (k + 1)) / metric).clamp_(0, 1)
            z = (x + pull(z - x, theta * lambda_1 / (1 - lambda_1), metric)).clamp_(0, 1)
            # Both players move at once, so the dual step uses the success before the primal step. It raises rho after a
            # success (+1) and lowers it otherwise (-1). In a run of fewer than 300 steps it is longer, until a row that
            # was adversarial is no longer so: rho has then passed its equilibrium for the first time.
            been, lost = been | fooled, lost | (been & ~fooled)
            speed = torch.where(lost, 1.0, max(1.0, 300 / steps))
            log_rho = (log_rho + dual * self.dual_step * speed * (2 * fooled.to(x.dtype) - 1)).clamp(FLOOR, -FLOOR)
            lambda_1 = 0.9 * lambda_1 + 0.1 * torch.sigmoid(log_rho)
        with torch.no_grad():
            length = keep.length
            keep.update(z, model(z))
            return torch.where(keep.length < length, lambda_1.logit(), best)


@dataclass(frozen=True)
class PDGD(PrimalDual):
    """Primal-dual gradient descent: smallest adversarial perturbation in l2 (Matyasko 2020, Algorithm 2).

    A strong setting for about 500 gradients: ``steps=100, restarts=4, finetune=100, runners_up=3``.

    Args:
        norm: norm that is minimised.
    """

    norm: Literal["l2"] = "l2"

    def moves(self) -> tuple[Distance, Push, Pull]:
        def push(r: Tensor, gradient: Tensor, lambda_1: Tensor) -> Tensor:
            return batch_view(1 - lambda_1, r) * gradient + batch_view(lambda_1, r) * NORMS["l2"].steepest(r, r)

        return NORMS["l2"].distance, push, lambda r, weight, metric: r


@dataclass(frozen=True)
class PDPGD(PrimalDual):
    """Primal-dual proximal gradient descent: smallest perturbation in a norm or penalty (Matyasko 2020, Algorithm 3).

    Strong settings for about 500 gradients: ``steps=100, restarts=4, finetune=100`` for l1 and l0, whose local minima
    differ much, and ``step_size=0.15, steps=250, restarts=2`` for linf.

    Args:
        norm: norm that is minimised; l0 counts values and is reached through the 2/3 quasinorm, as in the author's
            published runs.
        penalty: penalty of `attacks.core.prox` or `prox_iterative` to minimise instead, such as GroupL0Penalty.
    """

    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    step_size: float = 1.0
    penalty: Penalty | None = None

    def moves(self) -> tuple[Distance, Push, Pull]:
        penalty = PENALTIES[self.norm] if self.penalty is None else self.penalty
        return penalty.distance, lambda r, gradient, _: gradient, penalty.prox
