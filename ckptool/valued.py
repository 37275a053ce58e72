"""Checkpoint -> CheckpointStatistics; ModuleDiff -> ModuleDiff with value checks."""

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare import Changed, ModuleDiff, all_tensors
from ckptool.figures import (
    TensorStatistics,
    compute_statistics,
    compute_statistics_many,
    half_precision_fingerprints,
    measure_cast,
    statistics_unavailable_reason,
)
from ckptool.model import Checkpoint, Constancy, Kind, ModuleTensor, Skipped, TensorInfo
from ckptool.values import fingerprint_tensor

_HALF_DTYPES: Final = ("bfloat16", "float16")


class CheckpointStatistics(Struct, frozen=True):
    """Statistics of the values of all tensors in a checkpoint."""

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorInfo]
    """Tensors of all states, by key prefixed with the state's `at`."""
    statistics: Mapping[str, TensorStatistics]
    """By the same keys, for tensors whose statistics could be computed."""
    optimizer_keys: frozenset[str]
    """Keys of tensors in optimizer states."""
    skipped: tuple[Skipped, ...]


def compute_checkpoint_statistics(checkpoint: Checkpoint) -> CheckpointStatistics:
    """Compute statistics of all tensors of a checkpoint, for the rules CK401 to CK405.

    Reads every byte of the tensors once, in threads, in bounded memory; needs torch.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    tensors = all_tensors(checkpoint)
    reasons = {key: statistics_unavailable_reason(tensor) for key, tensor in tensors.items()}
    readable = [key for key, reason in reasons.items() if not reason]
    statistics_by_key = zip(
        readable, compute_statistics_many(tensors[key] for key in readable), strict=True
    )
    optimizer_states = [s for s in checkpoint.states if s.role == "optimizer"]
    return CheckpointStatistics(
        checkpoint,
        tensors,
        {key: statistics for key, statistics in statistics_by_key if statistics is not None},
        frozenset(f"{s.at}.{key}" if s.at else key for s in optimizer_states for key in s.tensors),
        tuple(Skipped(f"values of {key}", reason) for key, reason in reasons.items() if reason),
    )


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
        ):
            continue
        file_fingerprint = fingerprint_tensor(tensor)
        if file_fingerprint is not None and not _is_constant_fill(module_tensor):
            yield (
                key,
                (file_fingerprint, *_fingerprint_exact_halves(tensor, module_tensor).values()),
            )


def _is_constant(module_tensor: ModuleTensor) -> bool:
    """Whether construction always gives this buffer the same value, and training keeps it."""
    is_fixed = module_tensor.constancy is Constancy.CONSTANT and not module_tensor.is_statistic
    return module_tensor.kind is Kind.BUFFER and is_fixed and bool(module_tensor.fingerprint)


def _fingerprint_exact_halves(tensor: TensorInfo, module_tensor: ModuleTensor) -> dict[str, str]:
    """Return half-precision dtype -> fingerprint of a float32 tensor that it holds exactly."""
    if not module_tensor.half_precision_fingerprints or tensor.dtype != "float32":
        return {}
    statistics = compute_statistics(tensor)
    return half_precision_fingerprints(
        tensor,
        [dtype for dtype in _HALF_DTYPES if statistics and dtype in statistics.exact_half_dtypes],
    )


def _is_constant_fill(module_tensor: ModuleTensor) -> bool:
    """Whether a buffer is initialised to zeros or ones, probably to be filled later."""
    import torch

    from ckptool.modules.tensors import compute_fingerprint

    if module_tensor.tensor.layout != "strided":
        return False
    dtype = getattr(torch, module_tensor.tensor.dtype, None)
    if not isinstance(dtype, torch.dtype):
        return False
    blank_tensors = (
        fill(module_tensor.tensor.shape, dtype=dtype) for fill in (torch.zeros, torch.ones)
    )
    return module_tensor.fingerprint in map(compute_fingerprint, blank_tensors)
