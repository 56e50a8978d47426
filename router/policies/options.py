"""Checks of the options that people give to policies: whatever JSON says may arrive here."""

import math
from enum import StrEnum
from typing import TypeVar

from ...errors import ConfigError

ChoiceT = TypeVar("ChoiceT", bound=StrEnum)


def whole_number(option: str, value: object, *, least: int) -> int:
    """Return `value`.

    Raises: ConfigError naming the option, where it is not a whole number of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{option}={value}: expected a whole number, {least} or more")
    return value


def number(option: str, value: object, *, least: float) -> float:
    """Return `value`.

    Raises: ConfigError naming the option, where it is not a finite number of at least `least`.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < math.inf:
        return float(value)
    raise ConfigError(f"{option}={value}: expected a number, {least:g} or more")


def one_of(option: str, value: object, choices: type[ChoiceT]) -> ChoiceT:
    """Return the choice that `value` names.

    Raises: ConfigError naming the option and all choices, where it names none.
    """
    try:
        return choices(str(value))
    except ValueError:
        raise ConfigError(f"{option}={value}: expected {' or '.join(choices)}") from None
