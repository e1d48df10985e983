"""Small convolutional networks, each fitted to one image, many of them trained in one grouped convolution."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.errors import UserError


@dataclass(frozen=True)
class FitSettings:
    """Architecture and optimiser of one per-image network; `defenses.RIDE` explains each value."""

    channels: tuple[int, ...]
    dropout_after: tuple[int, ...]
    dropout: float
    sigmoid: bool
    random_input: bool
    sigma: float
    noisy_target: bool
    mask_ratio: float
    noisy_copies: int
    squared: bool
    learning_rate: float
    weight_decay: float
    amsgrad: bool
    unet: bool = False

    def __post_init__(self) -> None:
        channels, dropped = self.channels, self.dropout_after
        if len(channels) < 2 or min(channels) < 1 or channels[0] != channels[-1]:
            raise UserError(f"channels must begin and end with those of the image, not {list(channels)}")
        if self.unet and len(channels) < 3:
            raise UserError(f"a U-Net has at least one hidden width between those of the image, not {list(channels)}")
        hidden = len(self.convolutions) - 1
        if not set(dropped) <= set(range(1, hidden + 1)):
            raise UserError(f"dropout_after names hidden layers, 1 to {hidden}, not {list(dropped)}")
        if self.noisy_copies < 1:
            raise UserError(f"noisy_copies must be at least 1, not {self.noisy_copies}")
        for name, share in {"dropout": self.dropout, "mask_ratio": self.mask_ratio}.items():
            if not 0 <= share < 1:
                raise UserError(f"{name} must lie in [0, 1), not {share}")
        if not (self.sigma >= 0 and self.weight_decay >= 0 and self.learning_rate > 0):
            raise UserError(
                f"sigma ({self.sigma}) and weight_decay ({self.weight_decay}) must be at least 0, learning_rate "
                f"({self.learning_rate}) above 0"
            )

    @property
    def convolutions(self) -> list[tuple[int, int]]:
        """Input and output channels of each layer; of a U-Net on the way down, up (with the skipped maps) and out."""
        if not self.unet:
            return list(pairwise(self.channels))
        down = self.channels[:-1]
        up = [(low + high, high) for high, low in reversed(list(pairwise(down[1:])))]
        return [*pairwise(down), *up, (down[1], self.channels[-1])]

    @property
    def levels(self) -> int:
        """Resolutions of the network; 1 for a chain."""
        return len(self.channels) - 2 if self.unet else 1

    def scales(self) -> list[int]:
        """How often the images of each layer are halved."""
        if not self.unet:
            return [0] * len(self.convolutions)
        return [*range(self.levels), *reversed(range(self.levels - 1)), 0]

    def parameters(self) -> int:
        """Number of parameters of one network."""
        return sum(9 * a * b + b for a, b in self.convolutions)

    def multiplications(self, height: int, width: int) -> int:
        """Multiply-adds of one forward pass of one network for one image."""
        layers = zip(self.convolutions, self.scales(), strict=True)
        return sum(-(-height // 2**k) * -(-width // 2**k) * 9 * a * b for (a, b), k in layers)

    def bytes_per_image(self, height: int, width: int, itemsize: int) -> int:
        """Estimate of the peak memory of one step for one image, in bytes.

        It counts five copies of the weights (weights, gradients, two moments of Adam, amsgrad's maximum) and, for each
        noisy copy and pixel, the values that autograd keeps and the random integers.
        """
        outputs = [b for _, b in self.convolutions]
        hidden = outputs[:-1]
        if self.unet:  # what is put together on the way up; all as if it were not halved
            hidden += [a for a, _ in self.convolutions[self.levels : -1]]
        dropped = sum(outputs[layer - 1] for layer in self.dropout_after) if self.dropout else 0
        # Hidden outputs; for layers with dropout also the mask, twice (as drawn, and in the order of `_beside`); the
        # working memory of one convolution, forwards and backwards (4 of the widest); input, target, mask, error and
        # their gradients (8 images).
        maps = sum(hidden) + 2 * dropped + 4 * max(outputs) + 8 * self.channels[0]
        # Working memory of the random draws, before they are floats of `itemsize`: up to 8 bytes for each value with
        # dropout, and 4 x 8 for each value of the image (words, radius and angle of `Noise.normal`).
        words = 8 * (dropped + 4 * self.channels[0]) // itemsize
        return itemsize * (5 * self.parameters() + self.noisy_copies * height * width * (maps + words))


class PerImageFit:
    """B networks h(.; w_i), one for each image, with their Adam state; draws are keyed by the image.

    A network is a chain of 3x3 convolutions with bias, zero padding and ReLU between them; or a U-Net of them, one a
    resolution and way, with maxima of 2 x 2 pixels on the way down and nearest pixels on the way up. B of them run as
    one grouped convolution, images (B, C, H, W) beside each other as channels (noisy_copies, B * C, H, W). The loss is
    the sum over images of each image's own, and Adam works element by element, so every network takes the steps that it
    would take alone.

    Args:
        settings: of all networks.
        noise: streams of the B images.
        like: the images (B, C, H, W), for shape, dtype and device.
    """

    differentiable = False  # its estimates in its targets; see `Unrolled`

    def __init__(self, settings: FitSettings, noise: Noise, like: Tensor) -> None:
        self.settings, self.noise = settings, noise
        weights, biases = noise.fork("weights"), noise.fork("biases")
        self.parameters: list[Tensor] = []  # per layer (B, out, in, 3, 3) and (B, out)
        for a, b in settings.convolutions:
            xavier, usual = math.sqrt(6 / (9 * a + 9 * b)), 1 / math.sqrt(9 * a)
            weight = weights.uniform(like.new_empty(len(like), b, a, 3, 3)).mul_(2).sub_(1).mul_(xavier)
            bias = biases.uniform(like.new_empty(len(like), b)).mul_(2).sub_(1).mul_(usual)
            self.parameters += [weight.requires_grad_(), bias.requires_grad_()]
        self.optimizer = torch.optim.Adam(
            self.parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            amsgrad=settings.amsgrad,
            fused=True,
        )
        shape = (len(like), settings.noisy_copies, *like.shape[1:])
        self.fixed = noise.fork("input").normal(like.new_empty(shape)) if settings.random_input else None
        self.output = like  # mean over the samples of the last training output

    def step(self, target: Tensor) -> Tensor:
        """Take one step of Adam towards `target` (B, C, H, W); returns the masked losses (B,) before it."""
        settings, noise = self.settings, self.noise
        around = target[:, None].expand(-1, settings.noisy_copies, -1, -1, -1)
        h = self._apply(self._input(around, noise), noise)
        s = around + settings.sigma * noise.normal(around) if settings.noisy_target and settings.sigma else around
        squares = (h - _beside(s)).square().unflatten(1, target.shape[:2])  # (noisy_copies, B, C, H, W)
        kept = noise.bernoulli(around[:, :, :1], 1 - settings.mask_ratio).transpose(0, 1).to(h.dtype)
        losses: Tensor
        if settings.squared:
            count = kept.sum((0, 2, 3, 4)).clamp(min=1) * target.shape[1]
            losses = (squares * kept).sum((0, 2, 3, 4)) / count
        else:
            losses = squares.sum((0, 2, 3, 4)).sqrt() * kept.mean((0, 2, 3, 4))
        self._adam(losses.sum())
        self.output = (h if self.differentiable else h.detach()).unflatten(1, target.shape[:2]).mean(0)
        return losses.detach()

    def _adam(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # fused Adam on the CPU reads it as if it were
        self.optimizer.step()

    def estimate(self, target: Tensor, noisy_copies: int, at: int) -> Tensor:
        """Estimate x_est: mean output (B, C, H, W) over `noisy_copies` draws without dropout; 0: last training output.

        `at` names the draws, which are separate from those of training: an additional estimate changes no result.
        """
        if noisy_copies == 0:
            return self.output
        noise, total = self.noise.fork(f"estimate {at}"), torch.zeros_like(target)
        noisy_copies = noisy_copies if self.fixed is None else 1  # nothing is random then
        for _ in range(noisy_copies):
            total += self._apply(self._input(target[:, None], noise), None).unflatten(1, target.shape[:2])[0]
        return total / noisy_copies

    def frozen(self, x: Tensor, noisy_copies: int) -> Tensor:
        """Mean of h(x + noise; w) over `noisy_copies` draws without dropout, differentiable in `x` with w fixed.

        Raises ValueError for a network that sees a random image instead.
        """
        if self.fixed is not None:
            raise UserError("DIP's network does not see the image, so it has no gradient: use backward: identity")
        noise, copies = self.noise.fork("frozen"), x[:, None].expand(-1, max(1, noisy_copies), -1, -1, -1)
        mean: Tensor = self._apply(self._input(copies, noise), None).unflatten(1, x.shape[:2]).mean(0)
        return mean

    @torch.no_grad()
    def risk(self, target: Tensor, copies: int) -> Tensor:
        """Mean squared error (B,) of h(z; w) to `target` over `copies` draws of z, without dropout and mask.

        Eq. 7 but for the variance of noisy targets, which is a constant. Every call has the same draws.
        """
        noise, total = self.noise.fork("risk"), target.new_zeros(len(target))
        for _ in range(copies):
            h = self._apply(self._input(target[:, None], noise), None).unflatten(1, target.shape[:2])[0]
            total += (h - target).square().flatten(1).mean(1)
        return total / copies

    def finite(self) -> Tensor:
        """Mask (B,) of the networks with finite weights."""
        return torch.stack([p.detach().flatten(1).isfinite().all(1) for p in self.parameters]).all(0)

    def keep(self, rows: Tensor) -> None:
        """Drop all images but these `rows`."""
        self.noise, self.output = self.noise[rows], self.output[rows]
        self.fixed = None if self.fixed is None else self.fixed[rows]
        for parameter in self.parameters:
            parameter.data = parameter.data[rows]
            parameter.grad = None
            state = self.optimizer.state[parameter]
            state.update({name: value[rows] for name, value in state.items() if value.ndim})

    def _input(self, around: Tensor, noise: Noise) -> Tensor:
        """z (noisy_copies, B * C, H, W) for copies (B, noisy_copies, C, H, W) of the images."""
        if self.fixed is not None:
            return _beside(self.fixed[:, : around.shape[1]])
        return _beside(around + self.settings.sigma * noise.normal(around) if self.settings.sigma else around)

    def _apply(self, h: Tensor, noise: Noise | None) -> Tensor:
        """Apply the networks, h(z; w); with dropout where `noise` is given."""
        images, layers = len(self.noise), len(self.parameters) // 2
        share, levels = 1 - self.settings.dropout, self.settings.levels
        skipped: list[Tensor] = []
        for layer in range(1, layers + 1):
            weight, bias = self.parameters[2 * layer - 2 : 2 * layer]
            if 1 < layer <= levels:
                skipped.append(h)
                h = F.max_pool2d(h, 2, ceil_mode=True)
            elif skipped:
                h = _put_together(F.interpolate(h, size=skipped[-1].shape[2:]), skipped.pop(), images)
            if layer == layers:
                h = _to_few_channels(h, weight, bias)
                return h.sigmoid() if self.settings.sigmoid else h
            h = F.conv2d(h, weight.flatten(0, 1), bias.flatten(), padding=1, groups=images)
            if noise is not None and layer in self.settings.dropout_after and share < 1:
                kept = noise.bernoulli(h.unflatten(1, (images, -1)).transpose(0, 1), share)
                h.mul_(_beside(kept.to(h.dtype).mul_(1 / share)))  # before ReLU as good as after it, and no map more
            h.relu_()
        raise AssertionError("a network has a last layer")


def _to_few_channels(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of (noisy_copies, B * in, H, W) to few channels: product with all nine taps, sum of shifted results.

    Grouped convolution from 16 channels to 1 takes many times as long (`benchmarks/ride_throughput.py`).
    """
    images, few = weight.shape[:2]
    taps = weight.flip(3, 4).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (B, out * 9, in)
    products = taps @ h.unflatten(1, (images, -1)).flatten(3)  # (noisy_copies, B, out * 9, H * W)
    sums = F.fold(products.flatten(0, 1), h.shape[2:], 3, padding=1)
    return sums.view(len(h), images * few, *h.shape[2:]) + bias.flatten()[:, None, None]


def _put_together(a: Tensor, b: Tensor, images: int) -> Tensor:
    """Channels of `a` and `b` (noisy_copies, B * C, H, W) beside each other, image by image."""
    return torch.cat([h.unflatten(1, (images, -1)) for h in (a, b)], 2).flatten(1, 2)


def _beside(x: Tensor) -> Tensor:
    """Images of a batch as channels: (B, noisy_copies, C, H, W) -> (noisy_copies, B * C, H, W)."""
    return x.transpose(0, 1).flatten(1, 2)
