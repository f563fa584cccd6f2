"""Tests run with jaxtyping's import hook: a tensor of the wrong shape or dtype fails at once."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float, as in PEP 484


def install_type_checks(*packages):
    """Check the annotations of these packages at every call; they must not have been imported yet."""
    install_import_hook(packages, f'{__name__}.check_types')
