"""``lightning compare``: several evaluations in one table."""

from pathlib import Path

from jsonargparse import ArgumentParser

from adversarial_lightning.cli.messages import exits
from adversarial_lightning.evaluation import write_comparison


def options() -> ArgumentParser:
    """The options of ``lightning compare``."""
    parser = ArgumentParser(prog="lightning compare", exit_on_error=False)
    parser.add_argument("folders", type=Path, nargs="+", help="--output folders of finished evaluations")
    parser.add_argument(
        "--output", type=Path | None, help="also write it there: a .md or .html file, or a folder for both"
    )
    return parser


def compare(argv: list[str]) -> int:
    """Print several evaluations side by side."""
    settings = options().parse_args(argv)
    print(write_comparison(settings.folders, settings.output), end="")
    return 0


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 an error of the user's."""
    return exits(lambda: compare(argv))
