"""Bytes of two blocks, also of different dtypes -> DifferenceSums, with numpy."""

from math import isfinite
from operator import sub
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptool.model import DTYPE_BITS
from ckptool.values.difference.sums import (
    DECADE_EDGES,
    DifferenceSums,
    Tolerances,
    sum_equal_elements,
)
from ckptool.values.number_arrays import (
    NumberArray,
    cast_numbers,
    compute_dot_product,
    count_true,
    is_floating_point,
    view_numbers,
    widen_numbers,
)

_Mask = NDArray[np.bool_]
_Distances = NDArray[np.float64]
_NUMBER_NBYTES: Final = 8
_CACHE_LINE_NBYTES: Final = 64
_MAX_COPIED_SHARE: Final = 1 / 32
"""Share of the distances below which it is faster to copy them than to compare all of them again.
"""


class BlockMeasurer:
    """Measures blocks of at most `block_elements` elements, in memory that it uses again."""

    block_elements: Final = 1 << 16
    """Elements of each side: enough for the arithmetic to outweigh the calls, and few enough for
    the CPU cache."""

    def __init__(self) -> None:
        self._buffers = _allocate_aligned(3, self.block_elements)
        self._mask = np.empty(self.block_elements, np.bool_)

    def measure_blocks(
        self,
        old: bytearray,
        new: bytearray,
        old_dtype: str,
        new_dtype: str,
        tolerances: Tolerances,
    ) -> DifferenceSums:
        """Measure two blocks with equal numbers of elements, of dtypes in `NUMBER_DTYPES`."""
        with np.errstate(all="ignore"):
            return self._measure_blocks(old, new, old_dtype, new_dtype, tolerances)

    def _measure_blocks(
        self,
        old: bytearray,
        new: bytearray,
        old_dtype: str,
        new_dtype: str,
        tolerances: Tolerances,
    ) -> DifferenceSums:
        """Measure them, where numpy warns of nothing: infinities and NaN are expected."""
        a, b = view_numbers(old, old_dtype), view_numbers(new, new_dtype)
        old_buffer, new_buffer, cast_buffer = self._buffers[:, : a.size]
        mask = self._mask[: a.size]
        x = widen_numbers(a, old_buffer)
        dtypes_differ = old_dtype != new_dtype
        if not dtypes_differ and old == new:
            return _measure_equal(x)
        y = widen_numbers(b, new_buffer)
        if x.dtype != y.dtype:
            x, y = x + 0j, y + 0j
        squared_norms = compute_dot_product(x, x), compute_dot_product(y, y)
        all_finite = all(map(isfinite, squared_norms))
        equals_cast_to_new = dtypes_differ and _equals_cast(a, b, new_dtype, y, cast_buffer)
        equals_cast_to_old = dtypes_differ and _equals_cast(b, a, old_dtype, x, cast_buffer)
        changed_nonfinite = 0
        finite_counts = (x.size,) * 3
        if not all_finite:
            finite_x, finite_y = np.isfinite(x), np.isfinite(y)
            both_finite = finite_x & finite_y
            finite_counts = count_true(finite_x), count_true(finite_y), count_true(both_finite)
            if dtypes_differ:
                _compare_values(x, y, mask)
            else:
                _compare_bits(old, new, old_dtype, mask)
            changed_nonfinite = count_true(mask & ~both_finite)
            x, y = np.where(both_finite, x, 0), np.where(both_finite, y, 0)
            squared_norms = compute_dot_product(x, x), compute_dot_product(y, y)
        # From here on, what did not change and what is not finite has a distance of 0: elements
        # at a distance above 0 are counted without asking which of them changed.
        dot_product = compute_dot_product(x, y)
        distances = _compute_distances(x, y, new_buffer)
        max_abs = float(distances.max())
        changed_finite = nonzero_count = count_true(np.greater(distances, 0, out=mask))
        if nonzero_count < x.size and not dtypes_differ:
            # Different bits may be one number: 0.0 and -0.0, large integers as float64.
            changed = count_true(_compare_bits(old, new, old_dtype, mask))
            changed_finite = changed - changed_nonfinite
        beyond_tolerance = (
            _count_beyond(distances, x, tolerances, mask)
            if tolerances.rtol or tolerances.atol
            else nonzero_count
        )
        return DifferenceSums(
            elements=x.size,
            changed=changed_finite + changed_nonfinite,
            beyond_tolerance=changed_nonfinite + beyond_tolerance,
            finite=finite_counts[2],
            max_abs=max_abs,
            sum_abs=float(distances.sum()),
            sum_squared=compute_dot_product(distances, distances),
            old_squared_norm=squared_norms[0],
            new_squared_norm=squared_norms[1],
            dot_product=dot_product,
            old_nonfinite=x.size - finite_counts[0],
            new_nonfinite=x.size - finite_counts[1],
            equals_cast_to_new=equals_cast_to_new,
            equals_cast_to_old=equals_cast_to_old,
            histogram=_count_decades(distances, max_abs, nonzero_count, changed_finite, mask),
        )


