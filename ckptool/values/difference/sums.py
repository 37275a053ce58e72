"""DifferenceSums of pieces of two tensors -> ValueDifference, the reported statistics."""

from collections.abc import Iterable
from functools import reduce
from math import isfinite, sqrt
from operator import add
from typing import Final

from msgspec import Struct

DECADE_EDGES: Final = tuple(10.0**exponent for exponent in range(-12, 4))
"""Lower edges of the histogram's decades; values below the first edge have a bin of their own."""
DECADE_COUNT: Final = len(DECADE_EDGES) + 1
_SIGNIFICANT_DIGITS: Final = 9
"""Significant digits of results: few enough not to depend on how the work was divided."""


class Tolerances(Struct, frozen=True):
    """Two values are close if abs(new - old) <= atol + rtol * abs(old)."""

    rtol: float = 0.0
    atol: float = 0.0


class DifferenceSums(Struct, frozen=True):
    """Counts and sums over some elements; `+` merges those of two pieces."""

    elements: int = 0
    changed: int = 0
    beyond_tolerance: int = 0
    """Number of changed elements that are not close."""
    finite: int = 0
    """Number of elements that are finite on both sides; sums are over these."""
    max_abs: float = 0.0
    """Largest absolute difference."""
    sum_abs: float = 0.0
    """Sum of the absolute differences."""
    sum_squared: float = 0.0
    """Sum of the squared differences."""
    old_squared_norm: float = 0.0
    """Sum of the squares of the old elements."""
    new_squared_norm: float = 0.0
    """Sum of the squares of the new elements."""
    dot_product: float = 0.0
    """Dot product of the old and the new elements."""
    old_nonfinite: int = 0
    new_nonfinite: int = 0
    equals_cast_to_new: bool = True
    """Whether the old elements, cast to the new dtype, equal the new ones."""
    equals_cast_to_old: bool = True
    """Whether the new elements, cast to the old dtype, equal the old ones."""
    histogram: tuple[int, ...] = (0,) * DECADE_COUNT
    """Number of changed elements, finite on both sides, by decade of the absolute difference."""

    def __add__(self, other: "DifferenceSums") -> "DifferenceSums":
        """Return the sums over the elements of both."""
        return DifferenceSums(
            elements=self.elements + other.elements,
            changed=self.changed + other.changed,
            beyond_tolerance=self.beyond_tolerance + other.beyond_tolerance,
            finite=self.finite + other.finite,
            max_abs=max(self.max_abs, other.max_abs),
            sum_abs=self.sum_abs + other.sum_abs,
            sum_squared=self.sum_squared + other.sum_squared,
            old_squared_norm=self.old_squared_norm + other.old_squared_norm,
            new_squared_norm=self.new_squared_norm + other.new_squared_norm,
            dot_product=self.dot_product + other.dot_product,
            old_nonfinite=self.old_nonfinite + other.old_nonfinite,
            new_nonfinite=self.new_nonfinite + other.new_nonfinite,
            equals_cast_to_new=self.equals_cast_to_new and other.equals_cast_to_new,
            equals_cast_to_old=self.equals_cast_to_old and other.equals_cast_to_old,
            histogram=tuple(map(add, self.histogram, other.histogram)),
        )


def sum_equal_elements(elements: int, finite: int, squared_norm: float) -> DifferenceSums:
    """Return the sums over elements that are equal on both sides."""
    return DifferenceSums(
        elements=elements,
        finite=finite,
        old_squared_norm=squared_norm,
        new_squared_norm=squared_norm,
        dot_product=squared_norm,
        old_nonfinite=elements - finite,
        new_nonfinite=elements - finite,
    )


class ValueDifference(Struct, frozen=True):
    """Statistics of the difference of two tensors; `report.ChangeReport` documents the fields."""

    elements: int
    changed: int
    max_abs: float | None
    mean_abs: float | None
    relative_l2: float | None
    cosine: float | None
    close: bool
    rounding: bool
    old_nonfinite: int
    new_nonfinite: int
    histogram: tuple[int, ...]


def finalize_difference(
    piece_sums: Iterable[DifferenceSums], *, dtypes_differ: bool
) -> ValueDifference:
    """Return the ValueDifference of a tensor from the sums of its pieces.

    If all that changed is NaN or infinite on a side, its statistics are None: those of the other
    elements are 0, which would read as no change.
    """
    sums = reduce(add, piece_sums, DifferenceSums())
    is_measured = bool(sums.finite and (sum(sums.histogram) or not sums.changed))
    norm = sqrt(sums.old_squared_norm)
    return ValueDifference(
        elements=sums.elements,
        changed=sums.changed,
        max_abs=_round_or_none(sums.max_abs) if is_measured else None,
        mean_abs=_round_or_none(sums.sum_abs / sums.finite) if is_measured else None,
        relative_l2=_divide_or_none(sqrt(sums.sum_squared), norm) if is_measured else None,
        cosine=_cosine_similarity(sums) if is_measured else None,
        close=not sums.beyond_tolerance,
        rounding=dtypes_differ and (sums.equals_cast_to_new or sums.equals_cast_to_old),
        old_nonfinite=sums.old_nonfinite,
        new_nonfinite=sums.new_nonfinite,
        histogram=sums.histogram,
    )


def _cosine_similarity(sums: DifferenceSums) -> float | None:
    cosine = _divide_or_none(
        sums.dot_product, sqrt(sums.old_squared_norm) * sqrt(sums.new_squared_norm)
    )
    return None if cosine is None else min(1.0, max(-1.0, cosine))


def _divide_or_none(numerator: float, denominator: float) -> float | None:
    return _round_or_none(numerator / denominator) if denominator else None


def _round_or_none(value: float) -> float | None:
    """Return `value` rounded to the significant digits; None if it is not finite."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if isfinite(value) else None
