"""DifferenceSums of pieces of two tensors -> ValueDifference, the reported statistics."""

from collections.abc import Iterable
from functools import reduce
from math import isfinite, sqrt
from operator import add
from typing import Final

from msgspec import Struct

EDGES: Final = tuple(10.0**exponent for exponent in range(-12, 4))
"""Lower edges of the histogram's decades; values below the first edge have a bin of their own."""
DECADES: Final = len(EDGES) + 1
_DIGITS: Final = 9
"""Significant digits of results: few enough not to depend on how the work was divided."""


class Tolerances(Struct, frozen=True):
    """Two values are close if abs(new - old) <= atol + rtol * abs(old)."""

    rtol: float = 0.0
    atol: float = 0.0


class Partial(Struct, frozen=True):
    """Counts and sums over some elements; `+` merges those of two pieces."""

    elements: int = 0
    changed: int = 0
    far: int = 0
    """Number of changed elements that are not close."""
    finite: int = 0
    """Number of elements that are finite on both sides; sums are over these."""
    largest: float = 0.0
    """Largest absolute difference."""
    distance: float = 0.0
    """Sum of the absolute differences."""
    squares: float = 0.0
    """Sum of the squared differences."""
    old_squares: float = 0.0
    """Sum of the squares of the old elements."""
    new_squares: float = 0.0
    """Sum of the squares of the new elements."""
    product: float = 0.0
    """Dot product of the old and the new elements."""
    old_nonfinite: int = 0
    new_nonfinite: int = 0
    narrowed: bool = True
    """Whether the old elements, cast to the new dtype, equal the new ones."""
    widened: bool = True
    """Whether the new elements, cast to the old dtype, equal the old ones."""
    histogram: tuple[int, ...] = (0,) * DECADES
    """Number of changed elements, finite on both sides, by decade of the absolute difference."""

    def __add__(self, other: "Partial") -> "Partial":
        """Return the sums over the elements of both."""
        return Partial(
            elements=self.elements + other.elements,
            changed=self.changed + other.changed,
            far=self.far + other.far,
            finite=self.finite + other.finite,
            largest=max(self.largest, other.largest),
            distance=self.distance + other.distance,
            squares=self.squares + other.squares,
            old_squares=self.old_squares + other.old_squares,
            new_squares=self.new_squares + other.new_squares,
            product=self.product + other.product,
            old_nonfinite=self.old_nonfinite + other.old_nonfinite,
            new_nonfinite=self.new_nonfinite + other.new_nonfinite,
            narrowed=self.narrowed and other.narrowed,
            widened=self.widened and other.widened,
            histogram=tuple(map(add, self.histogram, other.histogram)),
        )


class Figures(Struct, frozen=True):
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


def total(partials: Iterable[Partial], cast: bool) -> Figures:  # noqa: FBT001
    """Return the ValueDifference of a tensor from the sums of its pieces."""
    whole = reduce(add, partials, Partial())
    return Figures(
        elements=whole.elements,
        changed=whole.changed,
        max_abs=_rounded(whole.largest) if whole.finite else None,
        mean_abs=_rounded(whole.distance / whole.finite) if whole.finite else None,
        relative_l2=_ratio(sqrt(whole.squares), sqrt(whole.old_squares)),
        cosine=_cosine(whole),
        close=not whole.far,
        rounding=cast and (whole.narrowed or whole.widened),
        old_nonfinite=whole.old_nonfinite,
        new_nonfinite=whole.new_nonfinite,
        histogram=whole.histogram,
    )


def _cosine(whole: Partial) -> float | None:
    found = _ratio(whole.product, sqrt(whole.old_squares) * sqrt(whole.new_squares))
    return None if found is None else min(1.0, max(-1.0, found))


def _ratio(part: float, whole: float) -> float | None:
    return _rounded(part / whole) if whole else None


def _rounded(figure: float) -> float | None:
    """Return `value` rounded to the significant digits; None if it is not finite."""
    return float(f"{figure:.{_DIGITS}g}") if isfinite(figure) else None
