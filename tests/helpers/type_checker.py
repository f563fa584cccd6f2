"""Tests run with jaxtyping's import hook: a tensor of the wrong shape or dtype fails at once."""

import inspect

import jaxtyping
from beartype import BeartypeConf, beartype

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float, as in PEP 484
jaxtyped = jaxtyping.jaxtyped


def install_type_checks(*packages):
    """Check the annotations of these packages at every call; they must not have been imported yet."""
    jaxtyping.jaxtyped = add_checks
    jaxtyping.install_import_hook(packages, f'{__name__}.check_types')


def add_checks(*, typechecker):
    """Return the decorator that the hook adds. Functions without annotations stay as they are, which is faster."""
    decorate = jaxtyped(typechecker=typechecker)
    return lambda thing: decorate(thing) if inspect.isclass(thing) or thing.__annotations__ else thing
