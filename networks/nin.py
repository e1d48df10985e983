"""Network in network for 32x32 colour images (Lin et al. 2014)."""

from torch import Tensor, nn

from adversarial_lightning.networks.whiten import Whiten


def _mlpconv(n_in: int, widths: tuple[int, int, int], kernel: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for k, width in zip((kernel, 1, 1), widths, strict=True):
        layers += [nn.Conv2d(n_in, width, k, padding=k // 2), nn.ReLU()]
        n_in = width
    return layers


class NIN(nn.Module):
    """Network in network for CIFAR-10: 9 convolutions, no dense layer; 966,986 parameters for 3 channels, 10 classes.

    The thesis on margins (Matyasko 2020, Table 3.2) names it without a list of layers. Its images were preprocessed;
    here `whiten` is the first layer of the network, so that attacks act on pixels (see `networks.Whiten`).

    Args:
        num_classes: number of logits.
        channels: image channels.
        dropout: probability after each of the first two poolings.
        whiten: start with global contrast normalisation and ZCA, fitted by callbacks.FitWhitening.
        size: side of the images; only `whiten` needs it.
    """

    def __init__(
        self, num_classes: int = 10, channels: int = 3, dropout: float = 0.5, whiten: bool = False, size: int = 32
    ) -> None:
        super().__init__()
        self.num_classes, self.channels, self.dropout = num_classes, channels, dropout
        self.whiten, self.size = whiten, size
        self.layers = nn.Sequential(
            Whiten(channels * size * size) if whiten else nn.Identity(),
            *_mlpconv(channels, (192, 160, 96), 5),
            *(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(dropout)),
            *_mlpconv(96, (192, 192, 192), 5),
            *(nn.AvgPool2d(3, 2, ceil_mode=True), nn.Dropout(dropout)),
            *_mlpconv(192, (192, 192, num_classes), 3),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
