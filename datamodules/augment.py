"""Augmentation of small images by a random crop and a mirror, as a function of (seed, epoch, image).

It works on whole batches on their device, without workers. torchvision's transforms would draw once for a batch, from a
global generator; here every image has its own draw, which depends neither on the number of processes nor on a resume.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def _signed(value: int) -> int:
    """Signed 64-bit integer with the bits of `value`."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def random_bits(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Random int64 (B,) of 63 bits for each image `index` (B,): splitmix64 (Steele et al. 2014)."""
    golden = 0x9E3779B97F4A7C15
    z = index.long() * _signed(golden) + _signed(((seed * 1_000_003 + epoch + 1) * golden) ^ 0xD1B54A32D192ED03)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return (z ^ ((z >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF


def crop_and_flip(x: Tensor, index: Tensor, padding: int, seed: int, epoch: int) -> Tensor:
    """Move images (B, C, H, W) of any dtype by up to `padding` pixels, padding with zeros, and mirror half of them.

    Equal to torchvision's RandomCrop(H, padding=padding) and RandomHorizontalFlip in distribution.
    """
    bits, (height, width) = random_bits(seed, epoch, index), x.shape[-2:]
    top, left, mirrored = bits % (2 * padding + 1), (bits >> 20) % (2 * padding + 1), (bits >> 40) % 2 == 1
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(len(x), width)
    columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - columns, columns)
    batch, channels = (torch.arange(n, device=x.device) for n in x.shape[:2])
    wide = pad(x, (padding, padding, padding, padding))
    return wide[batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
