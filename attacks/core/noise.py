"""Counter-based random numbers keyed by (seed, sample index).

A draw is ``mix(key + counter * golden)`` with the finaliser of splitmix64 (Steele et al. 2014), computed on
the device of the key. So results do not depend on the batch size, the number of processes or the draws for other
samples. The global generators of torch are not used, except by `Noise.from_global`.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError


def _signed(value: int) -> int:
    """Python int in the range of torch.int64 with the 64-bit pattern of `value`."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN, _MIX1, _MIX2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(z: Tensor) -> Tensor:
    """Finaliser of splitmix64 on int64 (two's complement wraps; the masks make the shifts logical)."""
    z = (z ^ (z >> 30).bitwise_and_(0x3FFFFFFFF)).mul_(_MIX1)
    z = z.bitwise_xor_((z >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(_MIX2)
    return z.bitwise_xor_((z >> 31).bitwise_and_(0x1FFFFFFFF))


class Noise:
    """Streams of random numbers, one for each row of a batch; a draw advances all rows equally.

    `key` is int64 (B,). `fork` returns independent streams (for restarts, EOT draws, the defender) and does not advance
    this one; `noise[rows]` returns the streams of selected rows.
    """

    def __init__(self, key: Tensor, counter: int = 0) -> None:
        self.key, self.counter = key, counter

    @classmethod
    def keyed(cls, seed: int, index: Tensor) -> "Noise":
        """Streams for the samples `index` (int64 (B,)) under `seed`."""
        start = _mix(torch.tensor(_signed(seed) ^ _GOLDEN, device=index.device))
        return cls(_mix(_mix(index.long() * _GOLDEN) ^ start))

    @classmethod
    def from_global(cls, x: Tensor) -> "Noise":
        """Streams seeded by one draw from torch's global CPU generator; for notebooks."""
        seed = int(torch.randint(0, 2**62, ()))
        return cls.keyed(seed, torch.arange(len(x), device=x.device))

    def fork(self, name: int | str) -> "Noise":
        """Independent streams for `name`; the same name gives the same streams."""
        number = name if isinstance(name, int) else zlib.crc32(name.encode()) + (1 << 32)
        salt = _mix(torch.tensor(_signed((number + 1) * 0xD1B54A32D192ED03), device=self.key.device))
        return Noise(_mix(self.key ^ salt))

    def split(self) -> "Noise":
        """New streams seeded by the next number of these, which advance by one only."""
        return Noise(self._words(1)[:, 0])

    def repeat(self, copies: int, apart: int) -> "Noise":
        """Stack `copies` of these streams along the rows, each `apart` numbers ahead of the previous one."""
        ahead = torch.arange(copies, device=self.key.device) * apart
        return Noise((self.key + (ahead * _GOLDEN)[:, None]).flatten(), self.counter)

    def __getitem__(self, rows: Tensor | slice) -> "Noise":
        return Noise(self.key[rows], self.counter)

    def __len__(self) -> int:
        return len(self.key)

    def _words(self, n: int) -> Tensor:
        counters = torch.arange(self.counter + 1, self.counter + n + 1, device=self.key.device)
        self.counter += n
        return _mix(self.key[:, None] + counters * _GOLDEN)

    def _check(self, like: Tensor) -> None:
        if len(like) != len(self.key):
            raise UserError(f"noise for {len(self.key)} rows was asked to fill a batch of {len(like)}: use noise[rows]")

    def uniform(self, like: Tensor) -> Tensor:
        """Independent uniform numbers in [0, 1) with shape (B, ...), dtype and device of `like`."""
        self._check(like)
        words = self._words(math.prod(like.shape[1:]))
        bits, dtype = (53, torch.float64) if like.dtype == torch.float64 else (24, torch.float32)
        u = ((words >> (64 - bits)) & ((1 << bits) - 1)).to(dtype) * 2.0**-bits
        return u.to(like.dtype).clamp_(max=1 - torch.finfo(like.dtype).eps / 2).view(like.shape)

    def bernoulli(self, like: Tensor, p: float) -> Tensor:
        """Independent booleans with the shape (B, ...) of `like`, true with probability p rounded to 1/65536.

        One 64-bit word gives four booleans, or eight if p is a multiple of 1/256; made for large masks and dropout.
        """
        self._check(like)
        n, bits = math.prod(like.shape[1:]), 8 if (256 * p).is_integer() else 16
        heads, half = round(p * 2**bits), 2 ** (bits - 1)
        words = self._words(-(-n * bits // 64)).view(torch.int8 if bits == 8 else torch.int16)
        lanes = words[:, :n].view(like.shape)
        return torch.ones_like(lanes, dtype=torch.bool) if heads == 2 * half else lanes < heads - half

    def normal(self, like: Tensor) -> Tensor:
        """Independent standard normal numbers with shape (B, ...), dtype and device of `like` (Box and Muller)."""
        self._check(like)
        n = math.prod(like.shape[1:])
        words = self._words((n + 1) // 2)
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        radius = (((words >> 32) & 0xFFFFFFFF).to(dtype) + 0.5).mul_(2.0**-32).log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = (words & 0xFFFFFFFF).to(dtype).mul_(2 * math.pi * 2.0**-32)
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
        return pairs[:, :n].to(like.dtype).reshape(like.shape)


@contextmanager
def noise_for(model: nn.Module, noise: Noise) -> Iterator[None]:
    """Let every stochastic module inside `model` (attribute ``stochastic`` true) draw from `noise` in this context."""
    modules: Sequence[nn.Module] = [m for m in model.modules() if getattr(m, "stochastic", False)]
    before = [getattr(m, "noise", None) for m in modules]
    try:
        for m in modules:
            m.noise = noise  # type: ignore[assignment]
        yield
    finally:
        for m, old in zip(modules, before, strict=True):
            m.noise = old  # type: ignore[assignment]
