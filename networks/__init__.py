"""Networks: plain modules, images (B, C, H, W) in [0, 1] -> logits (B, K) or images. This file is the catalogue.

Every network keeps its constructor's arguments as attributes of the same names, because checkpoints record them. A
critic takes classes as well as images.
"""

from adversarial_lightning.networks.critic import Critic
from adversarial_lightning.networks.denoiser import ConvAutoencoder, Denoiser, MagnetAutoencoder
from adversarial_lightning.networks.er_classifier import ERBaseline, ERNet
from adversarial_lightning.networks.fc_densenet import FCDenseNet
from adversarial_lightning.networks.foreign_weights import load_weights
from adversarial_lightning.networks.mnist import MLP, LeNet5, MadryCNN, SmallCNN
from adversarial_lightning.networks.nin import NIN
from adversarial_lightning.networks.noisy import NoisyConvolutions
from adversarial_lightning.networks.normalize import Normalize
from adversarial_lightning.networks.pretrained import TimmClassifier, TorchvisionClassifier
from adversarial_lightning.networks.resnet import ResNet, ResNet18
from adversarial_lightning.networks.vgg import VGG
from adversarial_lightning.networks.whiten import Whiten
from adversarial_lightning.networks.wide_resnet import WideResNet

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
