"""FC-DenseNet, the Tiramisu (Jegou et al. 2017): dense blocks down to 1/32 of the resolution and up again."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.denoiser import check_strides

# Growth, layers of the five blocks down, of the one at the bottom, and of the five up.
VARIANTS = {
    56: (12, [4] * 5, 4, [4] * 5),
    67: (16, [5] * 5, 5, [5] * 5),
    103: (16, [4, 5, 7, 10, 12], 15, [12, 10, 7, 5, 4]),
}


@contextmanager
def frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Context in which batch norms of `block` normalise by the batch, but do not update their running statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    try:
        for m in norms:
            m.momentum = 0.0
            m.num_batches_tracked = m.num_batches_tracked.clone()  # type: ignore[union-attr]
        yield
    finally:
        for m, (momentum, counted) in zip(norms, before, strict=True):
            m.momentum, m.num_batches_tracked = momentum, counted


class DenseBlock(nn.Module):
    """Dense block of layers (norm, ReLU, 3x3, dropout) that each take all maps before them; returns the new maps."""

    def __init__(self, channels: int, growth: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(channels + i * growth), nn.ReLU()),
                *(nn.Conv2d(channels + i * growth, growth, 3, padding=1), nn.Dropout2d(dropout)),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps[1:], 1)


class FCDenseNet(nn.Module):
    """FC-DenseNet56, 67 or 103 with a linear head, images -> images; MALADE's autoencoder for ImageNet.

    Jegou et al., "The One Hundred Layers Tiramisu", 2017; the head gives image channels, without softmax. MALADE
    (Srinivasan et al. 2021) says neither which variant nor the dropout.

    Args:
        channels: image channels.
        variant: number of layers.
        dropout: probability that a map is dropped after each convolution; Jegou et al. use 0.2 for segmentation.
        recompute: keep only the inputs of the dense blocks during training, and recompute the rest backwards: less
            memory for a third more time. Same gradients, same statistics.
    """

    def __init__(
        self, channels: int = 3, variant: Literal[56, 67, 103] = 56, dropout: float = 0.0, recompute: bool = True
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise UserError(f"variant must be one of {', '.join(map(str, VARIANTS))}, not {variant}")
        self.channels, self.variant, self.dropout, self.recompute = channels, variant, dropout, recompute
        growth, down, bottom, up = VARIANTS[variant]
        self.first = nn.Conv2d(channels, 48, 3, padding=1)
        self.down_blocks, self.downs, skips, n = nn.ModuleList(), nn.ModuleList(), [], 48
        for layers in down:
            self.down_blocks.append(DenseBlock(n, growth, layers, dropout))
            n += growth * layers
            skips.append(n)
            norm = nn.BatchNorm2d(n)
            self.downs.append(
                nn.Sequential(norm, nn.ReLU(), nn.Conv2d(n, n, 1), nn.Dropout2d(dropout), nn.MaxPool2d(2))
            )
        self.bottom = DenseBlock(n, growth, bottom, dropout)
        new = growth * bottom
        self.ups, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for layers, skip in zip(up, reversed(skips), strict=True):
            self.ups.append(nn.ConvTranspose2d(new, new, 3, stride=2, padding=1, output_padding=1))
            n = new + skip
            self.up_blocks.append(DenseBlock(n, growth, layers, dropout))
            new = growth * layers
        self.head = nn.Conv2d(n + new, channels, 1)
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(m.weight, nonlinearity="relu")
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_strides(self, x, 32)
        z, skips = self.first(x), []
        for block, down in zip(self.down_blocks, self.downs, strict=True):
            z = torch.cat([z, self.block(block, z)], 1)
            skips.append(z)
            z = down(z)
        new = self.block(self.bottom, z)
        for up, block in zip(self.ups, self.up_blocks, strict=True):
            z = torch.cat([up(new), skips.pop()], 1)
            new = self.block(block, z)
        r: Tensor = self.head(torch.cat([z, new], 1))
        return r

    def block(self, block: nn.Module, z: Tensor) -> Tensor:
        """New maps of one dense block, recomputed in the backward pass if that saves memory."""
        if not (self.recompute and torch.is_grad_enabled()):
            maps: Tensor = block(z)
            return maps

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), frozen_statistics(block)

        maps = checkpoint(block, z, use_reentrant=False, context_fn=contexts)
        return maps
