"""What is asked for -> refused, where it makes no sense or would be left out without a word."""

from collections.abc import Mapping
from math import isfinite

from ckptool.errors import UsageError


def refuse(given: Mapping[str, bool], reason: str) -> None:
    """Refuse the options that nothing here would read.

    Args:
        given: option -> whether it is given.
        reason: what such an option is for, and the way out.

    Raises:
        UsageError: one of them is given.
    """
    for option, is_given in given.items():
        if is_given:
            raise UsageError(f"{option} {reason}")


def refuse_negative(numbers: Mapping[str, float | None]) -> None:
    """Refuse what is no number, infinite or below zero.

    Raises:
        UsageError: one of them is.
    """
    for option, number in numbers.items():
        if number is not None and not (isfinite(number) and number >= 0):
            raise UsageError(f"{option} {number}: expected a number that is 0 or more")
