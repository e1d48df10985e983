"""How robust is this checkpoint? ``python evaluate.py --checkpoint …``, the same as ``lightning evaluate …``."""

import sys

try:
    from adversarial_lightning.cli import (
        evaluate,  # noqa: F401  (is everything installed?)
        evaluate_main,
    )
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}. Install the project first: make install, then .venv/bin/python evaluate.py ...")

if __name__ == "__main__":
    sys.exit(evaluate_main())
