"""Networks of ER-Classifier (Li et al. 2021): encoder and classifier (Table 16), and plain ones (Table 15).

Li, Min, Lee, Yu, Kruus, Wang and Hsieh, "Towards Robustness of Deep Neural Networks via Regularization", ICCV 2021.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.normalize import first
from adversarial_lightning.networks.vgg import PLANS, convolutions, dense

Data = Literal["mnist", "cifar10", "stl10", "tiny_imagenet"]
_EMBEDDING = {"mnist": 4, "cifar10": 16, "stl10": 16, "tiny_imagenet": 20}  # Table 10
_CLASSES = {"mnist": 10, "cifar10": 10, "stl10": 10, "tiny_imagenet": 200}
_CHANNELS = {"mnist": 1, "cifar10": 3, "stl10": 3, "tiny_imagenet": 3}


class ERNet(nn.Module):
    """Network of two parts (Table 16): `encoder`, images -> embedding (B, k); `classifier`, embedding -> logits (B, K).

    mnist, stl10: strided 4x4 convolutions of `width` times 1, 2, 4 ... channels without bias, BN from the second on
    (STL10's last is 3x3), input scaled to [-1, 1]. cifar10: the convolutions of VGG19 with ImageNet's normalisation,
    Kaiming normal (fan out), because the paper's initial weights are not published. tiny_imagenet: those of VGG16 with
    BN, average pooling to 512 (our choice, the paper gives the layers only). Then one dense layer to the embedding.
    Dense layers of the classifiers: 500, 256 with BN (mnist, stl10; the code has it, Table 16 omits it for STL10) or
    without (tiny_imagenet); 512, 512, 512 with dropout (cifar10).

    Args:
        data: the data set that the network was made for.
        embedding: dimension k; the default is Table 10's: 4, 16, 16, 20.
        width: channels of the first convolution (mnist, stl10).
        batch_norm: BN in cifar10's encoder, which the paper does without.
        num_classes: number of logits; the default is the data set's.
    """

    def __init__(
        self,
        data: Data = "mnist",
        embedding: int | None = None,
        width: int = 128,
        batch_norm: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.data, self.width, self.batch_norm = data, width, batch_norm
        self.embedding = _EMBEDDING[data] if embedding is None else embedding
        self.num_classes = _CLASSES[data] if num_classes is None else num_classes
        k, classes = self.embedding, self.num_classes
        if k < 1:
            raise UserError(f"embedding must be at least 1, not {k}")
        if data in ("mnist", "stl10"):
            multiples = [1, 2, 4, 8] if data == "mnist" else [1, 2, 4, 8, 16, 16]
            layers = _strided([_CHANNELS[data], *(m * width for m in multiples)], last=4 if data == "mnist" else 3)
            halves = [0.5] * _CHANNELS[data]
            self.encoder = nn.Sequential(
                first(halves, halves), *layers, nn.Flatten(), nn.Linear(multiples[-1] * width, k)
            )
            self.classifier = nn.Sequential(*dense([k, 500, 256], batch_norm=True), nn.Linear(256, classes))
        elif data == "cifar10":
            imagenet = first([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            convs = convolutions(PLANS[19], 3, batch_norm)
            self.encoder = nn.Sequential(imagenet, *convs, nn.Flatten(), nn.Linear(512, k))
            self.classifier = nn.Sequential(
                *(nn.Linear(k, 512), nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5)),
                *(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)),
            )
            for module in self.encoder:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out")
        else:
            pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, k)]
            self.encoder = nn.Sequential(*convolutions(PLANS[16], 3, True), *pooled)
            self.classifier = nn.Sequential(*dense([k, 500, 256]), nn.Linear(256, classes))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encoder(x))
        return logits


class ERBaseline(nn.Module):
    """Plain network of ER-Classifier's baselines (Li et al. 2021, Table 15): `features`, then a dense `classifier`.

    mnist: four 3x3 convolutions without padding and four dense layers. cifar10: VGG19-BN with one. stl10: six
    convolutions with BN, five poolings, four dense layers. tiny_imagenet: VGG16-BN with four. The paper gives numbers
    of layers; widths are the usual ones (C&W's and TRADES' MNIST net, the RSE authors' STL10 net).

    Args:
        data: the data set that the network was made for.
        num_classes: number of logits; the default is the data set's.
        mean: normalisation of the first layer, one value a channel; none for raw pixels.
        std: see mean.
    """

    def __init__(
        self,
        data: Data = "mnist",
        num_classes: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.data, self.mean, self.std = data, mean, std
        self.num_classes = _CLASSES[data] if num_classes is None else num_classes
        features: list[nn.Module]
        if data == "mnist":
            features = [*_conv(1, 32, 0), *_conv(32, 32, 0), nn.MaxPool2d(2)]
            features += [*_conv(32, 64, 0), *_conv(64, 64, 0), nn.MaxPool2d(2)]
            widths = [1024, 200, 200, 200]
        elif data == "cifar10":
            features, widths = convolutions(PLANS[19], 3, True), [512]
        elif data == "stl10":
            features = convolutions([32, "M", 64, "M", 128, "M", 128, "M"], 3, True)
            features += [*_conv(128, 256, 0, True), *_conv(256, 256, 0, True), nn.MaxPool2d(2)]
            widths = [256, 256, 256, 256]
        else:
            features, widths = convolutions(PLANS[16], 3, True), [2048, 512, 512, 512]
        self.features = nn.Sequential(first(mean, std), *features, nn.Flatten())
        self.classifier = nn.Sequential(*dense(widths), nn.Linear(widths[-1], self.num_classes))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _strided(widths: list[int], last: int) -> list[nn.Module]:
    """Convolutions 4x4 of stride 2, padding 1, without bias; the last is `last` x `last`, without padding if 3x3."""
    layers: list[nn.Module] = []
    for place, (n_in, n_out) in enumerate(pairwise(widths)):
        kernel = last if place == len(widths) - 2 else 4
        layers.append(nn.Conv2d(n_in, n_out, kernel, stride=2, padding=1 if kernel == 4 else 0, bias=False))
        layers += [nn.BatchNorm2d(n_out)] * (place > 0) + [nn.ReLU()]
    return layers


def _conv(n_in: int, n_out: int, padding: int, batch_norm: bool = False) -> list[nn.Module]:
    norm = [nn.BatchNorm2d(n_out)] if batch_norm else []
    return [nn.Conv2d(n_in, n_out, 3, padding=padding), *norm, nn.ReLU()]
