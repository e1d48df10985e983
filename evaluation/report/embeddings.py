"""Pictures of a network's embeddings, of its codes beside a prior, and of its loss surfaces.

The same functions draw them for reports, for TensorBoard during training and in `reproduce`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from adversarial_lightning.attacks import PGD, Attack, Noise, threat
from adversarial_lightning.attacks.core.gradient import ce, input_gradient
from adversarial_lightning.attacks.core.norms import NORMS
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import CLEAN, threat_models
from adversarial_lightning.evaluation.outcomes.subset import random_numbers
from adversarial_lightning.evaluation.report import formatting
from adversarial_lightning.evaluation.report.figures import LINES, MUTED, STYLE, STYLES, Array, ReportFigure
from adversarial_lightning.evaluation.report.subject import class_name
from adversarial_lightning.networks.eval_mode import device_of, frozen_eval
from adversarial_lightning.networks.features import encoder_of, outputs

Prior = Callable[[Noise, Tensor], Tensor]  # independent draws in the shape of codes
_SURFACES, _STEPS = 3, 21  # images, and points along each axis
_ROWS = 100  # images in a forward pass
_IMAGES, _LEAST = 300, 30  # of the t-SNE of a report
_ATTACK_STEPS = 20
_MOST_CODES = 20  # coordinates drawn


def encode(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (n, k) of images `x` (n, C, H, W) from the encoder of `network`, and predicted classes (n,).

    Raises ValueError for a network without a part called encoder.
    """
    name = encoder_of(network)
    if name is None:
        raise UserError(f"codes need a network with an encoder: {type(network).__name__} has none")
    codes, predictions = [], []
    with frozen_eval(network), torch.no_grad():
        for batch in x.split(_ROWS):
            logits, found = outputs(network, batch, [name])
            codes.append(found[name].flatten(1))
            predictions.append(logits.argmax(1))
    return torch.cat(codes), torch.cat(predictions)


def flatten(codes: Sequence[Tensor], joint: bool) -> list[Array]:
    """Points (n, 2) by t-SNE (perplexity 30) of groups of `codes` (n, k), each with its own fit or `joint` in one.

    Rows that are not finite become points that are not.
    """
    from sklearn.manifold import TSNE  # takes a second to import

    groups = [torch.cat(list(codes))] if joint else list(codes)
    found = []
    for group in groups:
        rows = group.isfinite().all(1).cpu().numpy()
        points = np.full((len(group), 2), np.nan)
        if rows.sum() > 4:
            perplexity = min(30.0, (rows.sum() - 1) / 3)
            fit = TSNE(perplexity=perplexity, init="pca" if group.shape[1] > 1 else "random", random_state=0)
            points[rows] = fit.fit_transform(group.cpu().numpy()[rows])
        found.append(points)
    return np.split(np.concatenate(found), np.cumsum([len(part) for part in codes])[:-1])


