"""Missing x unexpected tensors -> FusedProjections: query, key, value in one tensor or three."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo

_QKV_INDEX: Final = {"q": 0, "query": 0, "k": 1, "key": 1, "v": 2, "value": 2}
_QKV_PATTERN: Final = re.compile(r"(?<![a-zA-Z])w?(query|key|value|[qkv])(?![a-z])", re.IGNORECASE)


class FusedProjection(Struct, frozen=True):
    """One tensor on one side that is the concatenation of three on the other."""

    fused_key: str
    piece_keys: tuple[str, ...]
    """Keys of query, key and value, in this order, whatever their order in the fused tensor."""
    piece_sizes: tuple[int, ...]
    """Sizes of the three along `dim`, in the same order."""
    dim: int
    needs_split: bool
    """Whether the file has the fused tensor, which must be split for the module."""


def find_fused_projections(
    missing: list[TensorInfo], unexpected: list[TensorInfo]
) -> tuple[FusedProjection, ...]:
    """Return the projections fused on one side; ambiguous matches are left out."""
    return (
        *_match_projections(missing, unexpected, needs_split=True),
        *_match_projections(unexpected, missing, needs_split=False),
    )


def _match_projections(
    separate_tensors: list[TensorInfo], fused_tensors: list[TensorInfo], *, needs_split: bool
) -> Iterator[FusedProjection]:
    used_keys: set[str] = set()
    for pieces in _iter_qkv_triples(separate_tensors):
        matches = [(w, dim) for w in fused_tensors if (dim := _concat_dim(w, pieces)) is not None]
        sibling_matches = [
            (w, dim) for w, dim in matches if w.key.startswith(_attention_prefix(pieces[0].key))
        ]
        candidates = sibling_matches if len(sibling_matches) == 1 else matches
        if len(candidates) == 1 and candidates[0][0].key not in used_keys:
            fused_tensor, dim = candidates[0]
            used_keys.add(fused_tensor.key)
            sizes = tuple(piece.shape[dim] for piece in pieces)
            yield FusedProjection(
                fused_tensor.key, tuple(p.key for p in pieces), sizes, dim, needs_split
            )


def _iter_qkv_triples(tensors: Iterable[TensorInfo]) -> Iterator[list[TensorInfo]]:
    """Yield [query, key, value] tensors whose keys differ only in that word."""
    groups: dict[str, dict[int, TensorInfo]] = {}
    for tensor in tensors:
        matches = list(_QKV_PATTERN.finditer(tensor.key))
        if matches:
            start, end = matches[-1].span(1)
            pattern = f"{tensor.key[:start]}*{tensor.key[end:]}"
            groups.setdefault(pattern, {})[_QKV_INDEX[matches[-1][1].lower()]] = tensor
    yield from ([group[n] for n in range(3)] for group in groups.values() if len(group) == 3)


def _attention_prefix(piece_key: str) -> str:
    """Return the prefix of the attention module: the key up to the segment with q, k or v."""
    match_start = list(_QKV_PATTERN.finditer(piece_key))[-1].start()
    return piece_key[: piece_key.rfind(".", 0, match_start) + 1]


def _concat_dim(fused_tensor: TensorInfo, pieces: list[TensorInfo]) -> int | None:
    """Return the dimension along which the pieces concatenate to the fused tensor, or None."""
    if not _has_same_role(fused_tensor.key, pieces[0].key) or fused_tensor.dtype != pieces[0].dtype:
        return None
    for dim, size in enumerate(fused_tensor.shape):
        if all(_fits_along_dim(piece.shape, fused_tensor.shape, dim) for piece in pieces):
            return dim if sum(piece.shape[dim] for piece in pieces) == size else None
    return None


def _fits_along_dim(piece_shape: tuple[int, ...], fused_shape: tuple[int, ...], dim: int) -> bool:
    """Whether the sizes are equal except along `dim`, where the piece is smaller."""
    has_same_rank = len(piece_shape) == len(fused_shape) and piece_shape[dim] < fused_shape[dim]
    return has_same_rank and all(
        a == b for n, (a, b) in enumerate(zip(piece_shape, fused_shape, strict=True)) if n != dim
    )


def _has_same_role(fused_key: str, piece_key: str) -> bool:
    """Whether both are weights, or both biases, with the same numbers in their keys."""
    suffixes = [
        next((e for e in ("weight", "bias") if key.endswith(e)), "")
        for key in (fused_key, piece_key)
    ]
    return suffixes[0] == suffixes[1] and re.findall(r"\d+", fused_key) == re.findall(
        r"\d+", piece_key
    )
