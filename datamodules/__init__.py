"""The data sets: one LightningDataModule each, images in [0, 1], every sample with its number in the source.

`Digits` comes with scikit-learn and needs no download, `MNIST` reads or fetches the original files, `ImageFolder` reads
any folder of class folders or a tar archive of one. `ImageData` is what they share: held-out split, limits, sharding
without padding, an order of training images that is a function of (seed, epoch), and loaders that resume in it. A new
data set is a leaf with `num_classes`, `image_shape` and `source`; see `digits.py`.
"""

from datamodules.base import ImageData
from datamodules.digits import Digits
from datamodules.image_folder import ImageFolder
from datamodules.mnist import MNIST

__all__ = ["MNIST", "Digits", "ImageData", "ImageFolder"]
