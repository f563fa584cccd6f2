"""The error for mistakes that the user can correct."""


class UserError(ValueError):
    """A mistake that the user can correct; scripts print it as one line on stderr and exit with code 2."""

    def _render_traceback_(self):  # what IPython shows: one line here, too
        return [f'error: {" ".join(str(self).split())}']
