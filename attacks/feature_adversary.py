"""Feature adversary: imitate another image's inner representation (Sabour et al. 2016)."""

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
    """Flattened output (B, F) of the module of `model` that is called `layer`."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.outputs: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator["Representation"]:
        """Record the layer's output in this context; raises ValueError if the model has no layer of that name."""
        names = dict(self.model.named_modules())
        # Wrappers, such as a counter of queries, put a prefix in front of the names.
        ends = [name for name in names if name.endswith(f".{self.layer}")] if self.layer else []
        if self.layer not in names and len(ends) != 1:
            raise UserError(f"layer {self.layer!r} is no module of the model; it has {', '.join(filter(None, names))}")
        module = names[self.layer] if self.layer in names else names[ends[0]]

        def keep(_: nn.Module, args: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise UserError(f"layer {self.layer!r} returns a {type(output).__name__}, not a tensor")
            self.outputs.append(output.flatten(1).clone())  # an in-place ReLU after the layer would change it

        handle = module.register_forward_hook(keep)
        try:
            yield self
        finally:
            handle.remove()
            self.outputs.clear()

    def forward(self, x: Tensor) -> Tensor:
        self.model(x)
        if not self.outputs:
            raise UserError(f"layer {self.layer!r} is not used in the model's forward pass")
        features = self.outputs[-1]
        self.outputs.clear()
        if len(features) != len(x):
            raise UserError(f"layer {self.layer!r} returns {len(features)} rows for {len(x)} images")
        return features.to(x.dtype)


@dataclass(frozen=True)
class FeatureAdversary(Attack):
    """Move the representation at a layer to that of a guide image, or, without guides, away from its own.

    Minimises ``||phi(z) - phi(guide)||^2`` in the ball (Sabour et al., eqs. 1 and 2), or maximises
    ``||phi(z) - phi(x)||^2``, the attack on codes. The guide of an image is the one with the nearest representation
    among the guides of other classes (if targeted, of the class `y`).

    Departures from the paper: projected steepest steps instead of L-BFGS-B, and any norm. Without guides the attack
    ignores the label and may increase the margin of the correct class; ``Restarts`` keeps the best of several runs.

    Args:
        layer: path of the module whose output is the representation, as in ``named_modules``, such as
            ``features.3``; the empty path is the model itself (logits).
        guides: a safetensors file with ``images`` (G, ...) in [0, 1] and ``labels`` (G,), each costing one forward;
            none: move away from x.
        norm: norm of the ball; the paper uses linf.
        eps: radius, in pixels of [0, 1].
        steps: number of gradient steps.
        step_size: length of a step, in pixels of [0, 1]; none: 2.5 eps / steps.
        random_start: start at a random point of the ball instead of the image; needed without guides, because the
            gradient of the distance to x is zero at x.
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
        with Representation(model, self.layer).recording() as phi:
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
        """Representation (B, F) of each row's guide, to be reached, or of the row itself, to be left."""
        own: Tensor = phi(x)
        if self.guides is None:
            return own
        if y.ndim != 1:
            raise UserError("guides are chosen by labels (B,), not by target probabilities")
        file = load_file(self.guides)
        images, labels = file["images"].to(x), file["labels"].to(y)
        check_images(images)
        goal, nearest = own, torch.full_like(own[:, 0], torch.inf)
        # Each row sees each guide with the row's own noise, so that the choice does not depend on the batch.
        for image, label in zip(images, labels, strict=True):
            theirs = phi(image.expand_as(x))
            # A distance that is NaN counts as the largest number, so that any guide can be chosen.
            square = (theirs - own).square().sum(1).nan_to_num(torch.finfo(own.dtype).max)
            square = square.masked_fill((y == label) != self.targeted, torch.inf)
            goal = torch.where((square < nearest)[:, None], theirs, goal)
            nearest = torch.minimum(square, nearest)
        if not nearest.isfinite().all():
            missing = int(y[~nearest.isfinite()][0])
            raise UserError(f"guides has no image {'of' if self.targeted else 'outside'} class {missing}")
        return goal
