"""ModuleDiff -> ModuleDiff with facts that need the values of the file's tensors."""

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from ckptool.compare.changes import Changed
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Kind, ModuleTensor, TensorInfo
from ckptool.values.fingerprint_many import fingerprint_tensor
from ckptool.values.statistics import (
    compute_statistics,
    half_precision_fingerprints,
    measure_cast,
)

_HALF_DTYPES: Final = ("bfloat16", "float16")


def add_value_checks(diff: ModuleDiff) -> ModuleDiff:
    """Return the diff with `cast_effects` and `constant_fingerprints` filled from the values.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    changes = [c for c in diff.changes if isinstance(c, Changed) and "dtype" in c.fields]
    cast_effects = {c.key: measure_cast(c.actual, c.expected.dtype) for c in changes}
    return replace(
        diff,
        cast_effects={key: effect for key, effect in cast_effects.items() if effect is not None},
        constant_fingerprints=dict(_iter_constant_fingerprints(diff)),
    )


def _iter_constant_fingerprints(diff: ModuleDiff) -> Iterable[tuple[str, tuple[str, ...]]]:
    for key in diff.matched_keys:
        module_tensor, tensor = diff.module.tensors[key], diff.state.tensors.get(key)
        if (
            tensor is None
            or not _is_constant(module_tensor)
            or tensor.shape != module_tensor.tensor.shape
            or _is_dense(tensor) != _is_dense(module_tensor.tensor)
        ):
            continue
        file_fingerprint = fingerprint_tensor(tensor)
        if file_fingerprint is not None:
            yield (
                key,
                (file_fingerprint, *_fingerprint_exact_halves(tensor, module_tensor).values()),
            )


def _is_dense(tensor: TensorInfo) -> bool:
    """Whether its fingerprint is one of its elements: other layouts have several tensors."""
    return tensor.layout in {"strided", "chunked"}


def _is_constant(module_tensor: ModuleTensor) -> bool:
    """Whether construction always gives this buffer the same value, and training keeps it."""
    is_buffer = module_tensor.kind is Kind.BUFFER
    return is_buffer and module_tensor.is_recomputable and bool(module_tensor.fingerprint)


def _fingerprint_exact_halves(tensor: TensorInfo, module_tensor: ModuleTensor) -> dict[str, str]:
    """Return half-precision dtype -> fingerprint of a float32 tensor that it holds exactly."""
    if not module_tensor.half_precision_fingerprints or tensor.dtype != "float32":
        return {}
    statistics = compute_statistics(tensor)
    return half_precision_fingerprints(
        tensor,
        [dtype for dtype in _HALF_DTYPES if statistics and dtype in statistics.exact_half_dtypes],
    )
