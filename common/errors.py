"""The error that a person can put right."""


class UserError(ValueError):
    """Something the person can put right; scripts print it as one line on stderr and exit with code 2."""
