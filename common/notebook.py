"""Whether this is a notebook, where no script may end Python."""

import sys


def in_notebook():
    """Return whether this code runs within Jupyter, Colab or IPython, as with %run; not in a process started there."""
    ipython = sys.modules.get('IPython')
    return ipython is not None and ipython.get_ipython() is not None
