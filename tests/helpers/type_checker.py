"""The type checker that tests run with: beartype, for which an int may stand for a float, as PEP 484 has it."""

from beartype import BeartypeConf, beartype

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
