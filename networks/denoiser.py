"""Denoisers and autoencoders: images (B, C, H, W) -> images of the same shape."""

from typing import Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError


class Denoiser(nn.Module):
    """Denoiser r(x), a network trained to remove Gaussian noise of variance `sigma2` from images.

    Its score (r(x) - x) / sigma2 estimates the gradient of the log density of the noisy data (Srinivasan et al. 2021,
    eq. 6), or, trained with a classifier, of its class-conditional form (eq. 10).

    Args:
        network: images -> images, both in [0, 1].
        sigma2: variance of the noise it was trained with, in squares of pixels of [0, 1] (the paper's sigma^2).
        trained_for: digest of the weights of the classifier that took part in the training; none: unsupervised.
    """

    def __init__(self, network: nn.Module, sigma2: float = 0.15, trained_for: str | None = None) -> None:
        super().__init__()
        if not 0 < sigma2 < float("inf"):
            raise UserError(f"sigma2 is the variance of the training noise and must be above 0, not {sigma2}")
        self.network, self.sigma2, self.trained_for = network, sigma2, trained_for

    def forward(self, x: Tensor) -> Tensor:
        r: Tensor = self.network(x)
        return r

    def score(self, x: Tensor) -> Tensor:
        """Estimated score (B, C, H, W) at `x`, per pixel of [0, 1]."""
        s: Tensor = (self(x) - x) / self.sigma2
        return s


class ConvAutoencoder(nn.Module):
    """MALADE's autoencoder for MNIST: 2 convolutions, 2 deconvolutions, 1 convolution (Srinivasan et al., app. B.3).

    The paper gives no widths and strides; here both convolutions and both deconvolutions have stride 2. The initial
    output is near the mean pixel: a sigmoid that starts at 0.5 collapses to black images within an epoch for good.

    Args:
        channels: image channels.
        width: filters of the first convolution, half those of the second.
        output: sigmoid keeps r(x) in (0, 1); linear does not.
        mean_pixel: where the output starts, in (0, 1); the default is that of MNIST.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        output: Literal["sigmoid", "linear"] = "sigmoid",
        mean_pixel: float = 0.1307,
    ) -> None:
        super().__init__()
        if not 0 < mean_pixel < 1:
            raise UserError(f"mean_pixel must lie between 0 and 1, not {mean_pixel}")
        self.channels, self.width, self.output, self.mean_pixel = channels, width, output, mean_pixel
        last = nn.Conv2d(width, channels, 3, padding=1)
        start = torch.tensor(mean_pixel)
        nn.init.constant_(last.bias, float(start.logit() if output == "sigmoid" else start))  # type: ignore[arg-type]
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(2 * width, 2 * width, 4, stride=2, padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.ReLU()),
            *(last, nn.Sigmoid() if output == "sigmoid" else nn.Identity()),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        check_strides(self, x, 4)
        r: Tensor = self.layers(x)
        return r


class MagnetAutoencoder(nn.Module):
    """Magnet's own autoencoders for MNIST (Meng and Chen 2017): 3 filters of 3x3 a layer, sigmoid everywhere.

    Args:
        channels: image channels.
        pooled: [3, average-pool, 3], the reformer and first detector; false: [3], the second detector.
    """

    def __init__(self, channels: int = 1, pooled: bool = True) -> None:
        super().__init__()
        self.channels, self.pooled = channels, pooled

        def layer(n_in: int, n_out: int) -> list[nn.Module]:
            return [nn.Conv2d(n_in, n_out, 3, padding=1), nn.Sigmoid()]

        down, up = (
            ([nn.AvgPool2d(2), *layer(3, 3)], [*layer(3, 3), nn.Upsample(scale_factor=2)]) if pooled else ([], [])
        )
        self.layers = nn.Sequential(*layer(channels, 3), *down, *up, *layer(3, 3), *layer(3, channels))

    def forward(self, x: Tensor) -> Tensor:
        check_strides(self, x, 2 if self.pooled else 1)
        r: Tensor = self.layers(x)
        return r


def check_strides(network: nn.Module, x: Tensor, stride: int) -> None:
    """Raise ValueError unless height and width of `x` are multiples of `stride`, so that the output has its shape."""
    if x.ndim != 4 or x.shape[2] % stride or x.shape[3] % stride:
        raise UserError(
            f"{type(network).__name__} takes images (B, C, H, W) with H and W multiples of {stride}, "
            f"not {tuple(x.shape)}: resize or pad the images"
        )
