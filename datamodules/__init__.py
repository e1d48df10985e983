"""The data sets: one LightningDataModule each, images in [0, 1], every sample with its number in the source.

`Digits` comes with scikit-learn and needs no download; `MNIST`, `FashionMNIST`, `CIFAR10`, `CIFAR100`, `STL10` and
`TinyImageNet` read or fetch the original files; `ImageNet` and `NIPS2017` read theirs; `ImageFolder` reads any folder
of class folders or an archive of one. With `synthetic` each reads a tiny generated twin in the true format instead.
`ImageData` is what they share: held-out split, limits, sharding without padding, an order and an augmentation of
training images that are functions of (seed, epoch), and loaders that resume in it. A new data set is a leaf with
`num_classes`, `image_shape` and `source`; see `digits.py`.
"""

from datamodules.base import ImageData
from datamodules.cifar import CIFAR10, CIFAR100
from datamodules.digits import Digits
from datamodules.image_folder import ImageFolder
from datamodules.imagenet import NIPS2017, ImageNet
from datamodules.mnist import MNIST, FashionMNIST
from datamodules.stl10 import STL10
from datamodules.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "NIPS2017",
    "STL10",
    "Digits",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "ImageNet",
    "TinyImageNet",
]
