"""Training against an adversary critic: attacks that look like real images of their target (Matyasko 2020, ch. 4)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.attacks.core.checks import check_arguments
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import Batch, Classifier, require_find_unused_parameters
from adversarial_lightning.lightning_modules.differentiable_attack import Choice, choose_target, high_confidence
from adversarial_lightning.lightning_modules.double_backward import check_logits, check_network, check_trainer
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.networks import Critic

GanLoss = Literal["non_saturating", "saturating", "hinge", "least_squares"]
Cycle = Literal["squared_l2", "l2", "l1"]


class Losses(NamedTuple):
    """Functions of the critic's logits (B,): its own loss on real and on attacked images, and the classifier's."""

    real: Callable[[Tensor], Tensor]
    attacked: Callable[[Tensor], Tensor]
    classifier: Callable[[Tensor], Tensor]


def _real(s: Tensor) -> Tensor:
    return F.softplus(-s)


# Eqs. 4.3 and 4.4 as losses to minimise; printed, 4.3 would train the critic to err and 4.4 the classifier to be found
# out. The classifier of the public code takes -log D (non-saturating).
GAN_LOSSES: dict[str, Losses] = {
    "non_saturating": Losses(_real, F.softplus, _real),
    "saturating": Losses(_real, F.softplus, lambda s: -F.softplus(s)),
    "hinge": Losses(lambda s: (1 - s).relu(), lambda s: (1 + s).relu(), lambda s: -s),
    "least_squares": Losses(lambda s: (s - 1).square(), lambda s: s.square(), lambda s: (s - 1).square()),
}


class AttackTarget(NamedTuple):
    """Of each image: the predicted class, the target, the probability the attack aims for, and the clean image's."""

    source: Tensor
    target: Tensor
    confidence: Tensor
    own: Tensor


def running_confidence(before: Tensor, logits: Tensor, momentum: float = 0.5) -> Tensor:
    """New running means (K,) of the confidence in images PREDICTED as each class; of absent classes as `before`.

    All processes of a training give the mean of their joint batch.
    """
    p, predicted = logits.detach().softmax(1).max(1)
    sums = torch.zeros_like(before).index_add(0, predicted, p.to(before))
    counts = torch.zeros_like(before).index_add(0, predicted, torch.ones_like(p).to(before))
    sums, counts = total(torch.stack([sums, counts]))
    return torch.where(counts > 0, momentum * before + (1 - momentum) * sums / counts.clamp_min(1), before)


