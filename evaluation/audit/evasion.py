"""Points that are tried against a classifier and its detector together."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise
from adversarial_lightning.attacks.core.gradient import OBJECTIVES, input_gradient
from adversarial_lightning.attacks.core.norms import NORMS, batch_view, distance
from adversarial_lightning.attacks.core.threshold import flagged
from adversarial_lightning.evaluation.audit.own_attacks import SparseAscent, SparseSearch, random_point
from adversarial_lightning.evaluation.audit.samples import AuditSamples, Connected
from adversarial_lightning.evaluation.audit.substitute import network
from adversarial_lightning.evaluation.outcomes.outcome import defender_noise, detector_scores

Shape = Callable[[Tensor], Tensor]  # changes (B, C, H, W) -> changes of a kind that a score may not see
_GRIDS = 16, 255, 256
_SHARES = 1.0, 0.6, 0.3  # of the radius: smaller changes are seen less


@dataclass
class Evasion:
    """Points that were tried against classifier and detector in the ball of a claim.

    `best` is for each sample the misclassified point (B, C, H, W) of the lowest score, `score` (B,) that score,
    infinite where none was found; `past` (B,) says which samples were got past both, `by` how many each experiment.
    `seen` holds images and their scores, first the samples, then what breaks the classifier alone.
    """

    samples: AuditSamples
    norm: str
    eps: float
    theta: float
    by: dict[str, int] = field(default_factory=dict)
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        x = self.samples.x
        self.best, self.score = x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.past = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.seen.append((x, self.scores(x)))

    def scores(self, z: Tensor) -> Tensor:
        """Scores (B,) as an evaluation records them; infinite where they are no numbers."""
        found = []
        for part, points in zip(self.samples.parts(), z.split(self.samples.rows), strict=True):
            noise = defender_noise(part.seed, part.index, 1)[0].fork("detector")
            found.append(detector_scores(part.judge.detector, points, noise))  # type: ignore[arg-type]
        return torch.cat(found).to(z.device)

    def offer(self, z: Tensor, label: str) -> None:
        """Judge the points `z`."""
        z = z.detach().clamp(0, 1)
        scores = self.scores(z)
        wrong = self.samples.wrong(z) & self.samples.inside(z, self.norm, self.eps)
        past = wrong & ~flagged(scores, self.theta)
        self.by[label] = self.by.get(label, 0) + int((past & ~self.past).sum())
        self.past |= past
        better = wrong & (scores < self.score)
        self.best, self.score = (
            torch.where(batch_view(better, z), z, self.best),
            torch.where(better, scores, self.score),
        )
        self.seen.append((z, scores))


def shapes(x: Tensor) -> dict[str, Shape]:
    """Kinds of changes that some scores do not see: of images `x`, which are the samples themselves."""
    flat = x.flatten(1)
    grey = ((x > 0) & (x < 1)).to(x)
    basis = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh
    basis = basis[: max(1, min(len(basis), len(flat) // 3, flat.shape[1] // 2))]

    def smooth(d: Tensor) -> Tensor:
        half = F.avg_pool2d(d, 2, ceil_mode=True, count_include_pad=False)
        return F.interpolate(half, size=d.shape[2:], mode="nearest")

    return {
        "any change": lambda d: d,
        "low frequencies": smooth,
        "high frequencies": lambda d: d - smooth(d),
        "grey values only": lambda d: d * grey,
        "the same brightness": lambda d: d - batch_view(d.flatten(1).mean(1), d),
        "the images' subspace": lambda d: (d.flatten(1) @ basis.T @ basis).view_as(d),
    }


def stand_ins(evasion: Evasion, victim: nn.Module, steps: int) -> None:
    """Offer what breaks the classifier alone, by changes of every shape and size, also on grids of stored images."""
    samples, norm = evasion.samples, evasion.norm
    if norm == "l0":
        for share in _SHARES:
            eps = max(1.0, float(int(share * evasion.eps)))
            for attack in (SparseAscent(eps, steps), SparseSearch(eps, 5 * steps)):
                points = samples.points(attack, f"D2 {share}", victim)
                for kind, z in {"any change": points, "grids": (points * _GRIDS[0]).round() / _GRIDS[0]}.items():
                    evasion.offer(torch.where(points != samples.x, z, samples.x), kind)
        return
    for kind, shape in shapes(samples.x).items():
        for share in _SHARES if kind == "any change" else _SHARES[:2]:
            d = shaped_ascent(samples, victim, norm, share * evasion.eps, steps, shape, f"D2 {kind} {share}")
            evasion.offer(samples.x + d, kind)
            for grid in _GRIDS if kind in ("any change", "grey values only") else ():
                evasion.offer(samples.x + (d * grid).trunc() / grid, "grids")


def shaped_ascent(
    samples: AuditSamples, victim: nn.Module, norm: str, eps: float, steps: int, shape: Shape, name: str
) -> Tensor:
    """Change (B, C, H, W) of a `shape`, in the ball and the box, that raises the margin of `victim` most."""
    x, y, geometry = samples.x, samples.y, NORMS[norm]
    kept, most = torch.zeros_like(x), x.new_full((len(y),), -torch.inf)
    d = shape(geometry.random(x, eps, samples.noise(name)))
    for step in range(steps + 1):
        length = distance(norm, d).to(x).clamp_min(1e-12)
        d = (x + d * batch_view((eps / length).clamp(max=1), d)).clamp(0, 1) - x
        gradient, lead = input_gradient(Connected(victim), x + d, y, OBJECTIVES["margin"], samples.eot_samples)
        lead = lead if lead.shape == y.shape else lead.new_full(y.shape, torch.inf)
        better = lead > most
        kept, most = torch.where(batch_view(better, d), d, kept), torch.maximum(lead, most)
        size = 0.25 * eps * (1 - step / (steps + 1)) + 0.01 * eps
        d = shape(geometry.project(d + size * geometry.steepest(shape(gradient), x), eps))
    return kept


def search(evasion: Evasion, queries: int) -> None:
    """Random search on the score, from the misclassified points of the lowest score: parts go back, move or shrink."""
    samples, x = evasion.samples, evasion.samples.x
    noise = samples.noise("D2 search")
    for query in range(queries):
        d = evasion.best - x
        patch = noise.uniform(x) < noise.uniform(x[:, :1, :1, :1]) ** 2  # from few values to nearly all
        kind = query % 4
        if kind == 0:
            d = torch.where(patch, 0, d)
        elif kind == 1:
            d = d * (1 - 0.3 * noise.uniform(x[:, :1, :1, :1]))
        elif kind == 2:
            other = random_point(evasion.norm, x, evasion.eps, noise, surface=True) - x
            d = torch.where(patch, other, d)
        else:
            d = (_GRIDS[query % 3] * d).round() / _GRIDS[query % 3]
        evasion.offer(x + into_ball(evasion.norm, d, evasion.eps), "search on the score")
        evasion.seen.pop()  # the surrogate learns from what was made on purpose


def into_ball(norm: str, d: Tensor, eps: float) -> Tensor:
    """Changes made to fit the ball; in l0 they are left as they are."""
    return d if norm == "l0" else NORMS[norm].project(d, eps)


class StandIn(nn.Module):
    """A classifier with a network as its detector, which flags where that network's first output is positive."""

    def __init__(self, classifier: nn.Module, surrogate: nn.Module) -> None:
        super().__init__()
        self.classifier, self.detector = classifier, surrogate

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits


class Scorer(nn.Module):
    """`net` as a detector with threshold 0."""

    theta = 0.0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def score(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)[:, 0]
        return scores


def fitted(evasion: Evasion, steps: int) -> Scorer:
    """A network fitted to the scores seen so far, above or below the threshold."""
    x, scores = (torch.cat(column) for column in zip(*evasion.seen, strict=True))
    finite = scores[scores.isfinite()]
    scale = float(finite.std()) if len(finite) > 1 else 1.0
    wanted = ((scores - evasion.theta) / (scale or 1.0)).nan_to_num(nan=3, posinf=3).clamp(-3, 3).to(x)
    order = Noise.keyed(evasion.samples.seed, torch.zeros(1, dtype=torch.int64)).fork("fitted score")
    with torch.enable_grad():
        net = network(tuple(x.shape[1:]), 1, order).to(x)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(steps):
            rows = (order.uniform(torch.zeros(1, 64))[0] * len(x)).long().to(x.device)
            optimizer.zero_grad()
            F.mse_loss(net(x[rows])[:, 0], wanted[rows]).backward()
            optimizer.step()
    return Scorer(net.eval().requires_grad_(False))
