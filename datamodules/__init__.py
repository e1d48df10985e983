"""Data sets: one LightningDataModule each, images in [0, 1], every sample with its number in the source.

`Digits` comes with scikit-learn and needs no download; `MNIST`, `FashionMNIST`, `CIFAR10`, `CIFAR100`, `STL10` and
`TinyImageNet` read or fetch the original files; `ImageNet` and `NIPS2017` read theirs; `ImageFolder` reads any folder
of class folders or an archive of one. With `synthetic` each reads a synthetic copy instead: a few generated images in
the format of the data set. `ImageData` is their common base: held-out split, limits, sharding without padding, order
and augmentation of training images as functions of (seed, epoch), and loaders that resume within an epoch. A new data
set is a leaf with `num_classes`, `image_shape`, `classes` (names) and `source`; see `digits.py`.
"""

from adversarial_lightning.datamodules.base import ImageData
from adversarial_lightning.datamodules.cifar import CIFAR10, CIFAR100
from adversarial_lightning.datamodules.digits import Digits
from adversarial_lightning.datamodules.image_folder import ImageFolder
from adversarial_lightning.datamodules.imagenet import NIPS2017, ImageNet
from adversarial_lightning.datamodules.mnist import MNIST, FashionMNIST
from adversarial_lightning.datamodules.stl10 import STL10
from adversarial_lightning.datamodules.tiny_imagenet import TinyImageNet

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