def _allocate_aligned(count: int, size: int) -> _Distances:
    """Return `count` rows of `size` numbers that begin at a line of the CPU cache.

    Vectors that cross lines take twice as long to subtract.
    """
    memory = np.empty(count * size * _NUMBER_NBYTES + _CACHE_LINE_NBYTES, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_NBYTES
    numbers = memory[start : start + count * size * _NUMBER_NBYTES].view(np.float64)
    return numbers.reshape(count, size)


def _measure_equal(x: NumberArray) -> DifferenceSums:
    squared_norm = compute_dot_product(x, x)
    if isfinite(squared_norm):
        return sum_equal_elements(x.size, x.size, squared_norm)
    finite = x[np.isfinite(x)]
    return sum_equal_elements(x.size, finite.size, compute_dot_product(finite, finite))


def _compare_bits(old: bytearray, new: bytearray, dtype: str, mask: _Mask) -> _Mask:
    """Return in `mask` which elements of one dtype have different bits."""
    word_nbytes = min(8, DTYPE_BITS[dtype] // 8)
    first, second = (np.frombuffer(data, f"u{word_nbytes}") for data in (old, new))
    if first.size == mask.size:
        np.not_equal(first, second, out=mask)
    else:  # complex128: two words for each element
        np.not_equal(first, second).reshape(mask.size, -1).any(axis=1, out=mask)
    return mask


def _compare_values(x: NumberArray, y: NumberArray, mask: _Mask) -> None:
    """Set in `mask` which values differ; NaN equals NaN, as its bits depend on the dtype."""
    np.not_equal(x, y, out=mask)
    mask &= ~(np.isnan(x) & np.isnan(y))


def _equals_cast(
    a: NumberArray, b: NumberArray, dtype: str, y: NumberArray, buffer: _Distances
) -> bool:
    """Whether `a`, cast to the dtype of `b`, equals `b`, whose widened elements are `y`.

    False unless both are floating point, or both complex.
    """
    are_complex = a.dtype.kind == b.dtype.kind == "c"
    if not are_complex and not (is_floating_point(a) and is_floating_point(b)):
        return False
    return np.array_equal(widen_numbers(cast_numbers(a, dtype), buffer), y, equal_nan=True)


def _compute_distances(x: NumberArray, y: NumberArray, buffer: _Distances) -> _Distances:
    """Return the absolute differences in `buffer`, which may be the memory of `y`."""
    difference: NDArray[Any] = x - y if x.dtype.kind == "c" else np.subtract(x, y, out=buffer)
    np.absolute(difference, out=buffer)
    return buffer


def _count_beyond(
    distances: _Distances, old: NumberArray, tolerances: Tolerances, mask: _Mask
) -> int:
    """Return the number of elements that are not close."""
    limits = tolerances.atol + tolerances.rtol * np.absolute(old)
    return distances.size - count_true(np.less_equal(distances, limits, out=mask))


def _count_decades(
    distances: _Distances,
    max_distance: float,
    nonzero_count: int,
    changed_count: int,
    mask: _Mask,
) -> tuple[int, ...]:
    """Return the number of changed elements by decade of their distance.

    Edges are compared from the largest distance down until every distance above 0 is counted. Once
    few are left, the others are no longer looked at.
    """
    counts_from_edge = [0]
    counted = 0
    for edge in reversed(DECADE_EDGES):
        count = counts_from_edge[-1]
        if edge <= max_distance and count < nonzero_count:
            is_small = np.less(distances, edge, out=mask[: distances.size])
            below_count = count_true(is_small)
            count = counted + distances.size - below_count
            if below_count < distances.size * _MAX_COPIED_SHARE:
                distances, counted = distances[is_small], count
        counts_from_edge.append(count)
    counts_from_edge.append(changed_count)
    return tuple(map(sub, counts_from_edge[:0:-1], counts_from_edge[-2::-1]))
