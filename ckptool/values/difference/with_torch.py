"""Bytes of two blocks, also of different dtypes -> DifferenceSums, with torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import isfinite
from operator import sub
from typing import TYPE_CHECKING, Final

from ckptool.values.difference.sums import (
    DECADE_EDGES,
    DifferenceSums,
    Tolerances,
    sum_equal_elements,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_ELEMENTS: Final = 1 << 16
"""Elements of each side in memory at once: enough for the arithmetic to outweigh the calls, and few
enough for the CPU cache."""
MEASURED_DTYPES: Final = frozenset(
    {
        "float64", "float32", "float16", "bfloat16",
        "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
        "complex128", "complex64", "complex32",
        "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    }
)  # fmt: skip


@contextmanager
def single_threaded() -> Iterator[None]:
    """Have torch compute in the calling thread alone: callers run in threads, one for each core.

    Each thread has its own number, and MKL's dot products would start threads of their own.
    """
    import torch

    previous_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous_threads)


class BlockMeasurer:
    """Measures blocks of at most BLOCK_ELEMENTS elements, in memory that it uses again for each."""

    def __init__(self) -> None:
        import torch

        self._buffers = torch.empty(4, BLOCK_ELEMENTS, dtype=torch.float64)

    def measure_blocks(
        self,
        old: bytearray,
        new: bytearray,
        old_dtype: str,
        new_dtype: str,
        tolerances: Tolerances,
    ) -> DifferenceSums:
        """Measure two blocks with equal numbers of elements, of dtypes in `MEASURED_DTYPES`."""
        import torch

        a, b = _to_tensor(old, old_dtype), _to_tensor(new, new_dtype)
        old_buffer, new_buffer, distances, marks = self._buffers[:, : a.numel()]
        x = _widen(a, old_buffer)
        dtypes_differ = old_dtype != new_dtype
        if not dtypes_differ and old == new:
            return _measure_equal(x)
        y = _widen(b, new_buffer)
        if x.dtype != y.dtype:
            x, y = x + 0j, y + 0j
        squared_norms = _dot_product(x, x), _dot_product(y, y)
        all_finite = all(map(isfinite, squared_norms))
        equals_cast_to_new = dtypes_differ and _equals_cast(a, b, y, distances)
        equals_cast_to_old = dtypes_differ and _equals_cast(b, a, x, distances)
        if dtypes_differ:
            _mark_different_values(x, y, marks, all_finite=all_finite)
        else:
            _mark_different_bits(a, b, marks)
        changed = changed_finite = _count_marks(marks)
        finite_counts = (x.numel(),) * 3
        if not all_finite:
            finite_x, finite_y = x.isfinite(), y.isfinite()
            both_finite = finite_x & finite_y
            finite_counts = _count_true(finite_x), _count_true(finite_y), _count_true(both_finite)
            changed_finite = _count_marks(marks.mul_(both_finite))
            x, y = x.where(both_finite, 0), y.where(both_finite, 0)
            squared_norms = _dot_product(x, x), _dot_product(y, y)
        # From here on, what did not change and what is not finite has a distance of 0: elements
        # at a distance above 0 are counted without asking which of them changed.
        _compute_distances(x, y, distances)
        max_abs = float(distances.amax())
        nonzero_count = _count_marks(torch.gt(distances, 0, out=marks))
        beyond_tolerance = (
            _count_beyond(distances, x, tolerances, marks)
            if tolerances.rtol or tolerances.atol
            else nonzero_count
        )
        return DifferenceSums(
            elements=x.numel(),
            changed=changed,
            beyond_tolerance=changed - changed_finite + beyond_tolerance,
            finite=finite_counts[2],
            max_abs=max_abs,
            sum_abs=float(distances.sum()),
            sum_squared=_dot_product(distances, distances),
            old_squared_norm=squared_norms[0],
            new_squared_norm=squared_norms[1],
            dot_product=_dot_product(x, y),
            old_nonfinite=x.numel() - finite_counts[0],
            new_nonfinite=x.numel() - finite_counts[1],
            equals_cast_to_new=equals_cast_to_new,
            equals_cast_to_old=equals_cast_to_old,
            histogram=_count_decades(distances, max_abs, nonzero_count, changed_finite, marks),
        )


def _measure_equal(x: "Tensor") -> DifferenceSums:
    squared_norm = _dot_product(x, x)
    if isfinite(squared_norm):
        return sum_equal_elements(x.numel(), x.numel(), squared_norm)
    finite_mask = x.isfinite()
    x = x.where(finite_mask, 0)
    return sum_equal_elements(x.numel(), _count_true(finite_mask), _dot_product(x, x))


def _to_tensor(data: bytearray, dtype: str) -> "Tensor":
    """Return the elements as a tensor that shares the memory of `data`."""
    import torch

    if dtype == "complex32":  # torch supports few operations on it, and warns
        halves = torch.frombuffer(data, dtype=torch.float16)
        return torch.view_as_complex(halves.float().view(-1, 2))
    return torch.frombuffer(data, dtype=getattr(torch, dtype))


def _widen(tensor: "Tensor", buffer: "Tensor") -> "Tensor":
    """Return the elements as float64, in `buffer`, or as complex128 if complex."""
    import torch

    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:  # a fifth of a cast's time
        values = _list_float8_values(tensor.dtype)
        return torch.index_select(values, 0, tensor.view(torch.uint8).int(), out=buffer)
    return tensor.to(torch.complex128) if tensor.is_complex() else buffer.copy_(tensor)


@cache
def _list_float8_values(dtype: "torch.dtype") -> "Tensor":
    """Return the values of the 256 elements that a dtype of one byte has, as float64."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(dtype).double()


