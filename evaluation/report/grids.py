"""Pictures of targeted attacks: every class towards every other, and with rising confidence (Matyasko 2020)."""

from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.utils import make_grid

from adversarial_lightning.attacks import Attack, HighConfidence, Noise
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN
from adversarial_lightning.evaluation.report.figures import STYLE, ReportFigure
from adversarial_lightning.networks.eval_mode import device_of, frozen_eval

CONFIDENCES = (0.35, 0.6, 0.98)  # the lowest is about the boundary of ten classes
_LEAST, _MOST = 2, 10  # sources, and classes


def caption(text: str, width: int, height: int = 12) -> Tensor:
    """Strip (3, height, width) in [0, 1] with `text` in small white letters on black."""
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).text((1, 0), text, fill=255)
    return torch.from_numpy(np.array(image)).float().div(255).expand(3, -1, -1)


def target_grid(network: nn.Module, attack: Attack, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """Picture (3, H', W'): image i of `x` (N, C, H, W) in row i, attacked towards class j in column j.

    As Fig. 4.2, which shows C&W's images. `attack` is targeted. Under the class y_i the image is shown as it is; an
    attack that failed leaves a blank.
    """
    with frozen_eval(network), torch.no_grad():
        classes = network(x[:1]).shape[1]
    sources, targets = x.repeat_interleave(classes, 0), torch.arange(classes, device=x.device).repeat(len(x))
    own = y.repeat_interleave(classes) == targets
    z = sources.clone()
    noise = Noise.keyed(seed, torch.arange(len(z), device=x.device))
    z[~own] = attack(network, sources[~own], targets[~own], noise[~own])
    failed = ~own & (z == sources).flatten(1).all(1)
    z[failed] = 0
    grid: Tensor = make_grid(z.cpu(), nrow=classes, padding=2, pad_value=0.5)
    return grid


def confidence_grid(
    network: nn.Module, attack: HighConfidence, x: Tensor, y: Tensor, confidences: Sequence[float]
) -> Tensor:
    """Picture (3, H', W'): images `x` (N, C, H, W) in columns, below each attacks of rising confidence.

    As Fig. 4.4, which shows C&W's images.
    The number below each row is the mean confidence of its predictions. The target is that of `attack` at the image.
    """
    scale = max(1, -(-56 // x.shape[-1]))  # small images are enlarged so that the captions fit
    strips = []
    for confidence in (None, *confidences):
        z = x if confidence is None else replace(attack, confidence=confidence)(network, x, y)
        with frozen_eval(network), torch.no_grad():
            reached = float(network(z).softmax(1).amax(1).mean())
        big = z.cpu().expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        row = make_grid(big, nrow=len(x), padding=2, pad_value=0.5)
        text = f"{'images' if confidence is None else f'attacked to {confidence:.0%}'}: confidence {reached:.0%}"
        strips += [row, caption(text, row.shape[2])]
    return torch.cat(strips, 1)


def grids(campaign: Campaign, model: nn.Module, allowance: float) -> tuple[list[ReportFigure], list[str]]:
    """Draw both pictures for a campaign whose suite has the high-confidence attack; sentences say what is missing.

    The first image of each class is attacked, for as many classes as fit into `allowance` seconds by the recorded time
    of that attack.
    """
    named = next(((n, a) for n, a in campaign.suite.items() if isinstance(a, HighConfidence)), None)
    if named is None:
        return [], []
    name, attack = named
    clean = campaign.table(campaign.runs(CLEAN)[0])
    known, position = np.unique(clean["label"], return_index=True)
    device = device_of(model)
    x, y, _ = campaign.batch(clean["index"][position].tolist(), device)
    with frozen_eval(model), torch.no_grad():
        classes = model(x[:1]).shape[1]
    spent = campaign.table(campaign.runs(name)[0])["seconds"]
    if not len(spent):  # every sample is wrong without an attack, so none was attacked
        return [], []
    each = float(np.mean(spent))
    n = min(len(known), int(allowance / ((classes + len(CONFIDENCES)) * each + 1e-12)))
    if n < min(_LEAST, len(known)) or classes > _MOST:
        return [], [f"Images attacked towards every class are left out: {name} would take too long."]
    x, y = x[:n], y[:n]
    confidences = [c for c in CONFIDENCES if c > 1 / classes]
    targeted = replace(attack, confidence=0.95, targeted=True)
    towards = "Images of one class in each row, attacked until the model is 95 % sure of the class of the column; "
    towards += "under its own class an image is shown unchanged, and a failed attack is black."
    rising = "Images, and below them the same images attacked to the confidence that each row states."
    return [
        _drawn("targets", target_grid(model, targeted, x, y, campaign.seed), towards),
        _drawn("confidence", confidence_grid(model, replace(attack, targeted=False), x, y, confidences), rising),
    ], []


def _drawn(name: str, picture: Tensor, said: str) -> ReportFigure:
    """Figure of a picture (3, H, W) in [0, 1] at its own size."""
    height, width = picture.shape[1:]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        axes.set_axis_off()
    return ReportFigure(f"grids/{name}", figure, said, said)
