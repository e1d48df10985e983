"""Square attack (Andriushchenko et al. 2020): black-box random search over changes of square windows."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Knowledge
from adversarial_lightning.attacks.core.checks import at_least, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES
from adversarial_lightning.attacks.core.noise import Noise, noise_for
from adversarial_lightning.attacks.core.norms import NORMS, batch_view, divisor, project_l1_box
from adversarial_lightning.attacks.core.radius import Radius
from adversarial_lightning.errors import UserError

# Queries of 10,000 after which the share of pixels in a window is halved (section 5.1 of the paper).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def pattern(height: int, width: int, like: Tensor, decay: int = 2) -> Tensor:
    """Pattern eta of the paper, (height, width): two halves of opposite sign that decay from their centres (Figure 2).

    A half is a sum of nested squares, of which the k-th has the height ``k ** -decay``.
    """
    if height == 1 and width > 1:
        return pattern(width, height, like, decay).T
    halves = []
    for sign, rows in ((1.0, height // 2), (-1.0, height - height // 2)):
        i = (torch.arange(rows, device=like.device) - rows // 2).abs()[:, None]
        j = (torch.arange(width, device=like.device) - width // 2).abs()[None]
        rings = max(rows, width) // 2 + 1
        weights = torch.arange(1, rings + 1, device=like.device, dtype=like.dtype) ** -decay
        halves.append(sign * weights.flip(0).cumsum(0).flip(0)[torch.maximum(i, j).clamp_max(rings - 1)])
    return torch.cat(halves)


@dataclass(frozen=True)
class Square(Attack):
    """Random search: keep the change of a square window if it raises the loss; a row stops at its first success.

    The l1 search follows the code of Croce and Hein 2021: the l2 search with steeper patterns and l1 windows, and with
    candidates projected on the intersection of ball and box instead of scaled to the sphere. The position of the window
    and all signs are drawn separately for each row (the reference implementation shares them). Vectors are treated as
    images of one row, with intervals as windows.

    For a stochastic model it compares single draws; ``LogitEOT(Square(...))`` compares means of several draws.

    Args:
        norm: norm of the ball.
        eps: radius, in pixels of [0, 1].
        queries: forward passes for each row, the start included.
        p_init: share of the pixels in the first windows.
        rescale_schedule: stretch the schedule of window sizes, made for 10,000 queries, to `queries`.
        loss: objective that the search increases.
        targeted: decrease the objective for the target `y` instead.
    """

    knowledge: ClassVar[Knowledge] = "scores"
    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: Radius = 0.3
    queries: int = 5000
    p_init: float = 0.8
    rescale_schedule: bool = True
    loss: Literal["margin", "ce"] = "margin"
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(0, eps=self.eps)
        at_least(1, queries=self.queries)
        if not 0 < self.p_init <= 1:
            raise UserError(f"p_init must lie in (0, 1], not {self.p_init}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        images = x if x.ndim == 4 else x.flatten(1)[:, None, None]
        value = x.new_full((len(x),), -torch.inf)
        best, rows = images.clone(), torch.arange(len(x), device=x.device)
        for query in range(self.queries):
            # Every query has its own streams, so a row's draws do not depend on when other rows stopped.
            own = noise.fork(query)[rows]
            old, base = best[rows], images[rows]
            new = self.change(old, base, self.window(query, images), own) if query else self.start(base, own)
            with torch.no_grad(), noise_for(model, own.fork("defense")):
                logits = model(new.view(-1, *x.shape[1:]))
            gain, success = self.judge(logits, y[rows])
            better = (gain > value[rows]) | success
            best[rows] = torch.where(batch_view(better, new), new, old)
            value[rows] = torch.where(better, gain, value[rows])
            rows = rows[~success]
            if not len(rows):
                break
        return best.view_as(x)

    def judge(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss to increase (B,), minus infinity for logits that are not finite, and success (B,)."""
        sign = -1 if self.targeted else 1
        finite = logits.isfinite().all(1)
        margin, gain = OBJECTIVES["margin"](logits, y), OBJECTIVES[self.loss](logits, y)
        return (sign * gain).masked_fill(~finite, -torch.inf), (sign * margin > 0) & finite

    def window(self, query: int, x: Tensor) -> tuple[int, int]:
        """Height and width of the window in query number `query`."""
        position = query * 10_000 / self.queries if self.rescale_schedule else query
        height, width = x.shape[-2:]
        area = self.p_init / 2 ** sum(position > h for h in HALVINGS) * height * width
        side = round(math.sqrt(area))
        if self.norm != "linf":
            side = max(side, 3) // 2 * 2 + 1  # odd, so that the pattern has a centre
        if side > height:  # flat images: as many pixels, in fewer rows
            return height, min(width, max(1, round(area / height)))
        return max(1, side), min(width, max(1, side))

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """First candidate: vertical stripes of +-eps (linf), or a grid of patterns with random signs (l2, l1)."""
        if self.norm == "linf":
            stripes = signs(noise.uniform(x[:, :, :1]))
            return (x + self.eps * stripes).clamp_(0, 1)
        side = max(1, max(x.shape[-2:]) // 5)
        h, w = min(side, x.shape[-2]), min(side, x.shape[-1])
        tile, (rows, columns) = self.tile(h, w, x), (x.shape[-2] // h, x.shape[-1] // w)
        top, left = (x.shape[-2] - rows * h) // 2, (x.shape[-1] - columns * w) // 2
        choice = signs(noise.uniform(x.new_empty(*x.shape[:2], rows, columns)))
        d = torch.zeros_like(x)
        d[:, :, top : top + rows * h, left : left + columns * w] = torch.kron(choice, tile)
        return self.fill(d, x)

    def change(self, best: Tensor, x: Tensor, window: tuple[int, int], noise: Noise) -> Tensor:
        """Next candidate: `best` with a changed window; all tensors (B, C, H, W)."""
        (b, c), (h, w) = x.shape[:2], window
        u = noise.uniform(x.new_empty(b, 5 + c))
        sign = signs(u[:, 5:])[:, :, None, None]
        inside = place(u[:, 0], u[:, 1], window, x)
        if self.norm == "linf":
            return torch.where(self.mask(inside, x), (x + self.eps * sign).clamp_(0, 1), best)
        # Sampling distribution of Algorithm 3: the mass of a second window moves into the first.
        p = 2 if self.norm == "l2" else 1
        d = best - x
        second = self.mask(place(u[:, 2], u[:, 3], window, x), x)
        first = self.mask(inside, x)
        tile = self.tile(h, w, x).expand(b, h, w)
        if h == w:
            tile = torch.where(u[:, 4, None, None] < 0.5, tile.mT, tile)
        flat = inside[:, None].expand(b, c, h * w)
        old = d.flatten(2).gather(2, flat)
        length = torch.linalg.vector_norm
        new = sign[..., 0] * tile.flatten(1)[:, None]
        new = new + old / divisor(length(old, p, 2, keepdim=True))
        unused = (self.eps**p - NORMS[self.norm].distance(d) ** p).clamp_min(0)
        freed = (d * (first | second)).abs().pow(p).sum((2, 3))
        mass = (unused[:, None] / c + freed) ** (1 / p)
        if self.norm == "l1":
            mass = mass * c  # longer than the ball allows; the projection keeps the largest entries
        new = new * (mass / divisor(length(new, p, 2)))[..., None]
        d = d.masked_fill(second, 0).flatten(2).scatter(2, flat, new).view_as(x)
        return self.fill(d, x)

    def tile(self, height: int, width: int, like: Tensor) -> Tensor:
        """Pattern (height, width) of length 1."""
        eta = pattern(height, width, like, 4 if self.norm == "l1" else 2)
        length: Tensor = torch.linalg.vector_norm(eta, 1 if self.norm == "l1" else 2)
        return eta / length

    def fill(self, d: Tensor, x: Tensor) -> Tensor:
        """Candidate from `d`: scaled to the sphere and clipped to the box (l2), or projected on ball and box (l1)."""
        if self.norm == "l1":
            d = project_l1_box(d, x, self.eps)
        else:
            d = d * batch_view(self.eps / divisor(NORMS[self.norm].distance(d)), x)
        return (x + d).clamp_(0, 1)

    def mask(self, inside: Tensor, x: Tensor) -> Tensor:
        """Mask (B, 1, H, W) of the flat positions `inside` (B, h w)."""
        blank = torch.zeros(len(x), x.shape[-2] * x.shape[-1], dtype=torch.bool, device=x.device)
        return blank.scatter_(1, inside, True).view(len(x), 1, *x.shape[-2:])


def signs(u: Tensor) -> Tensor:
    """Random signs, -1 or 1, from uniform numbers."""
    return torch.where(u < 0.5, -1.0, 1.0).to(u.dtype)


def place(u: Tensor, v: Tensor, window: tuple[int, int], x: Tensor) -> Tensor:
    """Flat positions (B, h w) of a window with a random corner, from uniform numbers `u` and `v` (B,)."""
    (height, width), (h, w) = x.shape[-2:], window
    i = (u * (height - h + 1)).long()[:, None, None] + torch.arange(h, device=x.device)[:, None]
    j = (v * (width - w + 1)).long()[:, None, None] + torch.arange(w, device=x.device)
    return (i * width + j).flatten(1)
