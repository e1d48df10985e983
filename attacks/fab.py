"""Fast adaptive boundary attack, FAB (Croce and Hein 2020b, Algorithm 1): projections on the linearised boundary."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.base import Attack, Kind
from adversarial_lightning.attacks.core.best_adversarial import BestAdversarial
from adversarial_lightning.attacks.core.checks import at_least, between, check_choices
from adversarial_lightning.attacks.core.gradient import OBJECTIVES
from adversarial_lightning.attacks.core.noise import Noise
from adversarial_lightning.attacks.core.norms import NORMS, NormName, batch_view, divisor

# Radius of restarts while no adversarial point is known: the authors' values.
START_RADIUS = {
    "linf": 0.3,
    "l2": 1.0,
    "l1": 5.0,
}


def project_plane(z: Tensor, w: Tensor, c: Tensor, norm: NormName) -> Tensor:
    """Shortest step d (in `norm`) with w.d = -c and z + d in [0, 1]; if there is none, the box's nearest corner.

    All entries move against the sign of w and stop at the box: |d_i| = min(t, room_i) in linf, min(t |w_i|, room_i) in
    l2. In l1 entries move one after the other, those with the largest |w_i| first. `z` and `w` are (B, n), `c` (B,).
    """
    w, c = w * torch.where(c < 0, -1, 1)[:, None], c.abs()[:, None]
    slope = w.abs()
    room = torch.where(w > 0, z, 1 - z).masked_fill(w == 0, 0)
    if norm == "l1":
        steep, order = slope.sort(1, descending=True)
        gain = steep * room.gather(1, order)
        before = gain.cumsum(1) - gain
        part = ((c - before) / gain.clamp_min(torch.finfo(z.dtype).tiny)).clamp(0, 1)
        return -w.sign() * room * torch.zeros_like(room).scatter(1, order, part)
    pace = slope if norm == "l2" else (slope > 0).to(slope.dtype)
    wall = room / pace.clamp_min(torch.finfo(z.dtype).tiny)  # the t at which an entry reaches the box
    walls, order = wall.sort(1)
    rate = (slope * pace).gather(1, order)
    ahead = rate.flip(1).cumsum(1).flip(1)  # rate of change of w.d up to the next wall
    gain = (ahead * walls.diff(dim=1, prepend=torch.zeros_like(c))).cumsum(1)  # value of w.d at each wall
    k = (gain < c).sum(1, keepdim=True).clamp_max(z.shape[1] - 1)
    t = walls.gather(1, k) - (gain.gather(1, k) - c) / ahead.gather(1, k).clamp_min(torch.finfo(z.dtype).tiny)
    return -w.sign() * torch.minimum(t * pace, room)


@dataclass(frozen=True)
class FAB(Attack):
    """Projections of iterate and image on the linearised boundary, averaged so that the iterate stays near the image.

    `y` holds targets if targeted; the boundary is then the one between the target and the most likely other class of
    the image, and an iteration takes one backward pass instead of one for each wrong class.

    Args:
        norm: norm to minimise.
        steps: iterations of each run.
        alpha_max: largest weight of the step from the image.
        eta: overshoot over the boundary.
        beta: share of the distance that is kept after a success.
        restarts: runs; the first starts at the image, the others at random points within half the best distance.
        search_steps: steps of the final search between image and result (the reference's AutoAttack leaves it out).
        targeted: `y` holds targets.
    """

    kind: ClassVar[Kind] = "minimum-norm"
    norm: NormName = "linf"
    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    restarts: int = 1
    search_steps: int = 3
    targeted: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        at_least(1, steps=self.steps, restarts=self.restarts, eta=self.eta)
        at_least(0, search_steps=self.search_steps)
        between(0, 1, alpha_max=self.alpha_max, beta=self.beta)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        norm = NORMS[self.norm]
        closest = BestAdversarial(model, x, y, norm.distance, self.targeted)
        with torch.no_grad():
            logits = model(x)
        label = logits.scatter(1, y[:, None], -torch.inf).argmax(1) if self.targeted else y

        for restart in range(self.restarts):
            z = self.begin(x, closest.length, noise.fork(restart)) if restart else x
            for _ in range(self.steps):
                gap, slope = self.boundary(model, z, label, y)
                flat, base, w = z.flatten(1), x.flatten(1), slope.flatten(1)
                from_z = project_plane(flat, w, gap, self.norm)
                from_x = project_plane(base, w, gap + (w * (base - flat)).sum(1), self.norm)
                near, far = norm.distance(from_z), norm.distance(from_x)
                alpha = (near / (near + far).clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(self.alpha_max)[:, None]
                step = (1 - alpha) * (flat + self.eta * from_z) + alpha * (base + self.eta * from_x)
                z = step.clamp(0, 1).view_as(x)
                with torch.no_grad():
                    fooled = closest.update(z, model(z))
                z = torch.where(batch_view(fooled, x), x + self.beta * (z - x), z)
        return self.search(model, closest, y)

    def begin(self, x: Tensor, length: Tensor, noise: Noise) -> Tensor:
        """Random start at half the best distance known, at most half the norm's start radius."""
        norm = NORMS[self.norm]
        d = norm.random(x, 1.0, noise)
        radius = length.clamp_max(START_RADIUS[self.norm]) / 2
        return (x + batch_view(radius / divisor(norm.distance(d)), x) * d).clamp_(0, 1)

    def boundary(self, model: nn.Module, z: Tensor, label: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Value (B,) and gradient (like `z`) of the label's logit minus that of the nearest class.

        The nearest class is the one whose linearised boundary is nearest, or the target `y` if targeted.
        """
        z = z.detach().requires_grad_()
        logits = model(z)
        own = logits.gather(1, label[:, None])[:, 0]
        if self.targeted:
            gap = own - logits.gather(1, y[:, None])[:, 0]
            slope = torch.autograd.grad(gap.sum(), z)[0]
            return gap.detach().nan_to_num(0), slope.nan_to_num_(0, 0, 0)
        classes = logits.shape[1]
        best_gap, best_slope = torch.zeros_like(own), torch.zeros_like(z)
        nearest = torch.full_like(own, torch.inf)
        for k in range(1, classes):
            gap = own - logits.gather(1, ((label + k) % classes)[:, None])[:, 0]
            slope = torch.autograd.grad(gap.sum(), z, retain_graph=k + 1 < classes)[0].nan_to_num_(0, 0, 0)
            distance = gap.detach().abs() / self.dual(slope).clamp_min(torch.finfo(z.dtype).tiny)
            nearer = distance < nearest
            nearest = torch.where(nearer, distance, nearest)
            best_gap = torch.where(nearer, gap.detach(), best_gap)
            best_slope = torch.where(batch_view(nearer, z), slope, best_slope)
        return best_gap.detach(), best_slope

    def dual(self, slope: Tensor) -> Tensor:
        """Length (B,) of each row of `slope` in the dual norm."""
        return NORMS[{"linf": "l1", "l2": "l2", "l1": "linf"}[self.norm]].distance(slope)

    def search(self, model: nn.Module, closest: BestAdversarial, y: Tensor) -> Tensor:
        """Final search of the paper on the segment from the image to the result, by linear interpolation of the margin.

        Each step tries the point 10 % of the way from the interpolated zero of the margin to the result.
        """
        x, result = closest.x, closest.point
        open_rows = closest.found & ~closest.done
        low, high = torch.zeros_like(closest.length), torch.ones_like(closest.length)

        def margin(share: Tensor) -> Tensor:
            z = (x + batch_view(share, x) * (result - x)).clamp(0, 1)
            with torch.no_grad():
                logits = model(z)
            closest.update(z, logits, open_rows)
            value = OBJECTIVES["margin"](logits, y)
            return (-value if self.targeted else value).nan_to_num(0)

        if not self.search_steps:
            return closest.point
        at_low, at_high = margin(low), margin(high)
        for _ in range(self.search_steps):
            root = low + (high - low) * (-at_low / (at_high - at_low).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
            share = root + 0.1 * (high - root)
            value = margin(share)
            low, at_low = torch.where(value > 0, low, share), torch.where(value > 0, at_low, value)
            high, at_high = torch.where(value > 0, share, high), torch.where(value > 0, value, at_high)
        return closest.point
