"""TensorInfo -> whether its values could hardly be those of another tensor by chance.

Equal zeros, counters, masks and positions do not prove that two tensors are the same one.
"""

import struct
from collections.abc import Collection, Iterator
from itertools import pairwise
from math import isfinite
from typing import Final

from ckptool.model import DTYPE_BITS, TensorInfo
from ckptool.values.elements import has_component_tensors, iter_elements, unreadable_reason

_MAX_ELEMENTS: Final = 1 << 16
"""Elements that are looked at, from the first one on."""
_SLICE_ELEMENTS: Final = 1 << 12
_MIN_FLOATS: Final = 4
"""Different finite numbers of a floating point tensor: a mask has two, a mean of RGB three."""
_MIN_COMPUTED: Final = 2
"""Different numbers that nobody typed: those of a trained bias, not a scale or a ratio alone."""
_TYPED_DIGITS: Final = 6
"""Significant digits with which a typed number is written."""
_MIN_INTEGERS: Final = 16
"""Different integers, not in equal steps: packed weights have more, counters and masks less."""
_SMALL_INTEGER: Final = 1 << 16
"""Wider integers below it are positions and indices, which many modules have alike."""
_FLOAT_CODES: Final = {
    "float64": "d", "float32": "f", "float16": "e", "complex128": "d", "complex64": "f",
    "complex32": "e",
}  # fmt: skip
_INTEGER_CODES: Final = {64: "q", 32: "i", 16: "h", 8: "B"}


def has_telling_values(tensor: TensorInfo) -> bool:
    """Return whether another tensor would hardly have the same values by chance.

    True where that cannot be known: other layouts than strided, and values that cannot be read.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    if has_component_tensors(tensor) or unreadable_reason(tensor):
        return True
    values: set[float] = set()
    for numbers in _iter_numbers(tensor):
        values |= numbers
        if _are_telling(tensor.dtype, values):
            return True
    return False


def _are_telling(dtype: str, values: Collection[float]) -> bool:
    if dtype in _FLOAT_CODES or dtype == "bfloat16":
        finite = [value for value in values if isfinite(value)]
        computed = [value for value in finite if _is_computed(value, dtype)]
        return len(finite) >= _MIN_FLOATS or len(computed) >= _MIN_COMPUTED
    if dtype == "bool" or len(values) < _MIN_INTEGERS:
        return False
    ordered = sorted(values)
    steps = {second - first for first, second in pairwise(ordered)}
    is_byte = DTYPE_BITS.get(dtype, 8) <= 8
    return len(steps) > 1 and (is_byte or max(map(abs, ordered)) >= _SMALL_INTEGER)


def _is_computed(value: float, dtype: str) -> bool:
    """Whether a number has more digits than one that was typed; False where all have few."""
    code = _FLOAT_CODES.get(dtype, "e")
    if code == "e":
        return False
    typed = float(f"{value:.{_TYPED_DIGITS}g}")
    return struct.pack(code, typed) != struct.pack(code, value) if isfinite(typed) else False


def _iter_numbers(tensor: TensorInfo) -> Iterator[set[float]]:
    """Yield the different numbers among the next elements, up to `_MAX_ELEMENTS` of them."""
    code, nbytes = _choose_code(tensor.dtype)
    remaining = _MAX_ELEMENTS
    for piece in iter_elements(tensor):
        view = memoryview(piece)
        for start in range(0, len(view), _SLICE_ELEMENTS * nbytes):
            chunk = view[start : start + _SLICE_ELEMENTS * nbytes]
            count = len(chunk) // nbytes
            numbers = set(struct.unpack(f"<{count}{code}", chunk[: count * nbytes]))
            yield {_widen(number) for number in numbers} if code == "H" else numbers
            remaining -= count
            if remaining <= 0:
                return


def _choose_code(dtype: str) -> tuple[str, int]:
    """Return the code of struct, and the bytes of a number: bfloat16 is read as its bits."""
    if dtype == "bfloat16":
        return "H", 2
    code = _FLOAT_CODES.get(dtype) or _INTEGER_CODES.get(DTYPE_BITS.get(dtype, 8), "B")
    return code, struct.calcsize(code)


def _widen(bits: int) -> float:
    """Return the number that the bits of a bfloat16 are."""
    number: float = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return number
