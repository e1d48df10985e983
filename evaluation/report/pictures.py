"""Pictures of a few samples, easy to break, hard to break and robust, attacked again as in the campaign."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from adversarial_lightning.attacks import threat
from adversarial_lightning.attacks.core.base import Kind
from adversarial_lightning.evaluation.campaign.plan import AttackRun, Campaign
from adversarial_lightning.evaluation.outcomes.outcome import Outcome, evaluate_batch, outside
from adversarial_lightning.evaluation.report.figures import uri
from adversarial_lightning.evaluation.report.formatting import SYMBOLS
from adversarial_lightning.evaluation.report.subject import class_name
from adversarial_lightning.evaluation.report.successes import Array, Successes
from adversarial_lightning.networks.eval_mode import device_of

EACH = 4  # examples of a kind in a gallery
_SIDE = 160  # larger images are made smaller
_SMALL = 64  # pixels of smaller images are shown as squares
_LETTER = 7  # at most so many pixels a letter of a caption
CAUSES = (
    "The cause is not known. Possible ones: rounding, which depends on the shape of the batch, the device and the "
    "precision (here float32); an attack or a model that draws from torch's global generator, or another source of "
    "random numbers than the one it is given; a model, data or code that changed since."
)


@dataclass(frozen=True)
class Example:
    """One sample: its clean and its attacked image (C, H, W) in [0, 1], and the outcome.

    `eps` is the radius of the threat model that it illustrates, None without one. `names` are those of the classes.
    """

    clean: Tensor
    attacked: Tensor
    outcome: Outcome
    attack: str
    norm: str
    kind: Kind
    eps: float | None = None
    names: Sequence[str] | None = None

    @property
    def true(self) -> str:
        """True class."""
        return class_name(self.outcome.label, self.names)

    @property
    def said(self) -> str:
        """Predicted class of the attacked image."""
        return class_name(self.outcome.adversarial, self.names)

    @property
    def size(self) -> str:
        """Length of the perturbation in the norm of the attack."""
        length = f"{SYMBOLS[self.norm]} {getattr(self.outcome, self.norm):.3g}"
        return f"{length}, outside the ball" if self.outside else length

    @property
    def outside(self) -> bool:
        """True where the attacked image lies outside the ball, as for a robust sample under a minimum-norm attack."""
        return outside(self.outcome, self.norm, self.eps, self.kind)

    @property
    def stretch(self) -> float:
        """Factor by which the perturbation is multiplied in the picture."""
        return 0.5 / max(float((self.attacked - self.clean).abs().max()), 1e-12)

    @property
    def small(self) -> bool:
        return max(self.clean.shape[-2:]) < _SMALL

    def alt(self, what: str) -> str:
        """Alt text of one of the `images`."""
        o = self.outcome
        texts = {
            "clean": f"class {self.true}",
            "adversarial": f"predicted class {self.said}",
            "perturbation": self.size,
        }
        return f"sample {o.index}, {what}: {texts[what]}"

    def images(self) -> dict[str, Image.Image]:
        """Clean image, adversarial image and perturbation around grey."""
        shown = 0.5 + self.stretch * (self.attacked - self.clean)
        return {"clean": _image(self.clean), "adversarial": _image(self.attacked), "perturbation": _image(shown)}

    def sources(self) -> dict[str, str]:
        """Data URIs of the `images`."""
        return {what: uri(_png(image), "png") for what, image in self.images().items()}


@dataclass(frozen=True)
class Gallery:
    """Examples of one threat model, in rows that have a name."""

    title: str
    heading: str
    rows: Mapping[str, Sequence[Example]]

    def pixels(self) -> Array:
        """All examples in one picture, uint8 (H, W, 3), one column each; captions: true class, > predicted class."""
        columns = []
        for example in (e for examples in self.rows.values() for e in examples):
            images = example.images().values()
            side = max(
                next(iter(images)).width, 56, *(_LETTER * len(text) for text in (example.true, f"> {example.said}"))
            )
            tiles = [image.resize((side, round(side * image.height / image.width)), 0) for image in images]
            strip = Image.new("RGB", (side, 24))
            ImageDraw.Draw(strip).text((1, 0), f"{example.true}\n> {example.said}", fill=(255, 255, 255))
            columns.append(np.concatenate([np.asarray(tile.convert("RGB")) for tile in (*tiles, strip)]))
        height = max(len(column) for column in columns)
        padded = [np.pad(column, ((2, height - len(column) + 2), (2, 2), (0, 0))) for column in columns]
        return np.concatenate(padded, axis=1)


def pick(case: Successes) -> dict[str, list[int]]:
    """Positions in `case` of samples to show: the broken ones that were easiest and hardest, and robust ones."""
    down = np.flatnonzero(case.run >= 0)
    down = down[np.argsort(case.cost[down], kind="stable")]
    robust = np.flatnonzero(case.run < 0)[: EACH if case.eps is not None else 0]  # else there is nothing to show
    if len(down) <= EACH:
        rows = {"broken": down, "robust": robust}
    else:
        hard = down[: EACH - 1 : -1][:EACH]
        rows = {"easiest to break": down[:EACH], "hardest to break": hard, "robust": robust}
    return {name: positions.tolist() for name, positions in rows.items() if len(positions)}


def galleries(
    campaign: Campaign,
    model: nn.Module,
    cases: Sequence[Successes],
    allowance: float,
    names: Sequence[str] | None = None,
) -> tuple[list[Gallery], list[str]]:
    """Attack the picked samples of all `cases` again, in one batch for each run; sentences say what is missing.

    `model` is that of the campaign, on any device; `names` are those of the classes. Where the runs together would take
    more than `allowance` seconds by their recorded times, the most expensive ones are left out.
    """
    rows = [pick(case) for case in cases]
    wanted: dict[tuple[str, int], dict[int, AttackRun]] = {}
    cost: dict[tuple[str, int], float] = {}
    for case, row in zip(cases, rows, strict=True):
        for position in (p for positions in row.values() for p in positions):
            run, seconds = case.runs[case.shown(position)], case.seconds[case.shown(position)]
            wanted.setdefault((run.name, run.restart), {})[int(case.sample[position])] = run
            cost[run.name, run.restart] = seconds * len(wanted[run.name, run.restart])
    notes = []
    for key in sorted(cost, key=lambda key: -cost[key]):
        if sum(cost.values()) > allowance:
            left_out = len(wanted.pop(key))
            notes.append(
                f"{left_out} examples under {key[0]} are left out: they would take about {cost.pop(key):.0f} s."
            )
    made = {key: _again(campaign, model, runs) for key, runs in wanted.items()}
    found, differs = [], 0
    for case, row in zip(cases, rows, strict=True):
        gallery: dict[str, list[Example]] = {}
        for name, positions in row.items():
            for position in positions:
                run = case.runs[case.shown(position)]
                example = made.get((run.name, run.restart), {}).get(int(case.sample[position]))
                if example is not None:
                    example = replace(example, eps=case.eps, names=names)
                    differs += not example.outside and example.outcome.adversarial != case.adversarial[position]
                    gallery.setdefault(name, []).append(example)
        if gallery:
            found.append(Gallery(case.title, case.heading, gallery))
    if differs:
        notes.append(f"{differs} of these images differ from the recorded outcome. {CAUSES}")
    return found, notes


def _again(campaign: Campaign, model: nn.Module, runs: Mapping[int, AttackRun]) -> dict[int, Example]:
    """Attack the samples as the campaign did; examples by sample number."""
    numbers = sorted(runs)
    run = runs[numbers[0]]
    x, y, index = campaign.batch(numbers, device_of(model))
    outcomes, attacked = evaluate_batch(
        model,
        run.attack,
        x,
        y,
        index,
        seed=campaign.seed,
        name=run.name,
        restart=run.restart,
        clean=y,
        draws=campaign.draws,
    )
    attack = campaign.suite[run.name]
    rows = zip(outcomes, x.cpu(), attacked.cpu(), strict=True)
    return {o.index: Example(clean, z, o, run.name, str(threat(attack)[0]), attack.kind) for o, clean, z in rows}


def _image(x: Tensor) -> Image.Image:
    """Pillow image of (C, H, W) in [0, 1]; channels are averaged unless they are one or three."""
    x = x if x.shape[0] in (1, 3) else x.mean(0, keepdim=True)
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((_SIDE, _SIDE))
    return image


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
