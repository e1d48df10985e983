"""Feature adversary: an image whose inner representation is another's (Sabour, Cao, Faghri and Fleet 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack
from adversarial_lightning.attacks.core.checks import at_least, check_choices, check_images
from adversarial_lightning.attacks.core.gradient import input_gradient
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, NormName
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError


class Representation(nn.Module):
    """Images -> the flattened output (B, F) of the module of `model` called `layer`."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.seen: list[Tensor] = []

    @contextmanager
    def listening(self) -> Iterator["Representation"]:
        """Listen to the layer in this context; raises ValueError where the model has none of that name."""
        names = dict(self.model.named_modules())
        # Wrappers, such as a counter of queries, put a prefix in front of the names.
        ends = [name for name in names if name.endswith(f".{self.layer}")] if self.layer else []
        if self.layer not in names and len(ends) != 1:
            raise UserError(f"layer {self.layer!r} is no module of the model; it has {', '.join(filter(None, names))}")
        module = names[self.layer] if self.layer in names else names[ends[0]]

        def keep(_: nn.Module, args: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise UserError(f"layer {self.layer!r} returns a {type(output).__name__}, not a tensor")
            self.seen.append(output.flatten(1).clone())  # a ReLU in place behind the layer would change it

        handle = module.register_forward_hook(keep)
        try:
            yield self
        finally:
            handle.remove()
            self.seen.clear()

    def forward(self, x: Tensor) -> Tensor:
        self.model(x)
        if not self.seen:
            raise UserError(f"layer {self.layer!r} is not used in the model's forward pass")
        features = self.seen[-1]
        self.seen.clear()
        if len(features) != len(x):
            raise UserError(f"layer {self.layer!r} returns {len(features)} rows for {len(x)} images")
        return features


@dataclass(frozen=True)
class FeatureAdversary(Attack):
    """Moves the representation at a named layer to that of a guide image, or, without guides, away from its own.

    Minimises ``||phi(z) - phi(guide)||^2`` in the ball (Sabour et al., eqs. 1 and 2), or maximises
    ``||phi(z) - phi(x)||^2``, the attack on codes. An image's guide is, among the guides of other classes (of the class
    `y`, if targeted), the one with the nearest representation.

    Departures from the paper: projected steepest steps instead of L-BFGS-B, and any norm. Moving away knows no label
    and may well make the prediction surer: run it in ``Restarts``, which keeps the largest margin.

    Args:
        layer: path of the module whose output is the representation, as in ``named_modules``, such as
            ``features.3``; the empty path is the model itself (logits).
        guides: a safetensors file with ``images`` (G, ...) in [0, 1] and ``labels`` (G,), each costing one forward;
            none: away from x.
        norm: norm of the ball; the paper's is linf.
        eps: radius, in pixels of [0, 1].
        steps: number of gradient steps.
        step_size: length of a step, in pixels of [0, 1]; none: 2.5 eps / steps.
        random_start: start at a random point of the ball instead of the image; needed without guides, because the
            gradient of the distance to itself is zero at x.
        targeted: guides of the class `y` instead of guides of other classes.
        eot_samples: gradients averaged in each step (EOT), for stochastic models.
    """

    layer: str = ""
    guides: str | None = None
    norm: NormName = "linf"
    eps: Radius = 10 / 255
    steps: int = 100
    step_size: Radius | None = None
    random_start: bool = True
    targeted: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps, step_size=self.step_size)
        at_least(1, steps=self.steps, eot_samples=self.eot_samples)
        if self.guides is None and self.targeted:
            raise UserError("targeted needs guides: moving away from one's own representation has no target")
        if self.guides is None and not self.random_start:
            raise UserError("random_start is needed without guides: the gradient is zero at the image itself")
        if self.guides is not None and not Path(self.guides).is_file():
            raise UserError(f"guides: there is no file {self.guides}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm = NORMS[self.norm]
        step_size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        with Representation(model, self.layer).listening() as phi:
            goal = self.goal(phi, x, y)
            sign = 1.0 if self.guides is None else -1.0

            def closeness(features: Tensor, _: Tensor) -> Tensor:
                return sign * (features - goal).square().sum(1)

            z = (x + norm.random(x, self.eps, noise)).clamp_(0, 1) if self.random_start else x
            for _ in range(self.steps):
                gradient, _ = input_gradient(phi, z, y, closeness, self.eot_samples)
                z = z + step_size * norm.steepest(gradient, z)
                z = (x + norm.project(z - x, self.eps)).clamp_(0, 1)
        return z

    @torch.no_grad()
    def goal(self, phi: Representation, x: Tensor, y: Tensor) -> Tensor:
        """The representation (B, F) that each row shall have, or leave: that of its guide, or its own."""
        own: Tensor = phi(x)
        if self.guides is None:
            return own
        if y.ndim != 1:
            raise UserError("guides are chosen by labels (B,), not by target probabilities")
        file = load_file(self.guides)
        images, labels = file["images"].to(x), file["labels"].to(y)
        check_images(images)
        goal, nearest = own, torch.full_like(own[:, 0], torch.inf)
        # Each guide is seen by every row with that row's own noise, so that a row's guide is its own affair.
        for image, label in zip(images, labels, strict=True):
            theirs = phi(image.expand_as(x))
            square = (
                (theirs - own).square().sum(1).nan_to_num(torch.finfo(own.dtype).max)
            )  # no number: any guide will do
            square = square.masked_fill((y == label) != self.targeted, torch.inf)
            goal = torch.where((square < nearest)[:, None], theirs, goal)
            nearest = torch.minimum(square, nearest)
        if not nearest.isfinite().all():
            lonely = int(y[~nearest.isfinite()][0])
            raise UserError(f"guides has no image {'of' if self.targeted else 'outside'} class {lonely}")
        return goal
