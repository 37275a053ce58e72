"""Bytes of two blocks of one dtype -> DifferenceSums, with the standard library."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import dist, hypot, isfinite
from operator import mul
from struct import unpack
from typing import Final

from ckptool.model import BITS
from ckptool.statistics.figures import DECADES, EDGES, Partial, Tolerances
from ckptool.strides import WORD

MEASURED: Final[Mapping[str, str]] = {
    "float64": "d", "float32": "f", "float16": "e", "bfloat16": "f",
    "int64": "q", "int32": "i", "int16": "h", "int8": "b",
    "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B", "bool": "?",
}  # fmt: skip
"""dtype -> its code in the struct module; a bfloat16 is the upper half of a float32."""

_STRIP: Final = 4096
"""Elements per strip; strips with equal bytes take a faster path."""
_SAME: Final = 8e-8
_CHANGED: Final = 1.5e-6
"""Measured seconds per element, in strips with equal bytes and in the others."""


def cost(old: bytes, new: bytes, elements: int) -> float:
    """Return the estimated run time of `measure_blocks`, in seconds."""
    if old == new:
        return elements * _SAME
    word = len(old) // elements
    strips = list(_strips(old, new, word))
    changed = sum(one != other for one, other in strips)
    return elements * (_SAME + (_CHANGED - _SAME) * changed / len(strips))


def measure(old: bytes, new: bytes, dtype: str, _new_dtype: str, tolerances: Tolerances) -> Partial:
    """Measure two blocks of the same dtype, a key of `STRUCT_CODES`."""
    measured = Partial()
    for one, other in _strips(old, new, BITS[dtype] // 8):
        measured += _same(one, dtype) if one == other else _different(one, other, dtype, tolerances)
    return measured


def _strips(old: bytes, new: bytes, word: int) -> Iterator[tuple[bytes, bytes]]:
    step = _STRIP * word
    for start in range(0, len(old), step):
        yield old[start : start + step], new[start : start + step]


def _numbers(data: bytes, dtype: str) -> tuple[float, ...]:
    count = len(data) * 8 // BITS[dtype]
    if dtype == "bfloat16":
        wide = bytearray(4 * count)
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        data = bytes(wide)
    return unpack(f"<{count}{MEASURED[dtype]}", data)


def _same(data: bytes, dtype: str) -> Partial:
    numbers = _numbers(data, dtype)
    finite = [x for x in numbers if isfinite(x)]
    squares = _squared(hypot(*finite))
    lost = len(numbers) - len(finite)
    return Partial(
        elements=len(numbers),
        finite=len(finite),
        old_squares=squares,
        new_squares=squares,
        product=squares,
        old_nonfinite=lost,
        new_nonfinite=lost,
    )


def _different(one: bytes, other: bytes, dtype: str, tolerances: Tolerances) -> Partial:
    old, new = _numbers(one, dtype), _numbers(other, dtype)
    word = WORD[BITS[dtype] // 8]
    bits = zip(memoryview(one).cast(word), memoryview(other).cast(word), strict=True)
    changed = [position for position, (a, b) in enumerate(bits) if a != b]
    pairs = [(old[n], new[n]) for n in changed if isfinite(old[n]) and isfinite(new[n])]
    distances = [abs(float(a) - float(b)) for a, b in pairs]
    near = sum(
        gap <= tolerances.atol + tolerances.rtol * abs(a)
        for gap, (a, _) in zip(distances, pairs, strict=True)
    )
    lost = [len(numbers) - sum(map(isfinite, numbers)) for numbers in (old, new)]
    if any(lost):
        both = [(a, b) for a, b in zip(old, new, strict=True) if isfinite(a) and isfinite(b)]
        old, new = tuple(a for a, _ in both), tuple(b for _, b in both)
    return Partial(
        elements=len(one) * 8 // BITS[dtype],
        changed=len(changed),
        far=len(changed) - near,
        finite=len(old),
        largest=max(distances, default=0.0),
        distance=sum(distances),
        squares=_squared(dist(old, new)),
        old_squares=_squared(hypot(*old)),
        new_squares=_squared(hypot(*new)),
        product=sum(map(mul, map(float, old), map(float, new))),
        old_nonfinite=lost[0],
        new_nonfinite=lost[1],
        histogram=_histogram(distances),
    )


def _squared(norm: float) -> float:
    return norm * norm  # ** would raise on overflow


def _histogram(distances: Sequence[float]) -> tuple[int, ...]:
    counts = Counter(bisect_right(EDGES, distance) for distance in distances)
    return tuple(counts[decade] for decade in range(DECADES))