def total(value: Tensor) -> Tensor:
    """Sum of `value`, a constant, over all processes."""
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` (B,) over the rows `where` (B,), 0 without any.

    Divides by the number of such rows in the mean process, so that the mean over processes is that of all rows.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    count = total(where.sum().to(values)) / world
    mean: Tensor = torch.where(where, values, 0).sum() / count.clamp_min(1 / world)
    return mean


def gradient_penalty(s: Tensor, x: Tensor, norm: float = 1.0) -> Tensor:
    """(||grad_x s||_2 - norm)^2 of each row, (B,), for the critic's logits `s` (B,) at `x` (WGAN-GP's, both sides)."""
    (gradient,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    return (distance(gradient, "l2") - norm).square()


def distance(d: Tensor, kind: Cycle) -> Tensor:
    """Size (B,) of each row of `d`."""
    flat = d.flatten(1)
    if kind == "squared_l2":
        return flat.square().sum(1)
    sizes: Tensor = torch.linalg.vector_norm(flat, ord=2 if kind == "l2" else 1, dim=1)
    return sizes


class AdversaryCritic(Classifier):
    """Trains a classifier whose adversarial images pass for real ones of their target, against a critic that tells.

    In every batch the critic learns to tell real images of class y from attacked ones of target t; then the classifier
    minimises CE(f(x), y) + critic_weight * (-log D_t(x')) + cycle_weight * ||A(x') - x||^2, where x' = A(x) attacks
    itself, through which it differentiates, and A(x') attacks back (eqs. 4.3 to 4.5). Only attacks that changed the
    prediction count. The critic is not part of what is evaluated.

    Two optimizers: on several processes ask for ``--trainer.strategy ddp_find_unused_parameters_true``, and note that
    Lightning counts both in `global_step`. Mind that the thesis trains 1 epoch more: the first, without a critic.

    Args:
        network: images in [0, 1] -> logits.
        critic: images and classes -> logit of "real".
        critic_weight: lambda, of the critic's term. The thesis: 0.5 for the MLP, 0.1 for LeNet-5.
        cycle_weight: of the cycle-consistency.
        gradient_penalty_weight: of the penalty on the gradient of the critic, at real and at attacked images.
        steps: of the attack.
        overshoot: of the attack.
        confidence: probability that the attack aims for: running_mean of the classifier's in real images predicted as
            the target; same as in the clean image; or a number in (1/K, 1).
        target: closest boundary of the predicted class; uniform among the other classes; or drawn from their
            probabilities.
        critic_steps: updates of the critic for each of the classifier.
        pretrain_epochs: epochs of cross-entropy alone, to begin with.
        pretrain_decay: c of c/2 ||W||^2 in these, over all weight matrices but the last; 5e-6 in the public code, the
            text has none.
        gan_loss: loss of the critic and the classifier.
        cycle: how far A(x') is from x; the text prints l2.
        gradient_norm: of the critic, which the penalty pulls to it; 0 centres the penalty at zero.
        unroll: differentiate through the iterates of the attack, too: steps times deeper graphs.
        clamp: clamp x' to [0, 1] in training, straight through; the critic could else tell it by its range.
        code_parity: as the public code, the critic judges x' as of the class predicted there, and also learns from
            attacks that failed; else as of the target.
        momentum: of the running mean.
        optimizer: of the classifier.
        schedule: of the classifier's learning rate; none: constant.
        critic_optimizer: of the critic.
        critic_schedule: of the critic's learning rate, over all batches but those of the first epochs.
    """

    confidences: Tensor

    def __init__(
        self,
        network: nn.Module,
        critic: Critic,
        critic_weight: float = 0.5,
        cycle_weight: float = 1e-2,
        gradient_penalty_weight: float = 10.0,
        steps: int = 5,
        overshoot: float = 0.05,
        confidence: float | Literal["running_mean", "same"] = "running_mean",
        target: Choice = "closest",
        critic_steps: int = 1,
        pretrain_epochs: int = 1,
        pretrain_decay: float = 0.0,
        gan_loss: GanLoss = "non_saturating",
        cycle: Cycle = "squared_l2",
        gradient_norm: float = 1.0,
        unroll: bool = False,
        clamp: bool = False,
        code_parity: bool = False,
        momentum: float = 0.5,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=5e-4, betas=(0.5, 0.999)),
        schedule: Schedule | None = None,
        critic_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.5, 0.999)),
        critic_schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        check_arguments(AdversaryCritic, confidence=confidence, target=target, gan_loss=gan_loss, cycle=cycle)
        positive = {"steps": steps, "critic_steps": critic_steps}
        weights = {"critic_weight": critic_weight, "cycle_weight": cycle_weight, "gradient_norm": gradient_norm}
        weights["gradient_penalty_weight"] = gradient_penalty_weight
        weights |= {"overshoot": overshoot, "pretrain_epochs": pretrain_epochs, "pretrain_decay": pretrain_decay}
        for least, settings in ((1, positive), (0, weights)):
            for name, value in settings.items():
                if not value >= least:
                    raise UserError(f"{name} must be at least {least}, not {value}")
        if not 0 <= momentum < 1:
            raise UserError(f"momentum must lie in [0, 1), not {momentum}")
        classes = critic.num_classes
        if not isinstance(confidence, str) and not 1 / classes < confidence < 1:
            raise UserError(f"confidence must lie between 1/K = {1 / classes:.3g} and 1, not {confidence}")
        _same_classes(critic, getattr(network, "num_classes", classes))
        self.automatic_optimization = False
        self.critic, self.extra_networks = critic, [(critic, critic_optimizer, critic_schedule)]
        self.critic_weight, self.cycle_weight = critic_weight, cycle_weight
        self.gradient_penalty_weight = gradient_penalty_weight
        self.steps, self.overshoot, self.unroll, self.clamp = steps, overshoot, unroll, clamp
        self.confidence, self.target, self.momentum = confidence, target, momentum
        self.critic_steps, self.code_parity = critic_steps, code_parity
        self.pretrain_epochs, self.pretrain_decay = pretrain_epochs, pretrain_decay
        self.gan_loss, self.cycle, self.gradient_norm = GAN_LOSSES[gan_loss], cycle, gradient_norm
        self.register_buffer("confidences", torch.ones(classes))
        self.checked = False

    def on_fit_start(self) -> None:
        check_trainer(self.trainer, "AdversaryCritic")
        require_find_unused_parameters(self.trainer.strategy, "AdversaryCritic trains classifier and critic in turn")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        check_network(self.network, "AdversaryCritic", "use a network with another normalisation")
        optimizers: Any = self.optimizers()
        classifier, critic = optimizers
        moved = [classifier.optimizer]
        if self.current_epoch < self.pretrain_epochs:
            loss, logs = self.pretraining_loss(x, y)
            self.update(classifier, loss)
        else:
            noise, logs = self.noise(index), {}
            moved.append(critic.optimizer)
            self.toggle_optimizer(critic)
            aim = self.attack_target(x, noise)
            for i in range(self.critic_steps):
                critic_loss, logs = self.critic_loss(x, y, aim, noise.fork(f"critic {i}"))
                self.update(critic, critic_loss)
            self.untoggle_optimizer(critic)
            self.toggle_optimizer(classifier)
            loss, more = self.classifier_loss(x, y, aim, noise.fork("classifier"))
            self.update(classifier, loss)
            self.untoggle_optimizer(classifier)
            logs |= more
        schedulers: Any = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            if scheduler.optimizer in moved:
                scheduler.step()
        self.log_dict({f"train/{name}": value.detach() for name, value in {"loss": loss, **logs}.items()})
        return loss.detach()

    def update(self, optimizer: Any, loss: Tensor) -> None:
        """One step of `optimizer` down `loss`."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def pretraining_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, which also gives the first running confidences."""
        logits = self.clean_logits(x)
        ce = F.cross_entropy(logits, y)
        if not self.pretrain_decay:
            return ce, {"ce": ce}
        matrices = [p for p in self.network.parameters() if p.ndim > 1][:-1]
        return ce + self.pretrain_decay / 2 * sum(p.square().sum() for p in matrices), {"ce": ce}

    def clean_logits(self, x: Tensor) -> Tensor:
        """The network's logits at the images, which the running confidences follow."""
        logits: Tensor = self(x)
        self._check(logits)
        self.confidences.copy_(running_confidence(self.confidences, logits, self.momentum))
        return logits

    def attack_target(self, x: Tensor, noise: Noise) -> AttackTarget:
        """Where the attack on each image leads: constants, from one pass over the clean images and its gradients."""
        x = x.detach().requires_grad_()
        logits = self(x)
        self._check(logits)
        p = logits.detach().softmax(1)
        own, source = p.max(1)
        target = choose_target(logits, x, source, self.target, noise.fork("target"))
        if self.confidence == "running_mean":
            confidence = self.confidences[target]
        else:
            confidence = own if self.confidence == "same" else torch.full_like(own, float(self.confidence))
        low, high = 1 / p.shape[1] + 1e-3, 1 - 1e-4  # in float32 a network may claim 1, which no attack can reach
        return AttackTarget(source, target, confidence.clamp(low, high), own.clamp(low, high))

    def critic_loss(self, x: Tensor, y: Tensor, aim: AttackTarget, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 4.3 and the gradient penalty; no graph reaches the classifier."""
        attacked = self.attack(x, aim.target, aim.confidence, create_graph=False)
        heads, won, _ = self.critic_labels(attacked, aim)
        counted = torch.ones_like(won) if self.code_parity else won
        real, attacked = x.detach().requires_grad_(), attacked.requires_grad_()
        with noise_for(self.critic, noise):
            s_real, s_attacked = self.critic(real, y), self.critic(attacked, heads)
        loss = self.gan_loss.real(s_real).mean() + mean_where(self.gan_loss.attacked(s_attacked), counted)
        logs = {
            "critic": loss,
            "critic_error_real": (s_real <= 0).float().mean(),
            "critic_error_attacked": mean_where((s_attacked > 0).float(), counted),
        }
        if self.gradient_penalty_weight:
            at_real = gradient_penalty(s_real, real, self.gradient_norm).mean()
            at_attacked = mean_where(gradient_penalty(s_attacked, attacked, self.gradient_norm), counted)
            loss = loss + self.gradient_penalty_weight * (at_real + at_attacked)
            logs |= {"gradient_penalty_real": at_real, "gradient_penalty_attacked": at_attacked}
        return loss, logs

    def classifier_loss(
        self, x: Tensor, y: Tensor, aim: AttackTarget, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Eqs. 4.4 and 4.5; a term of weight 0 is not computed."""
        loss = F.cross_entropy(self.clean_logits(x), y)
        logs = {"ce": loss, "confidence": aim.confidence.mean()}
        if not (self.critic_weight or self.cycle_weight):
            return loss, logs
        attacked = self.attack(x, aim.target, aim.confidence)
        heads, won, p = self.critic_labels(attacked, aim)
        logs |= {
            "attack_success": won.float().mean(),
            "attack_confidence": p.gather(1, aim.target[:, None]).mean(),
            "attack_length": distance(attacked.detach() - x, "l2").mean(),
        }
        if self.critic_weight:
            with noise_for(self.critic, noise):
                logs["gan"] = mean_where(self.gan_loss.classifier(self.critic(attacked, heads)), won)
            loss = loss + self.critic_weight * logs["gan"]
        if self.cycle_weight:
            back = self.attack(attacked.detach(), aim.source, aim.own)
            logs["cycle"] = mean_where(distance(back - x, self.cycle), won)
            loss = loss + self.cycle_weight * logs["cycle"]
        return loss, logs

    def attack(self, x: Tensor, target: Tensor, confidence: Tensor, create_graph: bool = True) -> Tensor:
        """`high_confidence` with this module's settings."""
        return high_confidence(
            *(self.network, x, target, confidence),
            *(self.steps, self.overshoot, self.unroll, self.clamp),
            create_graph=create_graph,
        )

    def critic_labels(self, attacked: Tensor, aim: AttackTarget) -> tuple[Tensor, Tensor, Tensor]:
        """As of which class the critic judges each image, whether its attack succeeded, and its probabilities."""
        with torch.no_grad():
            p = self(attacked).softmax(1)
        predicted = p.argmax(1)
        return predicted if self.code_parity else aim.target, predicted != aim.source, p

    def _check(self, logits: Tensor) -> None:
        if not self.checked:
            check_logits(logits, "AdversaryCritic")
            _same_classes(self.critic, logits.shape[1])
            self.checked = True


def _same_classes(critic: Critic, classes: int) -> None:
    if critic.num_classes != classes:
        raise UserError(
            f"the critic knows {critic.num_classes} classes and the network {classes}: set critic.num_classes to "
            f"{classes}"
        )
