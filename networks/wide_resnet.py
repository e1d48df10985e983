"""Wide residual networks (Zagoruyko and Komodakis 2016), in the form and with the names of the TRADES repository."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.normalize import first


class WideResNet(nn.Module):
    """WRN-depth-width for 32x32 images: WRN-34-10 has 46,160,474 parameters, WRN-28-10 36,479,194.

    Three groups of (depth - 4) / 6 pre-activation blocks, 16, 32, 64 times `width` channels; where widths differ, a 1x1
    convolution of the normalised input is the shortcut. The TRADES class also holds an unused copy of its first group
    (`sub_block1`, 2,102,112 parameters); `load_weights` leaves that out. Convolutions start at N(0, 2 / (k k out)).
    Larger images work too: the last pooling is global. Raises ValueError for a depth that is not 6 n + 4.

    Args:
        depth: number of layers, 6 n + 4.
        width: factor on the channels of a residual network.
        num_classes: number of logits.
        channels: image channels.
        dropout: probability inside each block.
        mean: normalisation of the first layer, one value a channel; none for raw pixels, as in TRADES.
        std: see mean.
    """

    def __init__(
        self,
        depth: int = 34,
        width: int = 10,
        num_classes: int = 10,
        channels: int = 3,
        dropout: float = 0.0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"depth={depth} is no wide residual network's: it is 6 n + 4, for example 16, 28 or 34")
        self.depth, self.width, self.num_classes, self.channels = depth, width, num_classes, channels
        self.dropout, self.mean, self.std = dropout, mean, std
        blocks, widths = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.normalize = first(mean, std)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = Group(blocks, widths[0], widths[1], 1, dropout)
        self.block2 = Group(blocks, widths[1], widths[2], 2, dropout)
        self.block3 = Group(blocks, widths[2], widths[3], 2, dropout)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.zeros_(self.fc.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(self.normalize(x)))))
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean((2, 3)))
        return logits


class Group(nn.Module):
    """Group of `count` blocks, the first of which changes width and size."""

    def __init__(self, count: int, n_in: int, n_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        sizes = [(n_in, stride), *[(n_out, 1)] * (count - 1)]
        self.layer = nn.Sequential(*(Block(n, n_out, s, dropout) for n, s in sizes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Block(nn.Module):
    """Pre-activation block: BN, ReLU, convolution, twice; a shortcut that changes width starts after the first ReLU."""

    def __init__(self, n_in: int, n_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.convShortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if n_in != n_out else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = shortcut + self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return out
