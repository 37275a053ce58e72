"""The bytes of two blocks, of whatever dtypes -> what is measured of them, by torch."""

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
    """Measure two blocks of as many elements, of dtypes of `MEASURED`."""
    a, b = _tensor(old, old_dtype), _tensor(new, new_dtype)
    x, y = _wide(a), _wide(b)
    if x.dtype != y.dtype:
        x, y = x + 0j, y + 0j
    finite_x, finite_y = x.isfinite(), y.isfinite()
    both = finite_x & finite_y
    changed = _changed_bits(a, b) if old_dtype == new_dtype else _unequal(x, y)
    if not both.all():
        x, y = x.where(both, 0), y.where(both, 0)
    gaps = (x - y).abs()
    near = both & (gaps <= tolerances.atol + tolerances.rtol * x.abs())
    return Partial(
        elements=a.numel(),
        changed=int(changed.sum()),
        far=int((changed & ~near).sum()),
        finite=int(both.sum()),
        largest=float(gaps.max()),
        distance=float(gaps.sum()),
        squares=_squares(gaps),
        old_squares=_squares(x),
        new_squares=_squares(y),
        product=float((x.conj() * y).real.sum()) if x.is_complex() else float((x * y).sum()),
        old_nonfinite=a.numel() - int(finite_x.sum()),
        new_nonfinite=a.numel() - int(finite_y.sum()),
        narrowed=old_dtype != new_dtype and _is_cast(a, b),
        widened=old_dtype != new_dtype and _is_cast(b, a),
        histogram=_histogram(gaps[changed & both]),
    )


def _tensor(data: bytes, dtype: str) -> "Tensor":
    import torch

    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))


def _wide(tensor: "Tensor") -> "Tensor":
    """Return the elements in float64, or complex128."""
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


def _unequal(x: "Tensor", y: "Tensor") -> "Tensor":
    """Tell where two dtypes hold other numbers; the bits of their NaN cannot be the same."""
    return (x != y) & ~(x.isnan() & y.isnan())


def _is_cast(a: "Tensor", b: "Tensor") -> bool:
    """Whether `a`, rounded to the dtype of `b`, is `b`; only floating point is rounded."""
    if a.is_complex() != b.is_complex() or not all(
        t.is_floating_point() or t.is_complex() for t in (a, b)
    ):
        return False
    return not bool(_unequal(_wide(a.to(b.dtype)), _wide(b)).any())


def _squares(x: "Tensor") -> float:
    return float((x.real.square() + x.imag.square() if x.is_complex() else x.square()).sum())


def _histogram(gaps: "Tensor") -> tuple[int, ...]:
    import torch

    edges = torch.tensor(EDGES, dtype=torch.float64)
    decades = torch.bucketize(gaps, edges, right=True)
    return tuple(torch.bincount(decades, minlength=DECADES).tolist())
