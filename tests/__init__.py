"""The run-time type checker of the tests: an int will do where a float is asked for, as everywhere."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
