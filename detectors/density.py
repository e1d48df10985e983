"""Kernel densities of codes by class: exact, in chunks, differentiable."""

import math

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError

_VALUES = 2**20  # distances held at once: a chunk stays near the cache, whatever the size of the bank


def log_density(queries: Tensor, points: Tensor, sigma: float | Tensor, most: int = _VALUES) -> Tensor:
    """Log density log (1/n) sum_i (pi sigma^2)^(-D/2) exp(-||q - p_i||^2 / sigma^2), (B,).

    For `queries` q (B, D) and `points` p (n, D): Li et al. 2021 (ER-Classifier), Appendix B.2, normalised;
    scikit-learn's h is sigma / sqrt(2). Every term of the sum is there: trees lose whole nats where h is small and D
    is not. `most` limits the distances held at once; it changes no more than rounding. Distances are expanded round
    the mean of the points, smooth where one is 0.
    """
    centre = points.mean(0)
    q, p = (queries - centre) / sigma, (points - centre) / sigma
    lengths = p.square().sum(1)
    found = q.new_empty(len(q))  # small tensors kept from chunk to chunk would make holes in the heap
    chunk = max(1, most // len(p))
    for start in range(0, len(q), chunk):
        part = q[start : start + chunk]
        exponents = torch.addmm(lengths, part, p.T, beta=-1, alpha=2)
        found[start : start + chunk] = exponents.logsumexp(1) - part.square().sum(1)
    width = torch.as_tensor(sigma, dtype=torch.float64)
    return found - float(math.log(len(p)) + p.shape[1] * (0.5 * math.log(math.pi) + width.log()))


class ClassDensities(nn.Module):
    """Log density of codes among the codes of one class: (B, D) and classes (B,) -> (B,).

    Args:
        sigma: width of the kernel; none: the best of `choose_sigma`, found by `fit`.
        standardise: scale every coordinate to mean 0 and standard deviation 1 of the fitted codes; a constant one is
            only moved.
    """

    points: Tensor
    starts: Tensor
    width: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, sigma: float | None, standardise: bool) -> None:
        super().__init__()
        if sigma is not None and not 0 < sigma < math.inf:
            raise UserError(f"the width of a kernel density must be above 0 and finite, not {sigma}")
        self.sigma, self.standardise = sigma, standardise
        self.curve: dict[float, float] = {}
        for name in ("points", "starts", "width", "centre", "scale"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64 if name == "starts" else None))

    def fit(self, codes: Tensor, labels: Tensor, classes: int) -> None:
        """Store `codes` (n, D) by their true `labels` (n,), 0 to `classes` - 1, and choose the width.

        Raises ValueError for codes that are not finite and for a class without codes.
        """
        if not bool(codes.isfinite().all()):
            raise UserError(f"{int((~codes.isfinite()).any(1).sum())} training codes are not finite: check the network")
        counts = labels.bincount(minlength=classes)
        if len(empty := (counts == 0).nonzero()):
            raise UserError(
                f"class {int(empty[0])} has no training codes: its density is needed for images of that class"
            )
        centre, scale = codes.double().mean(0), codes.double().std(0, unbiased=False)
        if not self.standardise:
            centre, scale = torch.zeros_like(centre), torch.ones_like(scale)
        scale = torch.where(scale > 1e-6 * centre.abs() + torch.finfo(codes.dtype).tiny, scale, 1.0)
        self.centre, self.scale = centre.to(codes), scale.to(codes)
        codes = (codes - self.centre) / self.scale
        order = labels.argsort(stable=True)
        self.points, self.starts = codes[order], torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        sigma = self.sigma
        if sigma is None:
            self.curve = choose_sigma(codes, labels)
            sigma = max(self.curve, key=lambda width: self.curve[width])
        self.width = torch.tensor(sigma).to(codes)

    def forward(self, codes: Tensor, classes: Tensor) -> Tensor:
        codes = (codes - self.centre) / self.scale
        bounds = self.starts.tolist()
        rows, found = [], []
        for t in classes.unique().tolist():
            rows.append((classes == t).nonzero()[:, 0])
            found.append(log_density(codes[rows[-1]], self.points[bounds[t] : bounds[t + 1]], self.width))
        return torch.cat(found)[torch.cat(rows).argsort()] if found else codes.sum(1)


def choose_sigma(codes: Tensor, labels: Tensor) -> dict[float, float]:
    """Mean log density of a held-out fifth of `codes` in their own classes, by sigma: higher is better.

    sigma is sqrt(2) times the median distance to the nearest neighbour times 1/8 ... 16, and on by doubling until it
    gets worse (in few dimensions neighbours are near); the paper says nothing of it.
    Raises ValueError where more than half of the codes coincide with others.
    """
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0)).to(labels.device)
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    held_out[order[: len(codes) // 5]] = True
    pairs = [(codes[held_out & (labels == t)], codes[~held_out & (labels == t)]) for t in labels.unique()]
    pairs = [(queries, points) for queries, points in pairs if len(queries) and len(points)]
    if not pairs:
        raise UserError(f"{len(codes)} codes are too few to choose the width of a kernel density: set sigma")
    nearest = [torch.cdist(part, p).amin(1) for q, p in pairs for part in q.split(max(1, _VALUES // len(p)))]
    median = float(torch.cat(nearest).median())
    if not median > 0:
        raise UserError("half of the training codes coincide with others, which gives no width: set sigma")
    curve: dict[float, float] = {}
    for k in range(-3, 40):
        width = math.sqrt(2) * median * 2.0**k
        curve[width] = float(torch.cat([log_density(q, p, width) for q, p in pairs]).mean())
        if k >= 4 and curve[width] < max(curve.values()):
            break
    return curve
