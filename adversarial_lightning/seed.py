"""Global seed of a run: the one number that all keyed randomness starts from. Imports nothing of the project."""

import os


def global_seed() -> int:
    """Seed that Lightning's `seed_everything` has set (it leaves it in PL_GLOBAL_SEED), 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