def draw_embeddings(rows: Sequence[Sequence[tuple[str, Array, Tensor, Tensor]]]) -> Figure:
    """Draw rows of plots: title, points (n, 2), labels (n,) as colours, predictions (n,): triangles are wrong."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(rows[0]), 3.4 * len(rows)), dpi=120, layout="constrained")
        subplots = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for plot, (title, points, label, prediction) in zip(
            subplots.flat, (p for row in rows for p in row), strict=True
        ):
            for wrong, marker in ((False, "."), (True, "v")):
                chosen = ((prediction != label) == wrong).cpu().numpy()
                colours = label.cpu().numpy()[chosen] % 10
                plot.scatter(*points[chosen].T, c=colours, marker=marker, s=7, cmap="tab10", vmin=0, vmax=9)
            plot.set(title=title, xticks=[], yticks=[])
    _clear(figure)
    return figure


def draw_codes(versions: Mapping[str, Tensor]) -> Figure:
    """Draw histograms of each coordinate of `versions` of codes (n, k); the last version are draws of a prior."""
    drawn = {name: codes.cpu().numpy() for name, codes in versions.items()}
    *ours, _ = drawn.values()
    k = min(ours[0].shape[1], _MOST_CODES)
    with mpl.rc_context(STYLE):
        columns = min(k, 4)
        figure = Figure(figsize=(2.0 * columns + 1, 1.5 * -(-k // columns) + 0.5), dpi=120, layout="constrained")
        subplots = figure.subplots(-(-k // columns), columns, squeeze=False).flat
        for j, plot in enumerate(subplots):
            plot.set_visible(j < k)
            if j >= k:
                continue
            bounds = np.concatenate([codes[:, j][np.isfinite(codes[:, j])] for codes in ours] + [np.array([-3.0, 3.0])])
            edges = np.linspace(bounds.min(), bounds.max(), 31)
            for i, (name, codes) in enumerate(drawn.items()):
                counts = np.histogram(codes[:, j], edges)[0] / len(codes)
                style: Any = {"color": MUTED if i == len(ours) else LINES[i], "ls": STYLES[i % len(STYLES)], "lw": 1.2}
                plot.stairs(100 * counts, edges, label=name, **style)
            plot.set_title(f"coordinate {j + 1}", fontsize=7)
            plot.tick_params(labelsize=6)
        figure.legend(*subplots[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    _clear(figure)
    return figure


def surface(model: nn.Module, x: Tensor, y: Tensor, r: Tensor, steps: Tensor, clip: bool = False) -> Tensor:
    """Cross-entropy (B, n, n) at ``x + a sign(gradient) + b r`` for a (first) and b (second) in `steps` (n,)."""
    with frozen_eval(model):
        sign = input_gradient(model, x, y, ce)[0].sign()
        with torch.no_grad():
            rows = []
            for a in steps:
                points = x[None] + a * sign[None] + steps.view(-1, *[1] * x.ndim) * r[None]
                points = points.clamp(0, 1) if clip else points
                losses = ce(model(points.flatten(0, 1)), y.repeat(len(steps)))
                rows.append(losses.view(len(steps), len(x)).T)
    return torch.stack(rows, 1)


def rademacher(x: Tensor, noise: Noise) -> Tensor:
    """Random sign for every value of `x`."""
    return torch.where(noise.fork("surface").uniform(x) < 0.5, -1.0, 1.0)


def draw_surfaces(steps: Tensor, rows: Mapping[str, Sequence[Any]], titles: Sequence[str]) -> Figure:
    """Draw surfaces (n, n) over `steps` (n,) along the gradient's sign and random signs, one row for each name."""
    a, b = torch.meshgrid(steps.cpu(), steps.cpu(), indexing="ij")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3 * len(titles), 3 * len(rows)), dpi=100)
        for i, (name, surfaces) in enumerate(rows.items()):
            for j, (title, values) in enumerate(zip(titles, surfaces, strict=True)):
                plot: Any = figure.add_subplot(len(rows), len(titles), i * len(titles) + j + 1, projection="3d")
                heights = np.asarray(values)
                plot.plot_surface(a.numpy(), b.numpy(), heights, cmap="viridis", rasterized=True)
                plot.set_title(f"{name}, {title}" if name else title, fontsize=8)
                plot.set_xlabel("gradient's sign", fontsize=8)
                plot.set_ylabel("random signs", fontsize=8)
                plot.tick_params(labelsize=7)
    _clear(figure)
    return figure


