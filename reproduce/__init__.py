"""Programs that reproduce the papers' figures and tables, and record runs in results/."""

__all__: list[str] = []
