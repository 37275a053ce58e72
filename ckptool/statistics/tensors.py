"""Bytes of two blocks, also of different dtypes -> DifferenceSums, with torch."""

import sys
from math import isfinite
from types import ModuleType
from typing import TYPE_CHECKING, Final

from ckptool.model import BITS
from ckptool.statistics.figures import DECADES, EDGES, Partial, Tolerances

if TYPE_CHECKING:
    from torch import Tensor

MEASURED: Final = frozenset(
    {
        "float64", "float32", "float16", "bfloat16",
        "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
        "complex128", "complex64", "complex32",
        "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    }
)  # fmt: skip


def measure(
    old: bytes, new: bytes, old_dtype: str, new_dtype: str, tolerances: Tolerances
) -> Partial:
    """Measure two blocks with equal numbers of elements, of dtypes in `MEASURED_DTYPES`."""
    a, b = _tensor(old, old_dtype), _tensor(new, new_dtype)
    x, y = _wide(a), _wide(b)
    if x.dtype != y.dtype:
        x, y = x + 0j, y + 0j
    squares = _dot(x, x), _dot(y, y)
    whole = all(map(isfinite, squares))
    cast = old_dtype != new_dtype
    changed = _unequal(x, y, whole=whole) if cast else _changed_bits(a, b)
    finite_x, finite_y = (None, None) if whole else (x.isfinite(), y.isfinite())
    both = None if finite_x is None or finite_y is None else finite_x & finite_y
    if both is not None:
        x, y = x.where(both, 0), y.where(both, 0)
        squares = _dot(x, x), _dot(y, y)
    gaps = (x - y).abs()
    seen = changed if both is None else changed & both
    return Partial(
        elements=a.numel(),
        changed=_count(changed),
        far=_count(changed) - _count(seen & _near(gaps, x, tolerances)),
        finite=a.numel() if both is None else _count(both),
        largest=float(gaps.max()),
        distance=float(gaps.sum()),
        squares=_dot(gaps, gaps),
        old_squares=squares[0],
        new_squares=squares[1],
        product=_dot(x, y),
        old_nonfinite=0 if finite_x is None else a.numel() - _count(finite_x),
        new_nonfinite=0 if finite_y is None else a.numel() - _count(finite_y),
        narrowed=cast and _is_cast(a, b),
        widened=cast and _is_cast(b, a),
        histogram=_histogram(gaps, a.numel() - _count(seen)),
    )


def _torch() -> ModuleType:
    """Import torch; on its first import, limit it to one thread, as callers run in threads."""
    ours = "torch" not in sys.modules
    import torch

    if ours:
        torch.set_num_threads(1)
    return torch


def _count(mask: "Tensor") -> int:
    return int(mask.count_nonzero())


def _dot(x: "Tensor", y: "Tensor") -> float:
    return float(x.vdot(y).real if x.is_complex() else x.dot(y))


def _near(gaps: "Tensor", old: "Tensor", tolerances: Tolerances) -> "Tensor":
    if not tolerances.rtol:
        return gaps <= tolerances.atol
    return gaps <= tolerances.atol + tolerances.rtol * old.abs()


def _tensor(data: bytes, dtype: str) -> "Tensor":
    torch = _torch()
    if dtype == "complex32":  # torch supports few operations on it, and warns
        halves = torch.frombuffer(bytearray(data), dtype=torch.float16)
        whole: Tensor = torch.view_as_complex(halves.float().view(-1, 2))
        return whole
    tensor: Tensor = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
    return tensor


def _wide(tensor: "Tensor") -> "Tensor":
    """Return the elements as float64, or complex128 if complex."""
    import torch

    if tensor.is_complex():
        return tensor.to(torch.complex128)
    narrow = BITS[str(tensor.dtype).removeprefix("torch.")] == 8 and tensor.is_floating_point()
    return (tensor.float() if narrow else tensor).to(torch.float64)


def _changed_bits(a: "Tensor", b: "Tensor") -> "Tensor":
    import torch

    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if a.dtype is torch.complex128:
        one, other = (
            torch.view_as_real(a).view(torch.int64),
            torch.view_as_real(b).view(torch.int64),
        )
        return (one != other).any(dim=-1)
    word = words[a.dtype.itemsize]
    return a.view(word) != b.view(word)


def _unequal(x: "Tensor", y: "Tensor", *, whole: bool) -> "Tensor":
    """Return the mask of different values; NaN equals NaN, as its bits depend on the dtype."""
    return x != y if whole else (x != y) & ~(x.isnan() & y.isnan())


def _is_cast(a: "Tensor", b: "Tensor") -> bool:
    """Whether `a`, cast to the dtype of `b`, equals `b`; False unless both are float or complex."""
    if a.is_complex() != b.is_complex() or not all(
        t.is_floating_point() or t.is_complex() for t in (a, b)
    ):
        return False
    rounded = a.to(b.dtype)
    if not _changed_bits(rounded, b).any():
        return True
    return not bool(_unequal(_wide(rounded), _wide(b), whole=False).any())


def _histogram(gaps: "Tensor", unseen: int) -> tuple[int, ...]:
    """Count distances by decade; `uncounted` of them are 0 and are removed from the first bin."""
    import torch

    edges = torch.tensor(EDGES, dtype=torch.float64)
    decades = torch.bucketize(gaps, edges, right=True)
    first, *others = torch.bincount(decades, minlength=DECADES).tolist()
    return (first - unseen, *others)
