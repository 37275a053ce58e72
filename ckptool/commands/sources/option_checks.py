"""Options -> UsageError: reject options that are invalid or would be ignored."""

from collections.abc import Mapping
from math import isfinite

from ckptool.errors import UsageError


def reject_unused_options(options: Mapping[str, bool], reason: str) -> None:
    """Reject options that would be ignored here.

    Args:
        options: option -> whether it is set.
        reason: end of the message: the option's purpose and the remedy.

    Raises:
        UsageError: one of them is set.
    """
    for option, is_given in options.items():
        if is_given:
            raise UsageError(f"{option} {reason}")


def reject_negative_numbers(numbers: Mapping[str, float | None]) -> None:
    """Reject NaN, infinite and negative numbers; None passes.

    Raises:
        UsageError: for the first such option.
    """
    for option, number in numbers.items():
        if number is not None and not (isfinite(number) and number >= 0):
            raise UsageError(f"{option} {number}: expected a number >= 0")
