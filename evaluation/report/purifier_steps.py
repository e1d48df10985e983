"""Pictures of the steps of a purifier on adversarial images (Srinivasan et al. 2021, Fig. 3)."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.defenses import Purified
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN
from adversarial_lightning.evaluation.report.figures import LINES, STYLE, ReportFigure
from adversarial_lightning.evaluation.report.pictures import EACH, Example, Gallery
from adversarial_lightning.evaluation.report.subject import class_name
from adversarial_lightning.networks.eval_mode import device_of, frozen_eval

_COLUMNS = 6  # states shown of each image


def probabilities(classifier: nn.Module, states: Sequence[Tensor]) -> Tensor:
    """Probabilities (S, B, K) of `classifier` for each of the `states` (B, C, H, W)."""
    return torch.stack([classifier(state.clamp(0, 1)).softmax(1) for state in states])


def steps(
    campaign: Campaign, model: nn.Module, galleries: Sequence[Gallery], allowance: float
) -> tuple[list[ReportFigure], list[str]]:
    """Draw, for each of the `galleries`, the steps of the purifier of `model` on its adversarial images.

    They are of one draw of the defender, another than the evaluation's. There is none for a model without a purifier;
    sentences say what is missing because it would take more than `allowance` seconds.
    """
    found = [m for m in model.modules() if isinstance(m, Purified)]
    chosen = [(gallery, [e for examples in gallery.rows.values() for e in examples]) for gallery in galleries]
    if not found:
        return [], []
    defended = found[0]
    forward = float(np.mean(campaign.table(campaign.runs(CLEAN)[0])["seconds"]))
    if 2 * forward * sum(min(EACH, len(examples)) for _, examples in chosen) > allowance:
        return [], ["The purifier's steps are left out: they would take too long."]
    drawn = []
    for gallery, examples in chosen:
        few = examples[:: -(-len(examples) // EACH)]
        index = torch.tensor([e.outcome.index for e in few])
        device = device_of(model)
        x = torch.stack([e.attacked for e in few]).to(device)
        noise = Noise.keyed(campaign.seed, index.to(device)).fork("steps")
        with frozen_eval(model), noise_for(model, noise), torch.no_grad():
            states = list(defended.purifier.states(x))
            p = probabilities(defended.classifier, states).cpu()
        drawn.append(draw_steps(f"steps/{gallery.title}", gallery.heading, few, [s.cpu() for s in states], p))
    return drawn, []


def draw_steps(
    name: str, heading: str, examples: Sequence[Example], states: Sequence[Tensor], p: Tensor
) -> ReportFigure:
    """Draw the `states` of images in rows, with predictions below and probabilities `p` beside them."""
    last = len(states) - 1
    columns = np.unique(np.linspace(0, last, min(_COLUMNS, len(states))).round().astype(int))
    y = torch.tensor([e.outcome.label for e in examples])
    own = p.gather(2, y.expand(len(p), -1)[..., None])[..., 0]
    other = p.scatter(2, y.expand(len(p), -1)[..., None], 0.0).amax(2)
    said = p.argmax(2)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.1 * len(columns) + 2.4, 1.3 * len(examples) + 0.5), dpi=120, layout="constrained")
        figure.patch.set_alpha(0)
        subplots = figure.subplots(
            len(examples), len(columns) + 1, squeeze=False, width_ratios=[1.0] * len(columns) + [1.8]
        )
        for i, example in enumerate(examples):
            for plot, step in zip(subplots[i], columns, strict=False):  # the last plot is for the probabilities
                image = states[step][i].clamp(0, 1)
                image = image if len(image) in (1, 3) else image.mean(0, keepdim=True)
                plot.imshow(image.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=1)
                plot.set(xticks=[], yticks=[])
                plot.grid(False)
                right = int(said[step, i]) == example.outcome.label
                plot.set_xlabel(f"{class_name(int(said[step, i]), example.names)} {'✓' if right else '✗'}", labelpad=1)
                if i == 0:
                    plot.set_title("attacked" if step == 0 else f"step {step}" if last > 1 else "purified", fontsize=8)
            subplots[i, 0].set_ylabel(f"class {example.true}")
            axes = subplots[i, -1]
            axes.patch.set_alpha(0)
            axes.plot(own[:, i], "o-", color=LINES[0], ms=2.5, lw=1.2, label="true class")
            axes.plot(other[:, i], "s--", color=LINES[1], ms=2.5, lw=1.2, label="best other class")
            axes.set(ylim=(-0.05, 1.05), xticks=[0, last])
        subplots[0, -1].legend(fontsize=6, frameon=False)
        subplots[-1, -1].set_xlabel("step")
    caption = f"Steps of the purifier on adversarial images ({heading}), with the predictions of the classifier alone."
    ends = "; ".join(
        f"sample {e.outcome.index}, class {e.true}: "
        f"predicted {class_name(int(said[0, i]), e.names)}, after step {last} {class_name(int(said[-1, i]), e.names)}"
        for i, e in enumerate(examples)
    )
    return ReportFigure(name, figure, caption, f"{caption} {ends}.")
