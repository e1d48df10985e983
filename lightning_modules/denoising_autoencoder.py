"""DAE and sDAE: denoisers that estimate the score of the data or of a class (MALADE, Srinivasan et al. 2021).

Srinivasan, Rohrer, Marban, Müller, Samek and Nakajima, "Robustifying Models Against Adversarial Attacks by Langevin
Dynamics", 2021.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from adversarial_lightning.attacks import Noise
from adversarial_lightning.attacks.core.checks import check_arguments
from adversarial_lightning.attacks.core.gradient import ce, input_gradient
from adversarial_lightning.attacks.core.norms import divisor
from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.checkpoints.load import check_fit, load_network
from adversarial_lightning.errors import UserError
from adversarial_lightning.lightning_modules.schedules import Schedule
from adversarial_lightning.lightning_modules.training_method import Batch, TrainingMethod
from adversarial_lightning.networks import Denoiser
from adversarial_lightning.networks.eval_mode import frozen_eval

NAMES = ("loss", "reconstruction", "cross_entropy", "acc", "supervised_share")


def reconstruction(r: Tensor, x: Tensor) -> Tensor:
    """Squared error ||r - x||^2 (B,), the SUM over the values of each image, as Eqs. 4 to 10 require."""
    return (r - x).square().flatten(1).sum(1)


def supervised_objective(
    error: Tensor, cross_entropy: Tensor, sigma2: float, ce_scale: float = 1.0, weight: Tensor | float = 1.0
) -> Tensor:
    """Mean over the batch of ``weight (error + 2 sigma2 ce_scale cross_entropy)`` (Eq. 8); all (B,).

    The factor 2 sigma2 belongs to the sum of squares in `error`: with a mean over L values it would be 2 sigma2 / L.
    """
    return (weight * (error + 2 * sigma2 * ce_scale * cross_entropy)).mean()


def class_weights(labels: Tensor) -> Tensor:
    """Class weights n / (K n_y) for the K classes y among `labels` (n,), 0 for others; their mean over images is 1."""
    counts = labels.bincount()
    return torch.where(counts > 0, len(labels) / (int((counts > 0).sum()) * counts.clamp_min(1)), 0.0)


def supervised_share(classifier: nn.Module, x: Tensor, r: Tensor, sigma2: float) -> Tensor:
    """Ratio (B,) of the length of the score's supervised part to that of the score, at the noisy `x`.

    Where the objective is minimal, ``r - x = sigma2 grad log p_sigma(x) + sigma2 E_{y ~ f(x)}[grad_r log f_y(r)]``: the
    exact form of Theorem 1 at finite sigma2, with the posterior at x and the classifier's gradient at r. The second
    term is measured.
    """
    with frozen_eval(classifier):
        x, r = x.detach().clone(), r.detach().clone()
        gradient, _ = input_gradient(classifier, r, classifier(x).softmax(1), ce)
    share: Tensor = sigma2 * gradient.flatten(1).norm(dim=1) / divisor((r - x).flatten(1).norm(dim=1))
    return share


class DenoisingAutoencoder(TrainingMethod):
    """Minimises E ||r(x + n) - x||^2 + 2 sigma2 J(r(x + n), y), n ~ N(0, sigma2 I): Eq. 8, without a classifier Eq. 4.

    J is the cross-entropy of a frozen classifier, through which the gradient flows into r. The noise is new in every
    step and the noisy image is not clipped, as the theory assumes. Held-out images are evaluated under fixed noise;
    ``val/loss`` chooses the checkpoint. The paper prints sigma^2 = 0.15 (MNIST) and 0.1 (ImageNet); a standard
    deviation may have been meant (sigma2 0.0225 and 0.01). Optimiser and epochs are not in the paper.

    Args:
        network: images -> images, such as `networks.ConvAutoencoder`.
        classifier: the classifier that the images are restored for, a checkpoint file or a network (of timm or
            torchvision: `networks.TimmClassifier`, `networks.TorchvisionClassifier`): an sDAE. None: a DAE.
        sigma2: variance of the noise, in squares of pixels of [0, 1].
        ce_scale: factor on the second term, for ablations; the theory fixes 1, and 0 trains a DAE.
        reweight: give all classes equal weight (loss: in both terms, ce_only: in the second), for unbalanced data.
        corruption: fresh noise in every epoch; or once: one noisy version of each image, clipped to [0, 1], as
            Magnet's code has it.
        optimizer: of the network's parameters.
        schedule: of the learning rate; none: constant.
    """

    def __init__(
        self,
        network: nn.Module,
        classifier: nn.Module | str | None = None,
        sigma2: float = 0.15,
        ce_scale: float = 1.0,
        reweight: Literal["none", "loss", "ce_only"] = "none",
        corruption: Literal["fresh", "once"] = "fresh",
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(Denoiser(network, sigma2), optimizer, schedule)
        self.network: Denoiser
        check_arguments(DenoisingAutoencoder, reweight=reweight, corruption=corruption)
        if not ce_scale >= 0:
            raise UserError(f"ce_scale must be at least 0, not {ce_scale}")
        if reweight == "ce_only" and classifier is None:
            raise UserError("reweight ce_only weighs the term of the classifier: give one, or reweight loss")
        self.sigma2, self.ce_scale, self.reweight, self.corruption = sigma2, ce_scale, reweight, corruption
        # In a list: the classifier is no part of what is trained, saved, or put into train mode.
        self._classifier: list[nn.Module | str] = [] if classifier is None else [classifier]
        self._weights: Tensor | None = None
        self.means = nn.ModuleDict({f"{stage}_{name}": MeanMetric() for stage in ("val", "test") for name in NAMES})

    def setup(self, stage: str) -> None:
        """Load and freeze the classifier. Raises ValueError if classifier, network and data do not fit together."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None:
            check_images_come_back(self.network, tuple(data.image_shape))
        if self._classifier:
            given = self._classifier[0]
            if isinstance(given, str) and not Path(given).is_file():
                raise UserError(
                    f"classifier must be the .ckpt file of a training run, and there is no file {given!r}; a network "
                    f"of torchvision is {{class_path: networks.TorchvisionClassifier, init_args: {{name: {given}}}}}"
                )
            classifier = load_network(given)[0] if isinstance(given, str) else given
            if data is not None:
                check_fit(classifier, data)
            self._classifier = [classifier.eval().requires_grad_(False)]
            self.network.trained_for = digest_weights(classifier)
        if self.reweight != "none":
            if data is None:
                raise UserError(f"reweight {self.reweight} counts the labels of a data module: give --data")
            self._weights = class_weights(torch.as_tensor(data.dataset("train").labels))

    def terms(self, x: Tensor, y: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Terms of Eq. 8 and correctness of the restored image, all (B,), with the restored and the noisy image.

        Without a classifier the second term and the correctness are 0.
        """
        noisy = x + self.sigma2**0.5 * noise.normal(x)
        if self.corruption == "once":
            noisy = noisy.clamp(0, 1)
        r = self(noisy)
        error, none = reconstruction(r, x), x.new_zeros(len(x))
        if not self._classifier:
            return {"noisy": noisy, "r": r, "reconstruction": error, "cross_entropy": none, "acc": none}
        logits = self.classifier(x)(r)
        right = (logits.argmax(1) == y).float()
        cross_entropy = F.cross_entropy(logits, y, reduction="none")
        return {"noisy": noisy, "r": r, "reconstruction": error, "cross_entropy": cross_entropy, "acc": right}

    def classifier(self, x: Tensor) -> nn.Module:
        """Frozen classifier, on the device of `x`."""
        (classifier,) = self._classifier
        assert isinstance(classifier, nn.Module)
        return classifier.to(x.device)

    def objective(self, terms: dict[str, Tensor], y: Tensor) -> Tensor:
        """Objective of Eq. 8, with class weights if `reweight` asks for them."""
        error, cross_entropy = terms["reconstruction"], terms["cross_entropy"]
        if self._weights is None:
            return supervised_objective(error, cross_entropy, self.sigma2, self.ce_scale)
        weight = self._weights.to(error)[y]
        if self.reweight == "ce_only":
            return supervised_objective(error, weight * cross_entropy, self.sigma2, self.ce_scale)
        return supervised_objective(error, cross_entropy, self.sigma2, self.ce_scale, weight)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y, index = batch
        noise = self.noise(index) if self.corruption == "fresh" else Noise.keyed(0, index).fork("once")
        terms = self.terms(x, y, noise)
        loss = self.objective(terms, y)
        means = {f"train/{name}": terms[name].detach().mean() for name in self.logged if name in terms}
        self.log_dict({"train/loss": loss.detach(), **means})
        return loss

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the logged means."""
        return NAMES if self._classifier else NAMES[:2]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Restored images r(x) and sample numbers of one batch."""
        keep = batch[2] >= 0
        return {"index": batch[2][keep], "restored": self(batch[0])[keep]}

    def _evaluate(self, stage: str, batch: Batch) -> None:
        """Log the means of one batch, under the same noise in every epoch and run."""
        x, y, index = batch
        terms = self.terms(x, y, Noise.keyed(0, index).fork("held out"))
        terms["loss"] = terms["reconstruction"] + 2 * self.sigma2 * self.ce_scale * terms["cross_entropy"]
        if self._classifier:
            terms["supervised_share"] = supervised_share(self.classifier(x), terms["noisy"], terms["r"], self.sigma2)
        for name in self.logged:
            metric: Any = self.means[f"{stage}_{name}"]
            metric.update(terms[name], (index >= 0).float())
            self.log(f"{stage}/{name}", metric, prog_bar=name == "loss", on_epoch=True)


def check_images_come_back(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `network` maps images of `shape` (C, H, W) to images of that shape."""
    with frozen_eval(network), torch.no_grad():
        try:
            r = network(torch.zeros(1, *shape, device=next(network.parameters()).device))
        except RuntimeError as error:
            raise UserError(f"the autoencoder cannot take images {shape}: {str(error).splitlines()[0]}") from error
    if r.shape[1:] != shape:
        raise UserError(f"the autoencoder makes {tuple(r.shape[1:])} of images {shape}: set its channels")
