"""Writes figures of benchmarks to a file and, optionally, to TensorBoard."""

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from adversarial_lightning.evaluation.report.figures import ReportFigure


def keep(figure: Figure, path: Path, tensorboard: Path | None = None) -> None:
    """Write `figure` to the PNG file `path` and, under the name of the file, to the folder `tensorboard`."""
    pixels = ReportFigure(path.stem, figure, "", "").pixels()
    Image.fromarray(pixels).save(path)
    if tensorboard:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        with SummaryWriter(str(tensorboard)) as writer:
            writer.add_image(path.stem, pixels, dataformats="HWC")
