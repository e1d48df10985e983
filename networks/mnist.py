"""Small networks of the papers: images (B, C, 28, 28) in [0, 1] -> logits (B, K)."""

import torch
from torch import Tensor, nn

from adversarial_lightning.networks.initialize import Init, initialize
from adversarial_lightning.networks.normalize import first


class SmallCNN(nn.Module):
    """Network of 4 convolutions and 3 dense layers (TRADES; ATENT's "SmallCNN"): 312,202 parameters.

    That is the number for 1x28x28 and 10 classes. Kaiming-normal convolutions and a zero last layer, as in the TRADES
    repository: the first logits are exactly 0.

    Args:
        num_classes: number of logits.
        channels: image channels.
        dropout: probability before the second dense layer.
        mean: normalisation of the first layer, one value a channel; none for raw pixels.
        std: see mean.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 1,
        dropout: float = 0.5,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.channels, self.dropout, self.mean, self.std = num_classes, channels, dropout, mean, std
        self.features = nn.Sequential(
            first(mean, std),
            *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
        )
        last = nn.Linear(200, num_classes)
        self.head = nn.Sequential(
            *(nn.Linear(1024, 200), nn.ReLU(), nn.Dropout(dropout), nn.Linear(200, 200), nn.ReLU(), last)
        )
        for m in self.modules():
            if isinstance(m, nn.Conv2d) and m.bias is not None:
                nn.init.kaiming_normal_(m.weight)
                nn.init.zeros_(m.bias)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.to(memory_format=torch.channels_last)  # attacks are a fifth faster, on CPUs too

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


class MadryCNN(nn.Module):
    """Network of 2 convolutions and 2 dense layers (the MNIST challenge's, ATENT's "LeNet5"): 3,274,634 parameters.

    Args:
        num_classes: number of logits.
        channels: image channels.
        mean: normalisation of the first layer, one value a channel; none for raw pixels.
        std: see mean.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 1,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.channels, self.mean, self.std = num_classes, channels, mean, std
        self.features = nn.Sequential(
            first(mean, std),
            *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(3136, 1024), nn.ReLU(), nn.Linear(1024, num_classes))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


class LeNet5(nn.Module):
    """Network of 2 convolutions without padding and 2 dense layers (Matyasko 2020, chapters 3 and 4).

    It has 582,026 parameters for 28x28 and 10 classes. With 32 and 64 maps and 512 units it is not the net of 1998,
    which had 6 and 16 maps. With 20 and 50 maps and 500 units it is the classifier of RIDE's MNIST demo (Lin et al.
    2019): 431,080 parameters.

    Args:
        num_classes: number of logits.
        channels: image channels.
        dropout: probability after the second pooling and after the hidden dense layer (0.5 for the thesis' baseline).
        init: first weights: torch's own, glorot (chapter 3) or he (chapter 4).
        maps: channels of the two convolutions; none: [32, 64].
        hidden: units of the hidden dense layer.
        mean: normalisation of the first layer, one value a channel; none for raw pixels.
        std: see mean.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 1,
        dropout: float = 0.0,
        init: Init = "torch",
        maps: list[int] | None = None,
        hidden: int = 512,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.channels, self.dropout, self.init = num_classes, channels, dropout, init
        self.maps, self.hidden, self.mean, self.std = [32, 64] if maps is None else maps, hidden, mean, std
        one, two = self.maps
        self.normalize = first(mean, std)
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, one, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(one, two, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Dropout(dropout), nn.Flatten()),
        )
        dense, last = nn.Linear(16 * two, hidden), nn.Linear(hidden, num_classes)
        self.head = nn.Sequential(dense, nn.ReLU(), nn.Dropout(dropout), last)
        initialize(self, init)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(self.normalize(x)))
        return logits


class MLP(nn.Module):
    """Dense layers with ReLU between them, on flattened images.

    Args:
        num_classes: number of logits.
        features: number of values of an image, C x H x W.
        hidden: widths of the hidden layers; [1000, 1000, 1000] and [1200, 1200, 1200] are the thesis' (Matyasko 2020).
        dropout: probability after each hidden layer.
        init: first weights: torch's own, glorot or he.
    """

    def __init__(
        self,
        num_classes: int = 10,
        features: int = 784,
        hidden: list[int] | None = None,
        dropout: float = 0.0,
        init: Init = "torch",
    ) -> None:
        super().__init__()
        self.num_classes, self.features, self.hidden = num_classes, features, [100] if hidden is None else hidden
        self.dropout, self.init = dropout, init
        layers: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in zip([features, *self.hidden], self.hidden, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.layers = nn.Sequential(*layers, nn.Linear([features, *self.hidden][-1], num_classes))
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
