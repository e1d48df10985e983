"""Errors that every room may raise."""


class UserError(ValueError):
    """A mistake of the user's. The message names setting, value and remedy; it is shown without a traceback."""
