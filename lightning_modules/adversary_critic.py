"""Training against an adversary critic: attacked images that look real (Matyasko 2020, chapter 4).

Matyasko, "Towards Deep Neural Networks Robust to Adversarial Examples", doctoral thesis, Nanyang Technological
University, 2020.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.attacks.core.checks import check_arguments
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.base import Classifier
from adversarial_lightning.lightning_modules.critic_losses import (
    GAN_LOSSES,
    Cycle,
    distance,
    gradient_penalty,
    mean_where,
    running_confidence,
)
from adversarial_lightning.lightning_modules.critic_settings import (
    AttackSettings,
    CriticSettings,
    Pretraining,
    at_least,
)
from adversarial_lightning.lightning_modules.differentiable_attack import choose_target, high_confidence
from adversarial_lightning.lightning_modules.double_backward import check_logits, check_network, check_trainer
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.lightning_modules.training_method import Batch, require_find_unused_parameters
from adversarial_lightning.networks import Critic

ATTACK, CRITIC, PRETRAINING = AttackSettings(), CriticSettings(), Pretraining()


class AttackTarget(NamedTuple):
    """Aim of the attack on each image, all (B,)."""

    source: Tensor  # predicted class of the clean image
    target: Tensor  # class that the attack shall reach
    confidence: Tensor  # probability of the target at which the attack stops
    own: Tensor  # probability of the source at the clean image: where the attack back stops


class AdversaryCritic(Classifier):
    """Trains a classifier and a critic in turn, so that attacked images resemble real images of their target.

    In every batch the critic learns to distinguish real images of class y from attacked images of target t. Then the
    classifier minimises CE(f(x), y) + critic_weight * (-log D_t(x')) + cycle_weight * ||A(x') - x||^2. Here x' = A(x)
    is an attack on the classifier, through which training differentiates, and A(x') attacks x' back to its first class
    (eqs. 4.3 to 4.5). Only attacks that changed the prediction count. Evaluation does not use the critic.

    There are two optimizers: on several processes use ``--trainer.strategy ddp_find_unused_parameters_true``, and note
    that Lightning counts the steps of both in `global_step`. The thesis counts its epochs without the pre-training.

    Args:
        network: images in [0, 1] -> logits.
        critic: images and classes -> logit of "real".
        critic_weight: lambda, of the critic's term. The thesis: 0.5 for the MLP, 0.1 for LeNet-5.
        cycle_weight: weight of the cycle consistency.
        cycle: distance of A(x') from x; the text prints l2.
        code_parity: do as the public code: the critic judges x' as an image of the class predicted for it, and also
            learns from attacks that failed. Without it, x' is judged as an image of the target, successful ones only.
        attack_settings: of the attack A.
        critic_settings: of the critic's training.
        pretraining: first epochs, without the critic.
        optimizer: of the classifier.
        schedule: of the classifier's learning rate; none: constant.
        critic_optimizer: of the critic.
        critic_schedule: of the critic's learning rate, over all batches after the pre-training.
    """

    confidences: Tensor

    def __init__(
        self,
        network: nn.Module,
        critic: Critic,
        critic_weight: float = 0.5,
        cycle_weight: float = 1e-2,
        cycle: Cycle = "squared_l2",
        code_parity: bool = False,
        attack_settings: AttackSettings = ATTACK,
        critic_settings: CriticSettings = CRITIC,
        pretraining: Pretraining = PRETRAINING,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=5e-4, betas=(0.5, 0.999)),
        schedule: Schedule | None = None,
        critic_optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.5, 0.999)),
        critic_schedule: Schedule | None = None,
    ) -> None:
        super().__init__(network, optimizer, schedule)
        check_arguments(AdversaryCritic, cycle=cycle)
        at_least(0, critic_weight=critic_weight, cycle_weight=cycle_weight)
        classes, confidence = critic.num_classes, attack_settings.confidence
        if not isinstance(confidence, str) and not 1 / classes < confidence < 1:
            raise UserError(f"confidence must lie between 1/K = {1 / classes:.3g} and 1, not {confidence}")
        _same_classes(critic, getattr(network, "num_classes", classes))
        self.automatic_optimization = False
        self.critic, self.extra_networks = critic, [(critic, critic_optimizer, critic_schedule)]
        self.critic_weight, self.cycle_weight = critic_weight, cycle_weight
        self.cycle, self.code_parity = cycle, code_parity
        self.attack_settings, self.critic_settings, self.pretraining = attack_settings, critic_settings, pretraining
        self.gan_loss = GAN_LOSSES[critic_settings.gan_loss]
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
        if self.current_epoch < self.pretraining.epochs:
            loss, logs = self.pretraining_loss(x, y)
            self.update(classifier, loss)
        else:
            noise, logs = self.noise(index), {}
            moved.append(critic.optimizer)
            self.toggle_optimizer(critic)
            aim = self.attack_target(x, noise)
            for i in range(self.critic_settings.steps):
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
        """Take one step of `optimizer` against the gradient of `loss`."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def pretraining_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with weight decay; its forward pass also starts the running confidences."""
        logits = self.clean_logits(x)
        ce = F.cross_entropy(logits, y)
        if not self.pretraining.decay:
            return ce, {"ce": ce}
        matrices = [p for p in self.network.parameters() if p.ndim > 1][:-1]
        return ce + self.pretraining.decay / 2 * sum(p.square().sum() for p in matrices), {"ce": ce}

    def clean_logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) at clean images `x`; updates the running confidences."""
        logits: Tensor = self(x)
        self._check(logits)
        self.confidences.copy_(running_confidence(self.confidences, logits, self.attack_settings.momentum))
        return logits

    def attack_target(self, x: Tensor, noise: Noise) -> AttackTarget:
        """Target and confidence of the attack on each image, constants, from one pass over the clean images."""
        wanted = self.attack_settings.confidence
        x = x.detach().requires_grad_()
        logits = self(x)
        self._check(logits)
        p = logits.detach().softmax(1)
        own, source = p.max(1)
        target = choose_target(logits, x, source, self.attack_settings.target, noise.fork("target"))
        if wanted == "running_mean":
            confidence = self.confidences[target]
        else:
            confidence = own if wanted == "same" else torch.full_like(own, float(wanted))
        low, high = 1 / p.shape[1] + 1e-3, 1 - 1e-4  # in float32 a network may claim 1, which no attack can reach
        return AttackTarget(source, target, confidence.clamp(low, high), own.clamp(low, high))

    def critic_loss(self, x: Tensor, y: Tensor, aim: AttackTarget, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 4.3 and the gradient penalty; the classifier gets no gradient."""
        weight, norm = self.critic_settings.gradient_penalty_weight, self.critic_settings.gradient_norm
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
        if weight:
            at_real = gradient_penalty(s_real, real, norm).mean()
            at_attacked = mean_where(gradient_penalty(s_attacked, attacked, norm), counted)
            loss = loss + weight * (at_real + at_attacked)
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
        """Attacked images (B, C, H, W): `high_confidence` with the `attack_settings`."""
        settings = self.attack_settings
        return high_confidence(
            self.network,
            x,
            target,
            confidence,
            steps=settings.steps,
            overshoot=settings.overshoot,
            unroll=settings.unroll,
            clamp=settings.clamp,
            create_graph=create_graph,
        )

    def critic_labels(self, attacked: Tensor, aim: AttackTarget) -> tuple[Tensor, Tensor, Tensor]:
        """Class (B,) that the critic judges each image as, success (B,) of its attack, and probabilities (B, K)."""
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
