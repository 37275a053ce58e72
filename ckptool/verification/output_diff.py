"""Two outputs of forward -> OutputDifference: equal bit for bit, within a tolerance, or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from ckptool.phrases import join_limited, quote_code
from ckptool.verification.pytree import is_comparable, iter_leaves

TOLERANCES: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {torch.float64: 1e-7, torch.complex128: 1e-7, torch.float16: 1e-2, torch.bfloat16: 5e-2}
)
"""Absolute and relative tolerance across devices; other dtypes have DEFAULT_TOLERANCE."""
DEFAULT_TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """Difference of two outputs over all their leaves."""

    is_exact: bool
    """Equal bit for bit; NaN equals NaN."""
    is_close: bool
    """Every element is within its tolerance, and all other leaves are equal."""
    max_absolute: float
    """Largest absolute difference, 0.0 if nothing could be compared."""
    max_relative: float
    """Largest difference relative to the expected value, 0.0 if nothing could be compared."""
    first_difference: str = ""
    """Path and description of the first difference; "" if there is none."""
    compared_count: int = 0
    """Number of compared leaves."""
    skipped_leaves: tuple[str, ...] = ()
    """Paths of leaves whose types cannot be compared."""

    @property
    def summary(self) -> str:
        return (
            f"largest difference: {self.max_absolute:.3g} absolute, {self.max_relative:.3g}"
            " relative"
        )


@dataclass(frozen=True, slots=True)
class _LeafDifference:
    is_exact: bool
    is_close: bool
    max_absolute: float = 0.0
    max_relative: float = 0.0
    reason: str = ""


def compare_outputs(actual: Any, expected: Any, tolerance: float | None = None) -> OutputDifference:
    """Compare two outputs leaf by leaf, on any devices.

    Args:
        actual: tensors in tuples, lists, dicts or dataclasses.
        expected: the reference; relative differences are relative to it.
        tolerance: absolute and relative; None takes the default of the expected dtype.
    """
    return compare_leaves(dict(iter_leaves(actual)), dict(iter_leaves(expected)), tolerance)


def compare_leaves(
    actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float | None = None
) -> OutputDifference:
    """Compare two outputs given as path -> leaf; see `compare_outputs`."""
    if list(actual) != list(expected):
        differing_paths = [
            f"`{path or 'output'}`"
            for path in (*expected, *actual)
            if (path in actual) != (path in expected)
        ]
        parts = join_limited(differing_paths, 3, more="") or "another order"
        reason = f"the outputs have a different structure: {parts}"
        return OutputDifference(
            is_exact=False,
            is_close=False,
            max_absolute=0.0,
            max_relative=0.0,
            first_difference=reason,
        )
    leaf_differences = {
        path: _compare_leaf(leaf, expected[path], tolerance) for path, leaf in actual.items()
    }
    comparable = {path: leaf for path, leaf in leaf_differences.items() if leaf is not None}
    messages = [
        f"`{path or 'output'}` {leaf.reason}" for path, leaf in comparable.items() if leaf.reason
    ]
    return OutputDifference(
        is_exact=all(leaf.is_exact for leaf in comparable.values()),
        is_close=all(leaf.is_close for leaf in comparable.values()),
        max_absolute=max((leaf.max_absolute for leaf in comparable.values()), default=0.0),
        max_relative=max((leaf.max_relative for leaf in comparable.values()), default=0.0),
        first_difference=messages[0] if messages else "",
        compared_count=len(comparable),
        skipped_leaves=tuple(
            path or "output" for path, leaf in leaf_differences.items() if leaf is None
        ),
    )


def to_dense_cpu(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, detached, dense and not quantised."""
    cpu_tensor = tensor.detach().cpu()
    if cpu_tensor.is_quantized:
        return cpu_tensor.dequantize()
    return cpu_tensor if cpu_tensor.layout is torch.strided else cpu_tensor.to_dense()


