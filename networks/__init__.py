"""What computes: plain modules, images (B, C, H, W) in [0, 1] -> logits (B, K), or images. This file is the catalogue.

Every network keeps its constructor's arguments as attributes of the same names: checkpoints record them.
"""

from networks.denoiser import ConvAutoencoder, Denoiser, MagnetAutoencoder
from networks.fc_densenet import FCDenseNet
from networks.mnist import MLP, MadryCNN, SmallCNN
from networks.normalize import Normalize

__all__ = [
    "MLP",
    "ConvAutoencoder",
    "Denoiser",
    "FCDenseNet",
    "MadryCNN",
    "MagnetAutoencoder",
    "Normalize",
    "SmallCNN",
]