def views(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Noise,
    attack: Attack,
    *,
    prior: Prior = Noise.normal,
    prior_name: str = "N(0, 1)",
    names: Sequence[str] | None = None,
) -> list[ReportFigure]:
    """Draw embeddings and loss surfaces of `model` for images `x` (n, C, H, W), `y` (n,), clean and under `attack`.

    Loss surfaces are of the first three images, with steps along signs up to the radius of the attack (linf, l2 or l1;
    ValueError for another norm). A model with an encoder also gets the t-SNE of its codes, and their histograms beside
    draws of the `prior`. `names` are those of the classes.
    """
    norm, eps = threat(attack)
    values = x[0].numel()
    lengths = {"linf": 1, "l2": values**0.5, "l1": values}  # of a vector of signs
    if norm not in lengths or eps is None:
        raise UserError(f"{type(attack).__name__} has no ball of linf, l2 or l1: choose an attack that has one")
    drawn = []
    if encoder_of(model) is not None:
        parts = torch.arange(len(x), device=x.device).split(_ROWS)
        attacked = torch.cat([attack(model, x[rows], y[rows], noise.fork("views")[rows]) for rows in parts])
        codes, predictions = zip(*(encode(model, version) for version in (x, attacked)), strict=True)
        named = list(zip(("clean", "attacked"), flatten(codes, joint=True), predictions, strict=True))
        how = f"{type(attack).__name__} at {formatting.threat(norm, eps, symbols=True)}, {len(x)} images"
        wrong = [f"{name}: {float((p != y).double().mean()):.0%} misclassified" for name, _, p in named]
        caption = f"Embeddings by t-SNE, one fit for both ({how}); colours: true classes, triangles: misclassified."
        figure = draw_embeddings([[(name, points, y, p) for name, points, p in named]])
        drawn.append(ReportFigure("embedding/tsne", figure, caption, f"{caption} {'; '.join(wrong)}."))
        caption = f"Coordinates of the embedding, clean and attacked ({how}), beside {prior_name}; images, %."
        draws = prior(noise.fork("prior"), codes[0])
        figure = draw_codes({"clean": codes[0], "attacked": codes[1], prior_name: draws})
        means = [
            f"{name}: mean {float(c.mean()):.3g}, deviation {float(c.std()):.3g}"
            for c, (name, *_) in zip(codes, named, strict=True)
        ]
        drawn.append(ReportFigure("embedding/prior", figure, caption, f"{caption} {'; '.join(means)}."))
    few = torch.arange(min(_SURFACES, len(x)), device=x.device)
    steps = eps / lengths[norm] * torch.linspace(-1, 1, _STEPS, device=x.device)
    found = surface(model, x[few], y[few], rademacher(x[few], noise[few]), steps)
    titles = [f"image {i + 1}, class {class_name(int(label), names)}" for i, label in enumerate(y[few])]
    caption = "Cross-entropy round images, along the gradient's sign and along random signs, not clipped to [0, 1]."
    middle = _STEPS // 2
    said = [
        f"{t}: {float(s[middle, middle]):.3g} at the image, up to {float(s.max()):.3g}"
        for t, s in zip(titles, found, strict=True)
    ]
    figure = draw_surfaces(steps, {"": found.cpu().tolist()}, titles)
    return [*drawn, ReportFigure("loss_surface", figure, caption, f"{caption} {'; '.join(said)}.")]


def network_figures(
    campaign: Campaign, model: nn.Module, allowance: float, names: Sequence[str] | None = None
) -> tuple[list[ReportFigure], list[str]]:
    """Draw the `views` of a finished campaign: a few of its images under PGD at its first linf, l2 or l1 threat model.

    The number of images follows from `allowance` seconds and the recorded time of a forward pass; sentences say what is
    missing.
    """
    model_of_threat = next(((norm, eps) for norm, eps in threat_models(campaign.suite) if norm in NORMS and eps), None)
    if model_of_threat is None:
        return [], []
    norm, eps = model_of_threat
    forward = float(np.mean(campaign.table(campaign.runs(CLEAN)[0])["seconds"]))
    passes = _SURFACES * _STEPS**2 * forward
    n = min(_IMAGES, campaign.n, int(max(0.0, allowance - passes) / (3 * _ATTACK_STEPS * forward + 1e-12)))
    if n < min(_LEAST, campaign.n):
        return [], ["Embeddings and loss surfaces are left out: they would take too long."]
    x, y, index = campaign.batch(random_numbers(campaign.samples, n, campaign.sample_seed), device_of(model))
    noise = Noise.keyed(campaign.seed, index)
    attack = PGD(norm=norm, eps=eps, steps=_ATTACK_STEPS)  # type: ignore[arg-type]
    try:
        return views(model, x, y, noise, attack, names=names), []
    except RuntimeError as error:  # other attacks may work on a model without gradients
        return [], [f"Embeddings and loss surfaces are left out: {str(error).splitlines()[0]}"]


def _clear(figure: Figure) -> None:
    """Make the background transparent."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
