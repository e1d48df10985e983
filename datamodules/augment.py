"""The papers' augmentation of small images, drawn for each (seed, epoch, image): a random crop and a mirror.

Whole batches on whatever device they are, so neither workers nor per-image Python; torchvision's transforms would draw
once for a batch, from a global generator. Here a draw is a function of the image's number: the same on one process or
eight, and after a resume.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` in the range of torch.int64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def draws(seed: int, epoch: int, index: Tensor) -> Tensor:
    """63 random bits (B,), int64 >= 0, for each image `index` (B,): splitmix64 (Steele, Lea and Flood 2014)."""
    golden = 0x9E3779B97F4A7C15
    z = index.long() * _signed(golden) + _signed(((seed * 1_000_003 + epoch + 1) * golden) ^ 0xD1B54A32D192ED03)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return (z ^ ((z >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF


def crop_and_flip(x: Tensor, index: Tensor, padding: int, seed: int, epoch: int) -> Tensor:
    """Images (B, C, H, W) of any dtype, moved by up to `padding` pixels (black comes in) and mirrored half the time.

    The same as torchvision's RandomCrop(H, padding=padding) and RandomHorizontalFlip in distribution.
    """
    bits, (height, width) = draws(seed, epoch, index), x.shape[-2:]
    top, left, mirrored = bits % (2 * padding + 1), (bits >> 20) % (2 * padding + 1), (bits >> 40) % 2 == 1
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(len(x), width)
    columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - columns, columns)
    batch, channels = (torch.arange(n, device=x.device) for n in x.shape[:2])
    wide = pad(x, (padding, padding, padding, padding))
    return wide[batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
