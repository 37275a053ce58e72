"""Checkpoint -> CheckpointStatistics; ModuleDiff -> ModuleDiff with value checks."""

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare import Changed, Loading, all_tensors
from ckptool.figures import Figures, cast, figures, figures_many, halved, unreadable
from ckptool.model import Checkpoint, Constancy, Held, Kind, Skipped, TensorInfo
from ckptool.values import fingerprint

_HALF: Final = ("bfloat16", "float16")


class Valued(Struct, frozen=True):
    """Statistics of the values of all tensors in a checkpoint."""

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorInfo]
    """Tensors of all states, by key prefixed with the state's `at`."""
    figures: Mapping[str, Figures]
    """By the same keys, for tensors whose statistics could be computed."""
    optimizers: frozenset[str]
    """Keys of tensors in optimizer states."""
    skipped: tuple[Skipped, ...]


def valued(checkpoint: Checkpoint) -> Valued:
    """Compute statistics of all tensors of a checkpoint, for the rules CK401 to CK405.

    Reads every byte of the tensors once, in threads, in bounded memory; needs torch.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    tensors = all_tensors(checkpoint)
    why = {key: unreadable(tensor) for key, tensor in tensors.items()}
    readable = [key for key, reason in why.items() if not reason]
    found = zip(readable, figures_many(tensors[key] for key in readable), strict=True)
    inside = [s for s in checkpoint.states if s.role == "optimizer"]
    return Valued(
        checkpoint,
        tensors,
        {key: one for key, one in found if one is not None},
        frozenset(f"{s.at}.{key}" if s.at else key for s in inside for key in s.tensors),
        tuple(Skipped(f"values of {key}", reason) for key, reason in why.items() if reason),
    )


def with_values(loading: Loading) -> Loading:
    """Return the diff with `cast_effects` and `constant_fingerprints` filled from the values.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    changes = [c for c in loading.changes if isinstance(c, Changed) and "dtype" in c.fields]
    casts = {c.key: cast(c.actual, c.expected.dtype) for c in changes}
    return replace(
        loading,
        casts={key: one for key, one in casts.items() if one is not None},
        constants=dict(_constants(loading)),
    )


def _constants(loading: Loading) -> Iterable[tuple[str, tuple[str, ...]]]:
    for key in loading.matched:
        held, tensor = loading.module.held[key], loading.state.tensors.get(key)
        if tensor is None or not _is_constant(held) or tensor.shape != held.tensor.shape:
            continue
        content = fingerprint(tensor)
        if content is not None and not _is_placeholder(held):
            yield key, (content, *_rounded(tensor, held).values())


def _is_constant(held: Held) -> bool:
    """Whether construction always gives this buffer the same value, and training keeps it."""
    fixed = held.constancy is Constancy.CONSTANT and not held.statistic
    return held.kind is Kind.BUFFER and fixed and bool(held.fingerprint)


def _rounded(tensor: TensorInfo, held: Held) -> dict[str, str]:
    """Return half-precision dtype -> fingerprint of a float32 tensor that it holds exactly."""
    if not held.halved or tensor.dtype != "float32":
        return {}
    found = figures(tensor)
    return halved(tensor, [half for half in _HALF if found and half in found.halves])


def _is_placeholder(held: Held) -> bool:
    """Whether a buffer is initialised to zeros or ones, probably to be filled later."""
    import torch

    from ckptool.modules.tensors import digest

    if held.tensor.layout != "strided":
        return False
    dtype = getattr(torch, held.tensor.dtype, None)
    if not isinstance(dtype, torch.dtype):
        return False
    blank = (make(held.tensor.shape, dtype=dtype) for make in (torch.zeros, torch.ones))
    return held.fingerprint in map(digest, blank)
