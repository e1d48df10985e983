"""What did the papers claim, and does it hold? Their figures, and the tools that record rows."""

__all__: list[str] = []
