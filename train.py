"""How is anything run? ``python train.py fit|validate|test|predict --config …``, the same as ``lightning …``."""

import sys

try:
    from adversarial_lightning.cli import (
        main,
        train,  # noqa: F401  (is everything installed?)
    )
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}. Install the project first: make install, then .venv/bin/python train.py ...")

if __name__ == "__main__":
    sys.exit(main())
