"""The packaged configurations: experiments, suites, and the parts that several of them share."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
