"""ER-Classifier: a low-dimensional embedding with a regularised distribution (Li et al. 2021, Algorithm 1).

Li, Min, Lee, Yu, Kruus, Wang and Hsieh, "Towards Robustness of Deep Neural Networks via Regularization", ICCV 2021.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.func import functional_call

from adversarial_lightning.attacks import Attack, Noise
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import Classifier
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.lightning_modules.trades import kl_attack, trades
from adversarial_lightning.lightning_modules.training_method import Batch, require_find_unused_parameters
from adversarial_lightning.networks import MLP
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.networks.fc_densenet import frozen_statistics

Prior = Literal["gaussian", "uniform", "cauchy"]

# Independent numbers in the shape of codes (B, k): N(0, 1), U(-3, 3), and Cauchy(0, 1), which has no mean.
PRIORS: dict[str, Callable[[Noise, Tensor], Tensor]] = {
    "gaussian": lambda noise, like: noise.normal(like),
    "uniform": lambda noise, like: 6 * noise.uniform(like) - 3,
    "cauchy": lambda noise, like: (math.pi * (noise.uniform(like) - 0.5)).tan(),
}


def sliced_w1(a: Tensor, b: Tensor, directions: Tensor) -> Tensor:
    """Sliced W1: mean over `directions` (n, k) of the exact W1 between the projections of two samples (B, k)."""
    along = directions / directions.norm(dim=1, keepdim=True)
    gaps: Tensor = (a @ along.T).sort(0).values - (b @ along.T).sort(0).values
    return gaps.abs().mean()


@dataclass(frozen=True)
class AuthorsCode:
    """Details in which the authors' published code may depart from the paper; the defaults follow the paper.

    Args:
        critic_out: output of the critic: linear, or logsigmoid as in the code. A logsigmoid saturates, and the critic
            then does not estimate W1.
        reg_optimizer: optimizer of update 3: shared with update 2 (as in the code); its own, with which Adam cancels
            lambda; or joint: one step on the sum of both losses, the only choice with lambda as a true weight.
        accumulate_grads: do not zero gradients between updates 2 and 3, nor between the steps of D in a batch.
        mix_clean: do updates 1 and 3 on the clean images and then on the attacked ones, and take the mean of both
            cross-entropies; otherwise use attacked images only.
        attack_label: label that the attack is given: the true label, or the prediction for the clean image (as in the
            code, to prevent label leaking).
    """

    critic_out: Literal["linear", "logsigmoid"] = "linear"
    reg_optimizer: Literal["shared", "own", "joint"] = "shared"
    accumulate_grads: bool = False
    mix_clean: bool = False
    attack_label: Literal["label", "prediction"] = "label"


PAPER = AuthorsCode()


class ERClassifier(Classifier):
    """Minimises E CE(C(Q(x')), y) + lambda W1(law of Q(x'), prior) over encoder Q and classifier C, x' from `attack`.

    W1 is estimated by its dual: a critic D with clipped weights (WGAN, Arjovsky et al. 2017) learns high values for
    draws of the prior and low ones for codes. Each batch has three updates: 1. D ascends w1 = mean D(z) - mean
    D(Q(x')), and is clipped; 2. Q and C descend the cross-entropy; 3. Q alone ascends lambda mean D(Q(x')). The
    authors' code has the opposite sign. Clipping bounds the Lipschitz constant of D by an unknown number, so `w1_hat`
    is W1 up to a factor; for the Cauchy prior W1 is infinite. Update 1 computes codes in train mode and does not change
    the statistics of batch norms.
    Inference is C(Q(x)): the critic is no part of the network.

    Variants: without an attack it is ER-Classifier-minus, with `beta` ER-Trades, and with ``regularization: 0`` E-CLA,
    which has no critic and no updates 1 and 3. There are three optimizers: on several processes use
    ``--trainer.strategy ddp_find_unused_parameters_true``, and note that Lightning counts the steps of all in
    `global_step`. Departures: the critic's initial weights are clipped too; all epochs run in train mode, which the
    authors' code leaves after the first one. The paper prints neither learning rates nor lambda: the defaults, Adam at
    1e-4 with 0.05 of it for the classifier and half of it for the critic, and 5e-4, are those of the authors' code for
    MNIST; none of them was tuned here.

    Args:
        network: images in [0, 1] -> logits, with modules `encoder` (images -> codes (B, k)) and `classifier` (codes ->
            logits) and their size `embedding`, k, such as `networks.ERNet`.
        attack: finds x'; none: x' = x.
        regularization: lambda of update 3. Update 1 has lambda 1, as in the authors' code; the paper has lambda there,
            too, which makes almost no difference under Adam: it cancels the scale of a loss.
        beta: weight of the divergence in the TRADES loss, which then replaces the cross-entropy, with x' as in TRADES;
            none: cross-entropy.
        prior: gaussian N(0, I), uniform in (-3, 3)^k, or cauchy.
        clip: bound c of every weight and bias of the critic.
        n_critic: steps of update 1.
        critic_hidden: widths of the critic's hidden layers.
        authors_code: details of the authors' code to reproduce; by default none.
        optimizer: of the encoder.
        classifier_optimizer: of the classifier.
        critic_optimizer: of the critic.
        schedule: of all learning rates; none: constant.
    """

    network: Any  # with encoder, classifier and embedding

    def __init__(
        self,
        network: nn.Module,
        attack: Attack | None = None,
        regularization: float = 5e-4,
        beta: float | None = None,
        prior: Prior = "gaussian",
        clip: float = 0.01,
        n_critic: int = 1,
        critic_hidden: Sequence[int] = (512, 512, 512, 512),
        authors_code: AuthorsCode = PAPER,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-4),
        classifier_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=5e-6),
        critic_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=5e-5),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        check_parts(network, "ERClassifier")
        if not (regularization >= 0 and clip > 0 and n_critic >= 1):
            given = f"regularization ({regularization}) must be at least 0, clip ({clip}) above 0"
            raise UserError(f"{given}, n_critic ({n_critic}) at least 1")
        if prior not in PRIORS:
            raise UserError(f"prior is one of {', '.join(PRIORS)}; not {prior!r}")
        if attack is None and (authors_code.mix_clean or beta is not None):
            raise UserError("mix_clean and beta (TRADES) need an attack: without one there are clean images only")
        if beta is not None and not beta >= 0:
            raise UserError(f"beta must be at least 0, not {beta}")
        self.automatic_optimization = False
        self.attack, self.regularization, self.beta = attack, regularization, beta
        self.prior, self.clip = PRIORS[prior], clip
        self.n_critic, self.authors_code = n_critic, authors_code
        self.extra_networks = [(self.network.classifier, classifier_optimizer, schedule)]
        self.critic: nn.Module | None = None
        if regularization:
            tail = nn.LogSigmoid() if authors_code.critic_out == "logsigmoid" else nn.Identity()
            self.critic = nn.Sequential(MLP(1, self.network.embedding, list(critic_hidden)), tail)
            self.extra_networks.append((self.critic, critic_optimizer, schedule))
            if authors_code.reg_optimizer == "own":
                self.extra_optimizers = [(self.network.encoder, optimizer, schedule)]
            self.clip_critic()

    def on_fit_start(self) -> None:
        if self.critic is not None:
            require_find_unused_parameters(
                self.trainer.strategy, "ERClassifier trains critic, classifier and encoder in turn"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        noise, optimizers = self.noise(index), list[Any](self.optimizers())
        encoder, classifier, *others = optimizers
        attacked = self.attacked(x, y, noise)
        batches = [x, attacked] if self.authors_code.mix_clean else [attacked]
        reg_optimizer = self.authors_code.reg_optimizer
        logs = self.update_critic(batches, noise.fork("prior"), others[0]) if self.critic is not None else {}
        if self.critic is not None and reg_optimizer == "joint":
            logs |= self.update_jointly(x, batches, y, (encoder, classifier))
        else:
            logs |= self.update_classification(x, batches, y, (encoder, classifier))
            if self.critic is not None:
                logs |= self.update_encoder(batches, others[1] if reg_optimizer == "own" else encoder)
        schedulers: Any = self.lr_schedulers() or []
        for scheduler in schedulers:
            scheduler.step()
        self.log_dict({f"train/{name}": value.detach() for name, value in logs.items()})
        return logs["loss"].detach()

    def attacked(self, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Attacked images x' (B, C, H, W), constants; the images `x` themselves without an attack."""
        if self.attack is None:
            return x
        if self.beta is not None:
            return kl_attack(self.attack, self.network, x, noise)
        if self.authors_code.attack_label == "prediction":
            with frozen_eval(self.network), torch.no_grad():
                y = self.network(x).argmax(1)
        found: Tensor = self.attack(self.network, x, y, noise)
        return found

    def update_critic(self, batches: Sequence[Tensor], noise: Noise, optimizer: Any) -> dict[str, Tensor]:
        """Do update 1 for each of the `batches`; changes the critic only."""
        assert self.critic is not None
        # The first step of a batch zeroes what the critic's last step has left. Later steps do so too, unless the
        # authors' code is reproduced: there the gradients of all steps of a batch add up.
        zero_grad = True
        for view in batches:
            with torch.no_grad(), frozen_statistics(self.network.encoder):
                codes = self.network.encoder(view)
            for _ in range(self.n_critic):
                w1 = self.critic(self.prior(noise, codes)).mean() - self.critic(codes).mean()
                self.update(-w1, [optimizer], zero_grad)
                self.clip_critic()
                zero_grad = not self.authors_code.accumulate_grads
        return {"w1_hat": w1, "code_mean": codes.mean(), "code_std": codes.std()}

    def update_classification(
        self, x: Tensor, batches: Sequence[Tensor], y: Tensor, optimizers: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Do update 2; changes encoder and classifier."""
        loss, _ = self.classification_loss(x, batches, y)
        self.update(loss, optimizers)
        return {"loss": loss}

    def update_encoder(self, batches: Sequence[Tensor], optimizer: Any) -> dict[str, Tensor]:
        """Do update 3 for each of the `batches`; changes the encoder only.

        If gradients accumulate, the encoder's gradient of update 2 is still there and is followed a second time.
        """
        for view in batches:
            score = self.score(self.network.encoder(view))
            self.update(-self.regularization * score, [optimizer], zero_grad=not self.authors_code.accumulate_grads)
        return {"code_score": score}

    def update_jointly(
        self, x: Tensor, batches: Sequence[Tensor], y: Tensor, optimizers: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Do updates 2 and 3 as one step on the sum of their losses."""
        loss, codes = self.classification_loss(x, batches, y)
        score = torch.stack([self.score(c) for c in codes]).mean()
        self.update(loss - self.regularization * score, optimizers)
        return {"loss": loss, "code_score": score}

    def classification_loss(self, x: Tensor, batches: Sequence[Tensor], y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mean cross-entropy of the `batches`, or the TRADES loss of `x` and the last batch; and their codes."""
        codes = [self.network.encoder(view) for view in batches]
        logits = [self.network.classifier(c) for c in codes]
        if self.beta is None:
            return torch.stack([F.cross_entropy(each, y) for each in logits]).mean(), codes
        clean = logits[0] if self.authors_code.mix_clean else self.network(x)
        return trades(clean, logits[-1], y, self.beta)[0], codes

    def score(self, codes: Tensor) -> Tensor:
        """Mean of D(codes), with the critic's weights as constants."""
        assert self.critic is not None
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        found: Tensor = functional_call(self.critic, weights, (codes,)).mean()
        return found

    def clip_critic(self) -> None:
        """Clip every weight and bias of the critic to [-clip, clip]."""
        assert self.critic is not None
        with torch.no_grad():
            for p in self.critic.parameters():
                p.clamp_(-self.clip, self.clip)

    def update(self, loss: Tensor, optimizers: Sequence[Any], zero_grad: bool = True) -> None:
        """Take one step of each of the `optimizers` against the gradient of `loss`, after zeroing if `zero_grad`."""
        for optimizer in optimizers if zero_grad else ():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()


def check_parts(network: Any, what: str) -> None:
    """Raise ValueError unless `network` is an `encoder` and a `classifier` of an `embedding`, and nothing more."""
    if not all(hasattr(network, name) for name in ("encoder", "classifier", "embedding")):
        raise UserError(
            f"{what} trains a network of two modules, encoder and classifier, with the embedding's size as embedding, "
            f"which {type(network).__name__} is not: use networks.ERNet"
        )
    if network.embedding < 1:
        raise UserError(f"embedding must be at least 1, not {network.embedding}")
    parts = {id(p) for part in (network.encoder, network.classifier) for p in part.parameters()}
    if any(id(p) not in parts for p in network.parameters()):
        raise UserError(f"{type(network).__name__} has weights outside encoder and classifier: they stay untrained")
