"""What computes: plain modules, images (B, C, H, W) in [0, 1] -> logits (B, K), or images. This file is the catalogue.

Every network keeps its constructor's arguments as attributes of the same names: checkpoints record them. A critic
takes classes as well as images.
"""

from networks.critic import Critic
from networks.denoiser import ConvAutoencoder, Denoiser, MagnetAutoencoder
from networks.er_classifier import ERBaseline, ERNet
from networks.fc_densenet import FCDenseNet
from networks.mnist import MLP, LeNet5, MadryCNN, SmallCNN
from networks.nin import NIN
from networks.noisy import NoisyConvolutions
from networks.normalize import Normalize
from networks.pretrained import TimmClassifier, TorchvisionClassifier
from networks.resnet import ResNet, ResNet18
from networks.vgg import VGG
from networks.weights import load_weights
from networks.whiten import Whiten
from networks.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "NIN",
    "VGG",
    "ConvAutoencoder",
    "Critic",
    "Denoiser",
    "ERBaseline",
    "ERNet",
    "FCDenseNet",
    "LeNet5",
    "MadryCNN",
    "MagnetAutoencoder",
    "NoisyConvolutions",
    "Normalize",
    "ResNet",
    "ResNet18",
    "SmallCNN",
    "TimmClassifier",
    "TorchvisionClassifier",
    "Whiten",
    "WideResNet",
    "load_weights",
]
