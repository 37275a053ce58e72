"""Checkpoint -> the figures of its tensors; Loading -> what its numbers do to the module."""

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
    """A checkpoint whose values were looked at."""

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorInfo]
    """Of all states, with the place of each in front of its key."""
    figures: Mapping[str, Figures]
    """By the same keys, where they could be had."""
    optimizers: frozenset[str]
    """Keys of an optimizer's state."""
    skipped: tuple[Skipped, ...]


def valued(checkpoint: Checkpoint) -> Valued:
    """Look at the values of all tensors of a checkpoint: the rules CK401 to CK405 take the result.

    Reads every byte of the tensors once, in threads, in bounded memory; needs torch.

    Raises:
        ReadError: a file cannot be read any more, or is not what was described.
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
    """Look at the values that matter to a load: of another dtype, or fixed by the constructor.

    Raises:
        ReadError: a file cannot be read any more, or is not what was described.
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
    """Whether the constructor makes the same buffer every time, and nothing changes it later."""
    fixed = held.constancy is Constancy.CONSTANT and not held.statistic
    return held.kind is Kind.BUFFER and fixed and bool(held.fingerprint)


def _rounded(tensor: TensorInfo, held: Held) -> dict[str, str]:
    """Return the fingerprints of a float32 tensor in the half-precision dtypes that hold it."""
    if not held.halved or tensor.dtype != "float32":
        return {}
    found = figures(tensor)
    return halved(tensor, [half for half in _HALF if found and half in found.halves])


def _is_placeholder(held: Held) -> bool:
    """Whether a buffer starts as zeros or ones, which something is meant to fill in later."""
    import torch

    from ckptool.modules.tensors import digest

    if held.tensor.layout != "strided":
        return False
    dtype = getattr(torch, held.tensor.dtype, None)
    if not isinstance(dtype, torch.dtype):
        return False
    blank = (make(held.tensor.shape, dtype=dtype) for make in (torch.zeros, torch.ones))
    return held.fingerprint in map(digest, blank)
