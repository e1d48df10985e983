"""Residual networks for small images (He et al. 2016a): ResNet-20 and -110, ResNet-18, PreActResNet-18."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.normalize import first


class ResNet(nn.Module):
    """Residual network for CIFAR: ResNet-20 has 272,474 parameters, ResNet-110 1,730,714.

    Three stages of (depth - 2) / 6 blocks with 16, 32, 64 channels, strides 1, 2, 2; the shortcut that changes shape is
    a 1x1 convolution with BN, as ATENT's (He et al. pad with zeros). Raises ValueError for a depth that is not 6 n + 2.

    Args:
        depth: number of layers, 6 n + 2.
        num_classes: number of logits.
        channels: image channels.
        mean: normalisation of the first layer, one value a channel; none for raw pixels.
        std: see mean.
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        channels: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"depth={depth} is no CIFAR residual network's: it is 6 n + 2, for example 20 or 110")
        self.depth, self.num_classes, self.channels, self.mean, self.std = depth, num_classes, channels, mean, std
        count = (depth - 2) // 6
        self.normalize = first(mean, std)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(n, 16, s) for n, s in _sizes(count, 16, 16, 1)))
        self.layer2 = nn.Sequential(*(BasicBlock(n, 32, s) for n, s in _sizes(count, 16, 32, 2)))
        self.layer3 = nn.Sequential(*(BasicBlock(n, 64, s) for n, s in _sizes(count, 32, 64, 2)))
        self.linear = nn.Linear(64, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalize(x))))
        logits: Tensor = self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
        return logits


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 first layer for small images: 11,173,962 parameters, 11,172,170 with pre-activation.

    Four stages of two blocks, 64 .. 512 channels, strides 1, 2, 2, 2. `preactivation` (He et al. 2016b) is the
    PreActResNet-18 of Rice et al. 2020, with BN and ReLU before the pooling. ATENT's code uses plain blocks
    for the network that its paper calls ResNet-20.

    Args:
        preactivation: BN and ReLU before the convolutions.
        num_classes: number of logits.
        channels: image channels.
        mean: normalisation of the first layer, one value a channel; none for raw pixels.
        std: see mean.
    """

    def __init__(
        self,
        preactivation: bool = True,
        num_classes: int = 10,
        channels: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.preactivation, self.num_classes, self.channels = preactivation, num_classes, channels
        self.mean, self.std = mean, std
        block = PreActBlock if preactivation else BasicBlock
        self.normalize = first(mean, std)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        if not preactivation:
            self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(*(block(n, 64, s) for n, s in _sizes(2, 64, 64, 1)))
        self.layer2 = nn.Sequential(*(block(n, 128, s) for n, s in _sizes(2, 64, 128, 2)))
        self.layer3 = nn.Sequential(*(block(n, 256, s) for n, s in _sizes(2, 128, 256, 2)))
        self.layer4 = nn.Sequential(*(block(n, 512, s) for n, s in _sizes(2, 256, 512, 2)))
        if preactivation:
            self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.normalize(x))
        x = x if self.preactivation else F.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.relu(self.bn(x)) if self.preactivation else x
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Residual block: convolution, BN, ReLU, convolution, BN; ReLU after the sum."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        changes = [nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)]
        self.shortcut = nn.Sequential(*(changes if n_in != n_out or stride != 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """Pre-activation block: BN, ReLU, convolution, twice; a shortcut that changes shape starts after the first ReLU."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        changes = n_in != n_out or stride != 1
        self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out


def _sizes(count: int, n_in: int, n_out: int, stride: int) -> list[tuple[int, int]]:
    """Input channels and stride of each block of a stage."""
    return [(n_in, stride), *[(n_out, 1)] * (count - 1)]


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    network.to(memory_format=torch.channels_last)
