"""Report for TensorBoard: one event file in the folder of the evaluation."""

from collections.abc import Mapping
from pathlib import Path

from adversarial_lightning.checkpoints.files import writing
from adversarial_lightning.evaluation.report.successes import Array

_SUFFIX = ".evaluation"  # distinguishes the report's file from those of a training run in the same folder


def write_events(folder: Path, scalars: Mapping[str, float], text: str, images: Mapping[str, Array]) -> None:
    """Write numbers, a text (markdown) and images (uint8 (H, W, 3)) by tag; an earlier such file is removed."""
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    for earlier in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
        earlier.unlink(missing_ok=True)
    with writing(folder), SummaryWriter(str(folder), filename_suffix=_SUFFIX) as writer:
        writer.add_text("headline", text)
        for tag, value in scalars.items():
            writer.add_scalar(tag, value)
        for tag, pixels in images.items():
            writer.add_image(tag, pixels, dataformats="HWC")
