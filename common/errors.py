"""The error for mistakes that the user can correct."""


class UserError(ValueError):
    """A mistake that the user can correct; scripts print it as one line on stderr and exit with code 2."""