def _dot_product(x: "Tensor", y: "Tensor") -> float:
    return float(x.vdot(y).real if x.is_complex() else x.dot(y))


def _count_true(mask: "Tensor") -> int:
    return int(mask.count_nonzero())


def _count_marks(marks: "Tensor") -> int:
    """Return the number of ones among zeros and ones of float64.

    Comparisons are written as float64 (`out=marks`) and added: half the time of a bool mask.
    """
    return int(marks.sum())


def _mark_different_bits(a: "Tensor", b: "Tensor", marks: "Tensor") -> None:
    import torch

    if a.dtype is torch.complex128:
        first_bits, second_bits = (torch.view_as_real(t).view(torch.int64) for t in (a, b))
        marks.copy_((first_bits != second_bits).any(dim=-1))
        return
    word_dtypes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    word_dtype = word_dtypes[a.dtype.itemsize]
    torch.ne(a.view(word_dtype), b.view(word_dtype), out=marks)


def _mark_different_values(x: "Tensor", y: "Tensor", marks: "Tensor", *, all_finite: bool) -> None:
    """Mark the different values; NaN equals NaN, as its bits depend on the dtype."""
    marks.copy_(x != y)
    if not all_finite:
        marks.mul_(~(x.isnan() & y.isnan()))


def _equals_cast(a: "Tensor", b: "Tensor", y: "Tensor", buffer: "Tensor") -> bool:
    """Whether `a`, cast to the dtype of `b`, equals `b`, whose widened elements are `y`.

    False unless both are floating point, or both complex.
    """
    if a.is_complex() != b.is_complex() or not all(
        t.is_floating_point() or t.is_complex() for t in (a, b)
    ):
        return False
    cast_elements = _widen(a.to(b.dtype), buffer)
    if cast_elements.equal(y):
        return True
    nan_mask = cast_elements.isnan() & y.isnan()
    return bool(nan_mask.any()) and bool(((cast_elements == y) | nan_mask).all())


def _compute_distances(x: "Tensor", y: "Tensor", distances: "Tensor") -> None:
    import torch

    if x.is_complex():
        torch.abs(x - y, out=distances)
    else:
        torch.sub(x, y, out=distances).abs_()


def _count_beyond(
    distances: "Tensor", old: "Tensor", tolerances: Tolerances, marks: "Tensor"
) -> int:
    """Return the number of elements that are not close."""
    import torch

    limits = tolerances.atol + tolerances.rtol * old.abs()
    return distances.numel() - _count_marks(torch.le(distances, limits, out=marks))


def _count_decades(
    distances: "Tensor",
    max_distance: float,
    nonzero_count: int,
    changed_count: int,
    marks: "Tensor",
) -> tuple[int, ...]:
    """Return the number of changed elements by decade of their distance.

    Edges are compared from the largest distance down until every distance above 0 is counted.
    """
    import torch

    counts_from_edge = [0]
    for edge in reversed(DECADE_EDGES):
        count = counts_from_edge[-1]
        if edge <= max_distance and count < nonzero_count:
            count = _count_marks(torch.ge(distances, edge, out=marks))
        counts_from_edge.append(count)
    counts_from_edge.append(changed_count)
    return tuple(map(sub, counts_from_edge[:0:-1], counts_from_edge[-2::-1]))
