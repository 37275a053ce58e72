"""Bytes of two blocks of one dtype -> DifferenceSums, with the standard library."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from math import dist, hypot, isfinite
from operator import mul
from typing import Final

from ckptool.model import DTYPE_BITS
from ckptool.values.difference.sums import (
    DECADE_COUNT,
    DECADE_EDGES,
    DifferenceSums,
    Tolerances,
    sum_equal_elements,
)
from ckptool.values.numbers import decode_numbers
from ckptool.values.strides import WORD_CODES

BLOCK_ELEMENTS: Final = 1 << 12
"""Elements of each side in memory at once; blocks with equal bytes take a faster path."""
MAX_ELEMENTS: Final = 1 << 20
"""Elements of all pairs that are measured in about the time of importing torch, 1.5 s, if all of
them differ, and in a twentieth of that if few do."""


def measure_blocks(
    old: bytearray, new: bytearray, dtype: str, _new_dtype: str, tolerances: Tolerances
) -> DifferenceSums:
    """Measure two blocks of the same dtype, one that `decode_numbers` knows."""
    if old == new:
        return _measure_equal(old, dtype)
    return _measure_changed(old, new, dtype, tolerances)


def _decode(data: bytearray, dtype: str) -> tuple[float, ...]:
    numbers = decode_numbers(data, dtype)
    assert numbers is not None
    return numbers


def _measure_equal(data: bytearray, dtype: str) -> DifferenceSums:
    numbers = _decode(data, dtype)
    finite = [x for x in numbers if isfinite(x)]
    return sum_equal_elements(len(numbers), len(finite), _square(hypot(*finite)))


def _measure_changed(
    old_block: bytearray, new_block: bytearray, dtype: str, tolerances: Tolerances
) -> DifferenceSums:
    old, new = _decode(old_block, dtype), _decode(new_block, dtype)
    element_count = len(old)
    word_code = WORD_CODES[DTYPE_BITS[dtype] // 8]
    bits = zip(
        memoryview(old_block).cast(word_code), memoryview(new_block).cast(word_code), strict=True
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
        elements=element_count,
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
