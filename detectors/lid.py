"""Local intrinsic dimensionality of every layer (Ma et al. 2018).

Ma, Li, Wang, Erfani, Wijewickrema, Schoenebeck, Song, Houle and Bailey, "Characterizing Adversarial Subspaces Using
Local Intrinsic Dimensionality", ICLR 2018.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.detectors.fitted import FittedDetector
from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.eval_mode import frozen_eval
from adversarial_lightning.networks.features import bends, outputs

CAP = 1e3  # where all neighbours are equally far


def local_dimension(distances: Tensor, k: int) -> Tensor:
    """LID of each row of `distances` (..., n) from its k smallest: -1 / mean_i log(r_i / r_k), (...); at most 1e3.

    Entries that are infinite are no neighbours. Scaling the distances changes nothing.
    """
    nearest, finfo = distances.topk(k, dim=-1, largest=False, sorted=True).values, torch.finfo(distances.dtype)
    nearest = nearest.maximum((finfo.eps * nearest[..., -1:].detach()).clamp_min(finfo.tiny))  # of equal points
    return (-1 / (nearest / nearest[..., -1:]).log().mean(-1).clamp_max(-1e-9)).clamp_max(CAP)


class LID(FittedDetector):
    """LID of the input, of every activation and pooling and of the logits, among minibatches of training images.

    Departures: their references are the clean images of the query's own minibatch, so an adversarial image meets its
    own original there, which deployment does not have, and the nearest neighbour is dropped (`among` does that: the gap
    is the leak). Here they are `batches` fixed minibatches, of which the mean is taken, so that a score does not
    depend on the batch; a query is only left out of a minibatch that holds it. Set I alone scales the features, and the
    regression has the fixed C of `FittedDetector`. k 20 among 100 images is the command of their README; their function
    has 10 by default. The k nearest are not smooth where two change places; the gradient is that of the present ones.

    Args:
        classifier: images -> logits; evaluate.py hands over the defended model.
        k: neighbours.
        references: images of a minibatch.
        batches: minibatches.
        layers: names of modules; none: all activations and poolings.
        fitted: the file that evaluate.py fit-detector wrote.
    """

    images: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        k: int = 20,
        references: int = 100,
        batches: int = 5,
        layers: list[str] | None = None,
        fitted: str | None = None,
    ) -> None:
        super().__init__(classifier)
        if not 2 <= k < references or batches < 1:
            raise UserError(f"k ({k}) must lie between 2 and references ({references}) - 1, batches be at least 1")
        self.k, self.references, self.batches, self.layers = k, references, batches, layers
        self.register_buffer("images", torch.empty(0))
        self._activations: list[Tensor] = []  # of the references; found again where the images have moved
        self.load(fitted)

    def activations(self, x: Tensor) -> list[Tensor]:
        """Activations of the input, the layers and the logits, (B, D) each."""
        names = bends(self.classifier) if self.layers is None else self.layers
        logits, found = outputs(self.classifier, x, names)
        return [x.flatten(1), *(found[name].flatten(1) for name in names), logits]

    def fit_reference(self, images: Any, batch_size: int = 128) -> None:
        """Choose the reference minibatches; raises ValueError where there are too few images."""
        n = self.references * self.batches
        if len(images) < n:
            raise UserError(f"{self.batches} minibatches of {self.references} need {n} images, not {len(images)}")
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]
        self.images = images.__getitems__(chosen.tolist())[0].to(self.weight.device)
        self._activations = []

    def features(self, x: Tensor) -> Tensor:
        known = self._known()
        layers = self.activations(x)
        flat, own = x.flatten(1), self.images.flatten(1)
        itself = (flat[:, None] == own).all(2)
        found = []
        for a, b in zip(layers, known, strict=True):
            distances = torch.cdist(a, b).masked_fill(itself, torch.inf)
            found.append(local_dimension(distances.unflatten(1, (self.batches, -1)), self.k).mean(1))
        return torch.stack(found, 1)

    def among(self, x: Tensor, clean: Tensor) -> Tensor:
        """Features (B, F) as in Ma et al.'s code: references are `clean` (n, C, H, W), the nearest one is dropped."""
        distances = [
            torch.cdist(a, b).sort(1).values[:, 1:]
            for a, b in zip(self.activations(x), self.activations(clean), strict=True)
        ]
        return torch.stack([local_dimension(d, self.k) for d in distances], 1)

    def _known(self) -> list[Tensor]:
        found = self._activations
        if not found or (found[0].dtype, found[0].device) != (self.images.dtype, self.images.device):
            with frozen_eval(self), torch.no_grad():
                parts = [self.activations(x) for x in self.images.split(self.references)]
            self._activations = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        return self._activations
