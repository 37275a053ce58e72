"""Bytes of two blocks, also of different dtypes -> DifferenceSums, with torch."""

import sys
from math import isfinite
from types import ModuleType
from typing import TYPE_CHECKING, Final

from ckptool.model import DTYPE_BITS
from ckptool.values.difference.sums import DECADE_COUNT, DECADE_EDGES, DifferenceSums, Tolerances

if TYPE_CHECKING:
    from torch import Tensor

MEASURED_DTYPES: Final = frozenset(
    {
        "float64", "float32", "float16", "bfloat16",
        "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
        "complex128", "complex64", "complex32",
        "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    }
)  # fmt: skip


def measure_blocks(
    old: bytes, new: bytes, old_dtype: str, new_dtype: str, tolerances: Tolerances
) -> DifferenceSums:
    """Measure two blocks with equal numbers of elements, of dtypes in `MEASURED_DTYPES`."""
    a, b = _to_tensor(old, old_dtype), _to_tensor(new, new_dtype)
    x, y = _widen(a), _widen(b)
    if x.dtype != y.dtype:
        x, y = x + 0j, y + 0j
    squared_norms = _dot_product(x, x), _dot_product(y, y)
    all_finite = all(map(isfinite, squared_norms))
    dtypes_differ = old_dtype != new_dtype
    changed_mask = (
        _values_differ(x, y, all_finite=all_finite) if dtypes_differ else _bits_differ(a, b)
    )
    finite_x, finite_y = (None, None) if all_finite else (x.isfinite(), y.isfinite())
    both_finite = None if finite_x is None or finite_y is None else finite_x & finite_y
    if both_finite is not None:
        x, y = x.where(both_finite, 0), y.where(both_finite, 0)
        squared_norms = _dot_product(x, x), _dot_product(y, y)
    distances = (x - y).abs()
    counted_mask = changed_mask if both_finite is None else changed_mask & both_finite
    return DifferenceSums(
        elements=a.numel(),
        changed=_count_true(changed_mask),
        beyond_tolerance=_count_true(changed_mask)
        - _count_true(counted_mask & _is_close(distances, x, tolerances)),
        finite=a.numel() if both_finite is None else _count_true(both_finite),
        max_abs=float(distances.max()),
        sum_abs=float(distances.sum()),
        sum_squared=_dot_product(distances, distances),
        old_squared_norm=squared_norms[0],
        new_squared_norm=squared_norms[1],
        dot_product=_dot_product(x, y),
        old_nonfinite=0 if finite_x is None else a.numel() - _count_true(finite_x),
        new_nonfinite=0 if finite_y is None else a.numel() - _count_true(finite_y),
        equals_cast_to_new=dtypes_differ and _equals_cast(a, b),
        equals_cast_to_old=dtypes_differ and _equals_cast(b, a),
        histogram=_count_decades(distances, a.numel() - _count_true(counted_mask)),
    )


def _import_torch() -> ModuleType:
    """Import torch; on its first import, limit it to one thread, as callers run in threads."""
    is_first_import = "torch" not in sys.modules
    import torch

    if is_first_import:
        torch.set_num_threads(1)
    return torch


def _count_true(mask: "Tensor") -> int:
    return int(mask.count_nonzero())


def _dot_product(x: "Tensor", y: "Tensor") -> float:
    return float(x.vdot(y).real if x.is_complex() else x.dot(y))


def _is_close(distances: "Tensor", old: "Tensor", tolerances: Tolerances) -> "Tensor":
    if not tolerances.rtol:
        return distances <= tolerances.atol
    return distances <= tolerances.atol + tolerances.rtol * old.abs()


def _to_tensor(data: bytes, dtype: str) -> "Tensor":
    torch = _import_torch()
    if dtype == "complex32":  # torch supports few operations on it, and warns
        halves = torch.frombuffer(bytearray(data), dtype=torch.float16)
        complex_tensor: Tensor = torch.view_as_complex(halves.float().view(-1, 2))
        return complex_tensor
    tensor: Tensor = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
    return tensor


def _widen(tensor: "Tensor") -> "Tensor":
    """Return the elements as float64, or complex128 if complex."""
    import torch

    if tensor.is_complex():
        return tensor.to(torch.complex128)
    is_float8 = (
        DTYPE_BITS[str(tensor.dtype).removeprefix("torch.")] == 8 and tensor.is_floating_point()
    )
    return (tensor.float() if is_float8 else tensor).to(torch.float64)


def _bits_differ(a: "Tensor", b: "Tensor") -> "Tensor":
    import torch

    word_dtypes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if a.dtype is torch.complex128:
        first_bits, second_bits = (
            torch.view_as_real(a).view(torch.int64),
            torch.view_as_real(b).view(torch.int64),
        )
        return (first_bits != second_bits).any(dim=-1)
    word_dtype = word_dtypes[a.dtype.itemsize]
    return a.view(word_dtype) != b.view(word_dtype)


def _values_differ(x: "Tensor", y: "Tensor", *, all_finite: bool) -> "Tensor":
    """Return the mask of different values; NaN equals NaN, as its bits depend on the dtype."""
    return x != y if all_finite else (x != y) & ~(x.isnan() & y.isnan())


def _equals_cast(a: "Tensor", b: "Tensor") -> bool:
    """Whether `a`, cast to the dtype of `b`, equals `b`; False unless both are float or complex."""
    if a.is_complex() != b.is_complex() or not all(
        t.is_floating_point() or t.is_complex() for t in (a, b)
    ):
        return False
    cast_tensor = a.to(b.dtype)
    if not _bits_differ(cast_tensor, b).any():
        return True
    return not bool(_values_differ(_widen(cast_tensor), _widen(b), all_finite=False).any())


def _count_decades(distances: "Tensor", uncounted_elements: int) -> tuple[int, ...]:
    """Count distances by decade; `uncounted` of them are 0 and are removed from the first bin."""
    import torch

    edges = torch.tensor(DECADE_EDGES, dtype=torch.float64)
    decades = torch.bucketize(distances, edges, right=True)
    first_count, *other_counts = torch.bincount(decades, minlength=DECADE_COUNT).tolist()
    return (first_count - uncounted_elements, *other_counts)
