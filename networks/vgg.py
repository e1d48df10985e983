"""VGG for small images (Simonyan and Zisserman 2015; with batch normalisation)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.normalize import first

PLANS: dict[int, list[int | str]] = {
    16: [*(64, 64, "M"), *(128, 128, "M"), *(256, 256, 256, "M"), *(512, 512, 512, "M"), *(512, 512, 512, "M")],
    19: [*(64, 64, "M"), *(128, 128, "M"), *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}


def convolutions(plan: list[int | str], channels: int, batch_norm: bool) -> list[nn.Module]:
    """Convolutions 3x3 with padding 1, each with BN (if asked for) and ReLU; "M" is 2x2 max-pooling."""
    layers: list[nn.Module] = []
    for entry in plan:
        if entry == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        assert isinstance(entry, int)
        norm = [nn.BatchNorm2d(entry)] if batch_norm else []
        layers += [nn.Conv2d(channels, entry, 3, padding=1), *norm, nn.ReLU()]
        channels = entry
    return layers


class VGG(nn.Module):
    """VGG with one dense layer: VGG19-BN has 20,040,522 parameters for 10 classes of 32x32 images.

    The convolutions of VGG16 or VGG19, flattened. Kaiming-normal convolutions (fan out).
    Raises ValueError for an unknown depth and for image sizes that are no multiple of 32.

    Args:
        depth: 16 or 19.
        batch_norm: BN after each convolution; without it, the deep networks rarely start to learn.
        num_classes: number of logits.
        channels: image channels.
        image_size: height and width of the images.
        hidden: widths of dense layers before the last one.
        mean: normalisation of the first layer, one value a channel; none for raw pixels.
        std: see mean.
    """

    def __init__(
        self,
        depth: int = 19,
        batch_norm: bool = True,
        num_classes: int = 10,
        channels: int = 3,
        image_size: int = 32,
        hidden: list[int] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if depth not in PLANS or image_size < 32 or image_size % 32:
            raise UserError(f"depth={depth}, image_size={image_size}: depth is 16 or 19, the size a multiple of 32")
        self.depth, self.batch_norm, self.num_classes, self.channels = depth, batch_norm, num_classes, channels
        self.image_size, self.hidden, self.mean, self.std = image_size, hidden, mean, std
        self.normalize = first(mean, std)
        self.features = nn.Sequential(*convolutions(PLANS[depth], channels, batch_norm))
        widths = [512 * (image_size // 32) ** 2, *(hidden or [])]
        self.classifier = nn.Sequential(*dense(widths), nn.Linear(widths[-1], num_classes))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(self.normalize(x)).flatten(1))
        return logits


def dense(widths: list[int], batch_norm: bool = False) -> list[nn.Module]:
    """Dense layers between these widths, each with BN (if asked for) and ReLU."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), *([nn.BatchNorm1d(n_out)] if batch_norm else []), nn.ReLU()]
    return layers
