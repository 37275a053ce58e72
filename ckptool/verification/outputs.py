"""Two outputs of forward -> OutputDifference: equal bit for bit, within a tolerance, or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from ckptool.verification.leaves import comparable, leaves

TOLERANCES: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {torch.float64: 1e-7, torch.complex128: 1e-7, torch.float16: 1e-2, torch.bfloat16: 5e-2}
)
"""Absolute and relative tolerance across devices; other dtypes have DEFAULT_TOLERANCE."""
DEFAULT: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two outputs over all their leaves."""

    exact: bool
    """Equal bit for bit; NaN equals NaN."""
    close: bool
    """Every element is within its tolerance, and all other leaves are equal."""
    absolute: float
    """Largest absolute difference, 0.0 if nothing could be compared."""
    relative: float
    """Largest difference relative to the expected value, 0.0 if nothing could be compared."""
    first: str = ""
    """Path and description of the first difference; "" if there is none."""
    compared: int = 0
    """Number of compared leaves."""
    left_out: tuple[str, ...] = ()
    """Paths of leaves whose types cannot be compared."""

    @property
    def words(self) -> str:
        return f"largest difference: {self.absolute:.3g} absolute, {self.relative:.3g} relative"


@dataclass(frozen=True, slots=True)
class _Leaf:
    exact: bool
    close: bool
    absolute: float = 0.0
    relative: float = 0.0
    why: str = ""


def difference(actual: Any, expected: Any, tolerance: float | None = None) -> Difference:
    """Compare two outputs leaf by leaf, on any devices.

    Args:
        actual: tensors in tuples, lists, dicts or dataclasses.
        expected: the reference; relative differences are relative to it.
        tolerance: absolute and relative; None takes the default of the expected dtype.
    """
    return compared(dict(leaves(actual)), dict(leaves(expected)), tolerance)


def compared(
    here: Mapping[str, Any], there: Mapping[str, Any], tolerance: float | None = None
) -> Difference:
    """Compare two outputs given as path -> leaf; see `compare_outputs`."""
    if list(here) != list(there):
        lost = [f"`{p or 'output'}`" for p in (*there, *here) if (p in here) != (p in there)]
        why = f"the outputs have other parts: {', '.join(lost[:3]) or 'another order'}"
        return Difference(exact=False, close=False, absolute=0.0, relative=0.0, first=why)
    found = {path: _leaf(leaf, there[path], tolerance) for path, leaf in here.items()}
    told = {path: leaf for path, leaf in found.items() if leaf is not None}
    wrong = [f"`{path or 'output'}` {leaf.why}" for path, leaf in told.items() if leaf.why]
    return Difference(
        exact=all(leaf.exact for leaf in told.values()),
        close=all(leaf.close for leaf in told.values()),
        absolute=max((leaf.absolute for leaf in told.values()), default=0.0),
        relative=max((leaf.relative for leaf in told.values()), default=0.0),
        first=wrong[0] if wrong else "",
        compared=len(told),
        left_out=tuple(path or "output" for path, leaf in found.items() if leaf is None),
    )


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, detached, dense and not quantised."""
    found = tensor.detach().cpu()
    if found.is_quantized:
        return found.dequantize()
    return found if found.layout is torch.strided else found.to_dense()


def described(output: Any) -> tuple[str, ...]:
    """Return "path: dtype shape" of the first three tensors of an output, and a count of others."""
    tensors = [(path, leaf) for path, leaf in leaves(output) if isinstance(leaf, Tensor)]
    words = [
        f"{path or 'output'}: {str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
        for path, leaf in tensors
    ]
    return tuple(words[:3]) + ((f"and {len(words) - 3} more",) if len(words) > 3 else ())


def _leaf(actual: Any, expected: Any, tolerance: float | None) -> _Leaf | None:
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        return _tensors(plain(actual), plain(expected), tolerance)
    if not (comparable(actual) and comparable(expected)):
        alike = type(actual) is type(expected)
        return None if alike else _Leaf(exact=False, close=False, why="has another type")
    # Compare repr: NaN equals NaN.
    same = repr(actual) == repr(expected)
    return _Leaf(same, same, why="" if same else f"is {actual!r}, and was {expected!r}")


def _tensors(actual: Tensor, expected: Tensor, tolerance: float | None) -> _Leaf:
    if actual.shape != expected.shape:
        why = f"has shape {list(actual.shape)}, and had {list(expected.shape)}"
        return _Leaf(exact=False, close=False, why=why)
    same_dtype = actual.dtype == expected.dtype
    if same_dtype and _same(actual, expected):
        return _Leaf(exact=True, close=True)
    wide = torch.complex128 if actual.is_complex() or expected.is_complex() else torch.float64
    one, other = actual.to(wide), expected.to(wide)
    apart = (one - other).abs()
    # Equal infinities and NaN at the same position are not a difference.
    apart = apart.masked_fill((one == other) | (one.isnan() & other.isnan()), 0.0)
    apart = apart.nan_to_num(nan=float("inf"), posinf=float("inf"))
    size = other.abs()
    relative = (apart / size).masked_fill(apart == 0, 0.0)
    limit = tolerance if tolerance is not None else TOLERANCES.get(expected.dtype, DEFAULT)
    if not (expected.is_floating_point() or expected.is_complex()):
        limit = 0.0
    within = bool((apart <= limit + limit * size.nan_to_num(posinf=0.0)).all())
    why = "" if same_dtype else f"is {actual.dtype}, and was {expected.dtype}"
    return _Leaf(
        exact=False,
        close=within and same_dtype,
        absolute=float(apart.max()) if apart.numel() else 0.0,
        relative=float(relative.max()) if relative.numel() else 0.0,
        why=why or f"differs in {int((apart > 0).sum())} of {apart.numel()} elements",
    )


def _same(actual: Tensor, expected: Tensor) -> bool:
    """Whether all elements are equal; NaN equals NaN."""
    equal = actual == expected
    if actual.is_floating_point() or actual.is_complex():
        equal |= actual.isnan() & expected.isnan()
    return bool(equal.all())
