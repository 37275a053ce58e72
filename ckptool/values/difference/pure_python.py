"""Bytes of two blocks of one dtype -> DifferenceSums, with the standard library."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from math import dist, hypot, isfinite
from operator import mul
from typing import Final

from ckptool.model import DTYPE_BITS
from ckptool.values.difference.sums import DECADE_COUNT, DECADE_EDGES, DifferenceSums, Tolerances
from ckptool.values.numbers import decode_numbers
from ckptool.values.strides import WORD_CODES

_STRIP_ELEMENTS: Final = 4096
"""Elements per strip; strips with equal bytes take a faster path."""
_SECONDS_PER_EQUAL_ELEMENT: Final = 8e-8
_SECONDS_PER_CHANGED_ELEMENT: Final = 1.5e-6
"""Measured seconds per element, in strips with equal bytes and in the others."""


def estimate_seconds(old: bytes, new: bytes, elements: int) -> float:
    """Return the estimated run time of `measure_blocks`, in seconds."""
    if old == new:
        return elements * _SECONDS_PER_EQUAL_ELEMENT
    element_nbytes = len(old) // elements
    strips = list(_iter_strips(old, new, element_nbytes))
    changed_count = sum(old_strip != new_strip for old_strip, new_strip in strips)
    return elements * (
        _SECONDS_PER_EQUAL_ELEMENT
        + (_SECONDS_PER_CHANGED_ELEMENT - _SECONDS_PER_EQUAL_ELEMENT) * changed_count / len(strips)
    )


def measure_blocks(
    old: bytes, new: bytes, dtype: str, _new_dtype: str, tolerances: Tolerances
) -> DifferenceSums:
    """Measure two blocks of the same dtype, one that `decode_numbers` knows."""
    sums = DifferenceSums()
    for old_strip, new_strip in _iter_strips(old, new, DTYPE_BITS[dtype] // 8):
        sums += (
            _measure_equal(old_strip, dtype)
            if old_strip == new_strip
            else _measure_changed(old_strip, new_strip, dtype, tolerances)
        )
    return sums


def _iter_strips(old: bytes, new: bytes, element_nbytes: int) -> Iterator[tuple[bytes, bytes]]:
    step = _STRIP_ELEMENTS * element_nbytes
    for start in range(0, len(old), step):
        yield old[start : start + step], new[start : start + step]


def _decode(data: bytes, dtype: str) -> tuple[float, ...]:
    numbers = decode_numbers(data, dtype)
    assert numbers is not None
    return numbers


def _measure_equal(data: bytes, dtype: str) -> DifferenceSums:
    numbers = _decode(data, dtype)
    finite = [x for x in numbers if isfinite(x)]
    squares = _square(hypot(*finite))
    nonfinite_count = len(numbers) - len(finite)
    return DifferenceSums(
        elements=len(numbers),
        finite=len(finite),
        old_squared_norm=squares,
        new_squared_norm=squares,
        dot_product=squares,
        old_nonfinite=nonfinite_count,
        new_nonfinite=nonfinite_count,
    )


def _measure_changed(
    old_strip: bytes, new_strip: bytes, dtype: str, tolerances: Tolerances
) -> DifferenceSums:
    old, new = _decode(old_strip, dtype), _decode(new_strip, dtype)
    word_code = WORD_CODES[DTYPE_BITS[dtype] // 8]
    bits = zip(
        memoryview(old_strip).cast(word_code), memoryview(new_strip).cast(word_code), strict=True
    )
    changed_positions = [position for position, (a, b) in enumerate(bits) if a != b]
    pairs = [(old[n], new[n]) for n in changed_positions if isfinite(old[n]) and isfinite(new[n])]
    distances = [abs(float(a) - float(b)) for a, b in pairs]
    close_count = sum(
        distance <= tolerances.atol + tolerances.rtol * abs(a)
        for distance, (a, _) in zip(distances, pairs, strict=True)
    )
    nonfinite_counts = [len(numbers) - sum(map(isfinite, numbers)) for numbers in (old, new)]
    if any(nonfinite_counts):
        finite_pairs = [
            (a, b) for a, b in zip(old, new, strict=True) if isfinite(a) and isfinite(b)
        ]
        old, new = tuple(a for a, _ in finite_pairs), tuple(b for _, b in finite_pairs)
    return DifferenceSums(
        elements=len(old_strip) * 8 // DTYPE_BITS[dtype],
        changed=len(changed_positions),
        beyond_tolerance=len(changed_positions) - close_count,
        finite=len(old),
        max_abs=max(distances, default=0.0),
        sum_abs=sum(distances),
        sum_squared=_square(dist(old, new)),
        old_squared_norm=_square(hypot(*old)),
        new_squared_norm=_square(hypot(*new)),
        dot_product=sum(map(mul, map(float, old), map(float, new))),
        old_nonfinite=nonfinite_counts[0],
        new_nonfinite=nonfinite_counts[1],
        histogram=_count_decades(distances),
    )


def _square(norm: float) -> float:
    return norm * norm  # ** would raise on overflow


def _count_decades(distances: Sequence[float]) -> tuple[int, ...]:
    counts = Counter(bisect_right(DECADE_EDGES, distance) for distance in distances)
    return tuple(counts[decade] for decade in range(DECADE_COUNT))