def describe_tensors(output: Any) -> tuple[str, ...]:
    """Return "path: dtype shape" of the first three tensors of an output, and a count of others."""
    tensors = [(path, leaf) for path, leaf in iter_leaves(output) if isinstance(leaf, Tensor)]
    lines = [
        f"{path or 'output'}: {str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
        for path, leaf in tensors
    ]
    return tuple(lines[:3]) + ((f"and {len(lines) - 3} more",) if len(lines) > 3 else ())


def describe_nan(output: Any) -> str:
    """Return "2 of 20 elements of `logits` are NaN" of the first such tensor; "" without one."""
    for path, leaf in iter_leaves(output):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            nan_count = int(to_dense_cpu(leaf).isnan().sum())
            if nan_count:
                name = quote_code(path) if path else "the output"
                return f"{nan_count:,} of {leaf.numel():,} elements of {name} are NaN"
    return ""


def _compare_leaf(actual: Any, expected: Any, tolerance: float | None) -> _LeafDifference | None:
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        return _compare_tensors(to_dense_cpu(actual), to_dense_cpu(expected), tolerance)
    if not (is_comparable(actual) and is_comparable(expected)):
        is_same_type = type(actual) is type(expected)
        return (
            None
            if is_same_type
            else _LeafDifference(is_exact=False, is_close=False, reason="has a different type")
        )
    # Compare repr: NaN equals NaN.
    is_same = repr(actual) == repr(expected)
    return _LeafDifference(
        is_same, is_same, reason="" if is_same else f"is {actual!r}, and was {expected!r}"
    )


def _compare_tensors(actual: Tensor, expected: Tensor, tolerance: float | None) -> _LeafDifference:
    """Compare in float64 or complex128; `tolerance` is absolute and relative, None is by dtype."""
    if actual.shape != expected.shape:
        reason = f"has shape {list(actual.shape)}, and had {list(expected.shape)}"
        return _LeafDifference(is_exact=False, is_close=False, reason=reason)
    is_same_dtype = actual.dtype == expected.dtype
    if is_same_dtype and _have_equal_values(actual, expected):
        return _LeafDifference(is_exact=True, is_close=True)
    wide_dtype = torch.complex128 if actual.is_complex() or expected.is_complex() else torch.float64
    wide_actual, wide_expected = actual.to(wide_dtype), expected.to(wide_dtype)
    absolute_error = (wide_actual - wide_expected).abs()
    # Equal infinities and NaN at the same position are not a difference.
    absolute_error = absolute_error.masked_fill(
        (wide_actual == wide_expected) | (wide_actual.isnan() & wide_expected.isnan()), 0.0
    )
    absolute_error = absolute_error.nan_to_num(nan=float("inf"), posinf=float("inf"))
    magnitude = wide_expected.abs()
    relative_error = (absolute_error / magnitude).masked_fill(absolute_error == 0, 0.0)
    limit = (
        tolerance if tolerance is not None else TOLERANCES.get(expected.dtype, DEFAULT_TOLERANCE)
    )
    if not (expected.is_floating_point() or expected.is_complex()):
        limit = 0.0
    is_within = bool((absolute_error <= limit + limit * magnitude.nan_to_num(posinf=0.0)).all())
    reason = "" if is_same_dtype else f"is {actual.dtype}, and was {expected.dtype}"
    return _LeafDifference(
        is_exact=False,
        is_close=is_within and is_same_dtype,
        max_absolute=float(absolute_error.max()) if absolute_error.numel() else 0.0,
        max_relative=float(relative_error.max()) if relative_error.numel() else 0.0,
        reason=reason
        or f"differs in {int((absolute_error > 0).sum())} of {absolute_error.numel()} elements",
    )


def _have_equal_values(actual: Tensor, expected: Tensor) -> bool:
    """Whether all elements are equal; NaN equals NaN."""
    equal = actual == expected
    if actual.is_floating_point() or actual.is_complex():
        equal |= actual.isnan() & expected.isnan()
    return bool(equal.all())
