"""Samples that the audit attacks; a separate forward pass verifies success."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import Attack, Noise, noise_for, threat
from adversarial_lightning.attacks.core.norms import displacement, distance, outside_ball
from adversarial_lightning.evaluation.audit.own_attacks import random_point
from adversarial_lightning.evaluation.outcomes.outcome import checked, defender_noise, exact, predict
from adversarial_lightning.networks.eval_mode import frozen_eval


class Connected(nn.Module):
    """`model` with 0 * x added to its logits.

    Where they have no graph, or one that does not begin at x, autograd then returns zeros instead of raising an error.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + 0 * x.flatten(1).sum(1)[:, None] if x.requires_grad else logits


@dataclass(frozen=True)
class AuditSamples:
    """Images `x` (B, C, H, W) with labels `y` and sample numbers `index` (B,), and the model under attack.

    They represent the share `of` of all samples. An image is judged in `draws` draws of the defender, an attack
    averages `eot_samples` gradients: both 1 for deterministic models. `rows` samples are attacked at once. A check of
    them passes where surely no more than the share `excludes` of all samples is affected. Whether an image is
    misclassified `untouched` decides, the model without a memory, where there is one.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    seed: int
    of: float = 1.0
    draws: int = 1
    eot_samples: int = 1
    rows: int = 128
    excludes: float = 0.07
    untouched: nn.Module | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor | slice) -> "AuditSamples":
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows])

    @property
    def judge(self) -> nn.Module:
        """The model that decides what is misclassified."""
        return self.model if self.untouched is None else self.untouched

    def parts(self) -> Iterator["AuditSamples"]:
        """The samples in batches of at most `rows`."""
        for start in range(0, len(self), self.rows):
            yield self[slice(start, start + self.rows)]

    def noise(self, name: str) -> Noise:
        """The attacker's streams for the attack called `name`."""
        return Noise.keyed(self.seed, self.index).fork("audit").fork(name)

    def points(self, attack: Attack, name: str, model: nn.Module | None = None) -> Tensor:
        """Images that `attack` returns, made on the model, or on another `model` (transfer)."""
        victim = Connected(self.model if model is None else model)
        found = [checked(attack(victim, p.x, p.y, p.noise(name)), p.x, name)[0] for p in self.parts()]
        return torch.cat(found) if found else self.x

    def deciding(self, x: Tensor, score: bool = True) -> Tensor:
        """Logits (B, K) of one batch in eval mode and the defender's first draw; with a graph where gradients are on.

        A last column holds the `score` of a detector that the model carries.
        """
        gradients, detector = torch.is_grad_enabled(), getattr(self.model, "detector", None)
        noise = defender_noise(self.seed, self.index, 1)[0]
        with frozen_eval(self.model), torch.set_grad_enabled(gradients), noise_for(self.model, noise):
            logits: Tensor = Connected(self.model)(x)
            if not score or not hasattr(detector, "score"):
                return logits
            scores = detector.score(x)  # type: ignore[union-attr]
            return torch.cat([logits, (scores + 0 * x.flatten(1).sum(1))[:, None]], 1)

    def logits(self, z: Tensor) -> Tensor:
        """Logits of all samples at `z`, without gradients."""
        with torch.no_grad():
            rows = [p.deciding(q, score=False) for p, q in zip(self.parts(), z.split(self.rows), strict=False)]
        return torch.cat(rows).detach() if rows else z.new_zeros(0, 1)  # a model may switch gradients on

    def numbers(self, rows: Tensor) -> tuple[int, ...]:
        """Numbers of the samples of a mask (B,)."""
        return tuple(self.index[rows].tolist())

    def moved(self, norm: str, eps: float, noise: Noise) -> "AuditSamples":
        """The samples, each at a random point of the ball around it."""
        return replace(self, x=random_point(norm, self.x, eps, noise, surface=False))

    def wrong(self, z: Tensor) -> Tensor:
        """Mask (B,) of the rows of `z` that are misclassified in at least two thirds of the draws."""
        misclassified = []
        for part, points in zip(self.parts(), z.split(self.rows), strict=False):
            _, right = predict(self.judge, points, part.y, defender_noise(self.seed, part.index, self.draws))
            count = torch.stack([(right >> d) & 1 for d in range(self.draws)]).sum(0)
            misclassified.append(3 * count <= self.draws)
        return torch.cat(misclassified) if misclassified else self.y.bool()

    def broken_by(self, attack: Attack, name: str, model: nn.Module | None = None) -> Tensor:
        """Mask (B,) of the samples that `attack` breaks, inside its ball."""
        z = self.points(attack, name, model)
        norm, eps = threat(attack)
        wrong = self.wrong(z)
        return wrong if norm is None or eps is None else wrong & self.inside(z, norm, eps, attack.kind)

    def inside(self, z: Tensor, norm: str, eps: float, kind: str = "budget") -> Tensor:
        """Mask (B,) of the rows of `z` that lie in the ball around the samples."""
        lengths = distance(norm, displacement(z, self.x)).to(z.device)
        near: Tensor = ~outside_ball(lengths, eps, kind)
        return near


def resolution(outputs: Tensor) -> float:
    """Relative rounding of `outputs`: of float32 or, where all of them are such numbers, of half types."""
    for dtype in (torch.bfloat16, torch.float16):
        if bool((outputs.to(dtype).to(outputs.dtype) == outputs).all()):
            return float(torch.finfo(dtype).eps)
    return float(torch.finfo(torch.float32).eps)


def allowed(logits: Tensor) -> float:
    """Share of their length by which `logits` may differ because of rounding."""
    return max(1e-3, 4 * resolution(logits))


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Share of their length by which rows of logits (B, K) differ; infinite where they are no numbers."""
    size = one.norm(dim=1)
    shares: Tensor = torch.where(size > 0, (other - one).norm(dim=1) / size, (other != one).any(1).float())
    return shares.nan_to_num(torch.inf)


def differs(one: Tensor, other: Tensor) -> Tensor:
    """Mask (B,) of rows whose logits (B, K) differ by more than rounding."""
    mask: Tensor = apart(one, other) > allowed(one)
    return mask


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Context that computes like `evaluate_batch`, in exact float32, and restores torch's global generators."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(exact())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="the model seems to return probabilities")  # a check says so
        yield
