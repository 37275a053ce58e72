"""Bytes of elements -> numpy arrays of the same numbers, and casts that give what torch's give.

numpy starts in a twentieth of the time of torch, and has the dtypes that it lacks from ml_dtypes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ckptool.values.numbers import (
    COMPONENT_DTYPES,
    FLOAT8_DTYPES,
    HALF_DTYPES,
    NUMBER_DTYPES,
)

NumberArray = NDArray[Any]
"""A 1-d array of any dtype."""

_NARROW_FLOATS: Final = frozenset({*HALF_DTYPES, *FLOAT8_DTYPES})
_ML_DTYPES: Final = frozenset({"bfloat16", *FLOAT8_DTYPES})
_NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(getattr(ml_dtypes, name) if name in _ML_DTYPES else name)
    for name in NUMBER_DTYPES - {"complex32"}
}
"""torch's name of a dtype -> numpy's dtype. complex32 has none: its numbers are complex64."""
_get_finfo: Callable[[np.dtype[Any]], Any] = ml_dtypes.finfo
_DOT_ELEMENTS: Final = 1 << 13
"""Elements of one dot product: fewer than those for which OpenBLAS starts threads of its own, while
the callers run in threads, one for each core."""


def view_numbers(data: bytes | bytearray | memoryview, dtype: str) -> NumberArray:
    """Return little-endian elements of a dtype in NUMBER_DTYPES; complex32 as complex64."""
    if dtype == "complex32":
        return np.frombuffer(data, np.float16).astype(np.float32).view(np.complex64)
    return np.frombuffer(data, _NUMPY_DTYPES[dtype])


def to_comparable_reals(numbers: NumberArray) -> NumberArray:
    """Return the same values, real and of a dtype with fast arithmetic.

    Complex numbers become their components, floats of less than 32 bits float64, and bool uint8.
    """
    if numbers.dtype.kind == "c":
        return numbers.view(numbers.real.dtype)
    if numbers.dtype.kind == "b":  # any byte but 0 is True
        return np.not_equal(numbers.view(np.uint8), 0).view(np.uint8)
    if is_floating_point(numbers) and numbers.dtype.itemsize < 4:
        return widen_numbers(numbers, np.empty(numbers.shape))
    return numbers


def is_floating_point(numbers: NumberArray) -> bool:
    """Whether the numbers are real, and neither integers nor bool."""
    return numbers.dtype.kind not in "iubc"  # the dtypes of ml_dtypes have kinds of their own


def widen_numbers(numbers: NumberArray, buffer: NDArray[np.float64]) -> NumberArray:
    """Return the numbers as float64, in `buffer`, or as complex128 if they are complex."""
    if numbers.dtype.kind == "c":
        return numbers.astype(np.complex128)
    is_byte = numbers.dtype.itemsize == 1
    if is_byte and numbers.dtype.name in FLOAT8_DTYPES:  # a fifth of a cast's time
        return np.take(
            _list_float8_values(numbers.dtype.name), numbers.view(np.uint8), out=buffer, mode="clip"
        )
    np.copyto(buffer, numbers, casting="unsafe")
    return buffer


def cast_numbers(numbers: NumberArray, dtype: str) -> NumberArray:
    """Return the numbers cast as torch's `Tensor.to(dtype)` casts them on the CPU.

    To dtypes of less than 32 bits torch casts by way of float32, which rounds twice; it saturates
    float8_e4m3fn, and takes magnitudes for float8_e8m0fnu, which has neither sign nor zero.

    Args:
        numbers: complex or real.
        dtype: in NUMBER_DTYPES; of a complex number cast to a real one, the real part is cast.
    """
    if dtype in COMPONENT_DTYPES:
        width: type[np.complexfloating] = np.complex128 if dtype == "complex128" else np.complex64
        complex_numbers = numbers.astype(width)
        if dtype != "complex32":
            return complex_numbers
        components = complex_numbers.view(np.float32).astype(np.float16)
        return components.astype(np.float32).view(np.complex64)
    reals = numbers.real if numbers.dtype.kind == "c" else numbers
    if dtype in _NARROW_FLOATS:
        reals = reals.astype(np.float32)
    if dtype == "float8_e4m3fn":
        largest = float(_get_finfo(_NUMPY_DTYPES[dtype]).max)
        reals = reals.clip(-largest, largest)
    elif dtype == "float8_e8m0fnu":
        reals = np.maximum(np.abs(reals), find_smallest_normal(dtype))
    return reals.astype(_NUMPY_DTYPES[dtype])


def fits_dtype(numbers: NumberArray, dtype: str) -> NDArray[np.bool_]:
    """Return which real numbers have the same value in another dtype; NaN has one in each float."""
    round_trip: NumberArray = cast_numbers(numbers, dtype).astype(numbers.dtype)
    return np.equal(round_trip, numbers) | np.isnan(numbers)


def count_true(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


def compute_magnitudes(reals: NumberArray) -> NumberArray:
    """Return the absolute values of real numbers, in floating point: int8 has no 128."""
    numbers = reals if reals.dtype.kind == "f" else reals.astype(np.float64)
    magnitudes: NumberArray = np.absolute(numbers)
    return magnitudes


def compute_dot_product(x: NumberArray, y: NumberArray) -> float:
    """Return the real part of the dot product of `x`, conjugated, and `y`, both 1-d."""
    tail = x.size % _DOT_ELEMENTS
    tail_product = np.vecdot(x[-tail:], y[-tail:]).real if tail else 0.0
    head = x.size - tail
    rows = (numbers[:head].reshape(-1, _DOT_ELEMENTS) for numbers in (x, y))
    return float(np.vecdot(*rows).sum().real + tail_product)


def find_smallest_normal(dtype: str) -> float:
    """Return the smallest positive normal number of a real dtype; 0.0 if it has no fractions."""
    numpy_dtype = _NUMPY_DTYPES[dtype]
    if numpy_dtype.kind in "iub":
        return 0.0
    return float(_get_finfo(numpy_dtype).smallest_normal)


@cache
def _list_float8_values(dtype: str) -> NDArray[np.float64]:
    """Return the values of the 256 elements that a dtype of one byte has."""
    return np.arange(256, dtype=np.uint8).view(_NUMPY_DTYPES[dtype]).astype(np.float64)
