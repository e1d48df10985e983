"""Deep margin maximization: hinge loss and the size of the logits' input gradient (Matyasko 2020, chapter 3).

Matyasko, "Towards Deep Neural Networks Robust to Adversarial Examples", doctoral thesis, Nanyang Technological
University, 2020.
"""

from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.attacks.core.checks import check_arguments
from adversarial_lightning.attacks.core.gradient import margin
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import LossClassifier
from adversarial_lightning.lightning_modules.double_backward import (
    check_logits,
    check_network,
    check_trainer,
    evaluating,
    pair_gradients,
    row_norm,
)
from adversarial_lightning.lightning_modules.schedules import Schedule

Route = Literal["full", "two_pass", "topk", "closest"]


def multiclass_hinge(logits: Tensor, y: Tensor) -> Tensor:
    """Multiclass hinge loss max_j (1 + f_j - f_y)_+ over j other than `y`, (B,); eq. 3.18 misprints its sign."""
    return (1 + margin(logits, y)).relu()


def binary_objective(f: Tensor, x: Tensor, y: Tensor, penalty: float = 0.1, q: Literal[1, 2] = 2) -> Tensor:
    """Two-class objective (eq. 3.14) as a batch mean: (1 - y f)_+ + C ||grad_x f||_q.

    `f` (B,) is the one output of a network at `x` (B, ...), which requires gradients; `y` (B,) holds -1 and +1.
    """
    (gradient,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    return ((1 - y * f).relu() + penalty * row_norm(gradient, q)).mean()


class Sensitivity(NamedTuple):
    """Margin sensitivity of each row, all (B,)."""

    value: Tensor  # the penalised norm, differentiable
    rival: Tensor  # class that attains it, int64
    margin: Tensor  # distance to the nearest linearised boundary, without a graph


def margin_sensitivity(
    logits: Tensor,
    x: Tensor,
    y: Tensor,
    q: Literal[1, 2] = 2,
    route: Route = "two_pass",
    candidates: int = 3,
    batched: bool = False,
) -> Sensitivity:
    """Maximum over j other than y of ||grad_x f_y - grad_x f_j||_q (eq. 3.18), and the geometric margin (eq. 3.17).

    `logits` (B, K) are a network's at `x` (B, ...), which requires gradients; `y` (B,). The class that attains the
    maximum is a constant for differentiation; of equals it is the lowest. The routes:

    - ``full`` keeps the graph of all K - 1 gradients;
    - ``two_pass`` finds the class without a graph and differentiates one gradient: same value, same derivative;
    - ``topk`` does so among the `candidates` largest other logits: a lower bound; with one candidate (the runner-up) no
      search is needed;
    - ``closest`` takes, among the same candidates, the class with the nearest linearised boundary: DeepFool's choice,
      not eq. 3.18.
    """
    classes = torch.arange(logits.shape[1] - 1, device=y.device).expand(len(y), -1)
    rivals = classes + (classes >= y[:, None])
    if route in ("topk", "closest") and candidates < rivals.shape[1]:
        largest = logits.detach().gather(1, rivals).topk(candidates, 1).indices.sort(1).values
        rivals = rivals.gather(1, largest)
    pairs = logits.gather(1, y[:, None]) - logits.gather(1, rivals)
    if rivals.shape[1] == 1:
        norms = row_norm(pair_gradients(pairs, x, create_graph=True), q, rows=2).T
        chosen, value = torch.zeros_like(y), norms[:, 0]
    else:
        norms = row_norm(pair_gradients(pairs, x, route == "full", batched), q, rows=2).T
        distances = pairs.detach().abs() / norms.detach().clamp_min(torch.finfo(norms.dtype).tiny)
        chosen = distances.argmin(1) if route == "closest" else norms.detach().argmax(1)
        if route == "full":
            value = norms.gather(1, chosen[:, None])[:, 0]
        else:
            pair = pairs.gather(1, chosen[:, None]).sum()
            value = row_norm(torch.autograd.grad(pair, x, create_graph=True)[0], q)
    geometric = (pairs.abs() / norms.clamp_min(torch.finfo(norms.dtype).tiny)).amin(1).detach()
    return Sensitivity(value, rivals.gather(1, chosen[:, None])[:, 0], geometric)


class MarginMaximization(LossClassifier):
    """Minimises the mean of the data term and of C times the margin sensitivity (eq. 3.18); no attack in training.

    A bounded margin of the logits and a small gradient make a large margin in the input: q = 2 against l2
    perturbations, q = 1 (the thesis' "l1 margin") against linf. As in the public code, and unlike the printed sums, C
    weighs means, and for q = 2 the norm is squared. The penalty acts on every sample, also on misclassified ones.

    Args:
        network: images in [0, 1] -> logits; C refers to this scale of the input.
        penalty: C, at least 0; with 0 only the data term is computed. The thesis: 0.1 for q 2, 0.01 for q 1.
        q: norm of the gradient, 1 or 2: the dual of the attacker's.
        squared: penalise the squared norm; none: as the public code, for q 2 only.
        loss: data term: the multiclass hinge (margin 1), or cross-entropy (the thesis' choice for CIFAR-10).
        route: how the class of the maximum is found, see `margin_sensitivity`.
        candidates: classes that the routes topk and closest consider.
        penalty_mode: train takes the penalty from the forward pass of the data term, dropout included; eval from a
            second one in eval mode, as networks with batch norm need.
        optimizer: of the network's parameters.
        schedule: of the learning rate; none: constant.
    """

    def __init__(
        self,
        network: nn.Module,
        penalty: float = 0.1,
        q: Literal[1, 2] = 2,
        squared: bool | None = None,
        loss: Literal["hinge", "ce"] = "hinge",
        route: Route = "two_pass",
        candidates: int = 3,
        penalty_mode: Literal["train", "eval"] = "train",
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        check_arguments(MarginMaximization, loss=loss, route=route, penalty_mode=penalty_mode)
        if not penalty >= 0:
            raise UserError(f"penalty must be at least 0, not {penalty}: a negative one would reward small margins")
        if q not in (1, 2):
            raise UserError(f"q must be 1 (against linf) or 2 (against l2), not {q}")
        if candidates < 1:
            raise UserError(f"candidates must be at least 1, not {candidates}")
        self.penalty, self.q = penalty, q
        self.squared = q == 2 if squared is None else squared
        self.data_term = multiclass_hinge if loss == "hinge" else _cross_entropy
        self.route, self.candidates, self.penalty_mode = route, candidates, penalty_mode
        self.checked = False

    def on_fit_start(self) -> None:
        if self.penalty:
            check_trainer(self.trainer, "MarginMaximization")

    def losses(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        if not self.penalty:
            logits = self(x)
            self._check(logits)
            return {"loss": self.data_term(logits, y).mean()}
        x = x.detach().requires_grad_()
        logits = self(x)
        self._check(logits)
        data = self.data_term(logits, y).mean()
        apart = self.penalty_mode == "eval"
        with evaluating(self.network) if apart else nullcontext():
            check_network(self.network, "MarginMaximization", "use penalty_mode: eval, or another normalisation")
            z = self(x) if apart else logits
            seen = margin_sensitivity(z, x, y, self.q, self.route, self.candidates, batched=x.is_cuda)
        size = seen.value.square() if self.squared else seen.value
        name = "sensitivity" if self.route in ("full", "two_pass") else f"sensitivity_{self.route}"
        functional = -margin(logits.detach(), y)
        return {
            "loss": data + self.penalty * size.mean(),
            "data": data,
            name: seen.value.mean(),
            f"{name}_max": seen.value.amax(),
            "functional_margin": functional.mean(),
            "geometric_margin": seen.margin.mean(),
            "correct": (functional > 0).float().mean(),
        }

    def _check(self, logits: Tensor) -> None:
        if not self.checked:
            check_logits(logits, "MarginMaximization")
            self.checked = True


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")
