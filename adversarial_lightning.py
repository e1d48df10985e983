"""Entry of the console script: puts this clone first on the path, where top-level names like `train` are ours."""

import os
import sys


def main() -> None:
    """``lightning …``: the command line of train.py."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import train

    train.run()
