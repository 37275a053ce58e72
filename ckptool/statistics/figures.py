"""What is measured of two tensors' values, piece by piece, and what people are told of it."""

from collections.abc import Iterable
from functools import reduce
from math import isfinite, sqrt
from operator import add
from typing import Final

from msgspec import Struct

EDGES: Final = tuple(10.0**exponent for exponent in range(-12, 4))
"""Where the decades of the histogram begin; what lies below the first has a count as well."""
DECADES: Final = len(EDGES) + 1
_DIGITS: Final = 9
"""Digits of a figure: few enough that it is the same however the work was divided."""


class Tolerances(Struct, frozen=True):
    """Two numbers are close where they differ by `atol + rtol * abs(old)` at most."""

    rtol: float = 0.0
    atol: float = 0.0


class Partial(Struct, frozen=True):
    """Counts and sums over some elements; those of two pieces add up to those of both."""

    elements: int = 0
    changed: int = 0
    far: int = 0
    """Changed, and not close."""
    finite: int = 0
    """Elements that are finite on both sides: sums are over these."""
    largest: float = 0.0
    distance: float = 0.0
    squares: float = 0.0
    """Of the differences."""
    old_squares: float = 0.0
    new_squares: float = 0.0
    product: float = 0.0
    old_nonfinite: int = 0
    new_nonfinite: int = 0
    narrowed: bool = True
    """Whether the old elements, cast to the new dtype, are the new ones."""
    widened: bool = True
    """Whether the new elements, cast to the old dtype, are the old ones."""
    histogram: tuple[int, ...] = (0,) * DECADES

    def __add__(self, other: "Partial") -> "Partial":
        """Return what is measured of both pieces."""
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
    """How the values of two tensors differ; see `report.ChangeReport` for what each figure is."""

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
    """Return the figures of a tensor from its pieces; `cast`: its two dtypes are not the same."""
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
    """Return the figure, or None where float64 cannot hold it."""
    return float(f"{figure:.{_DIGITS}g}") if isfinite(figure) else None
