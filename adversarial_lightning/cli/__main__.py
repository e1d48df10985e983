"""``python -m adversarial_lightning.cli``: the command ``lightning``."""

import sys

from adversarial_lightning.cli import main

sys.exit(main())
