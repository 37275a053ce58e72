"""Missing x unexpected tensors -> FusedProjections: query, key, value in one tensor or three."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from ckptool.model import TensorInfo, join_key

_ATTENTION_CLASS: Final = "torch.nn.modules.activation.MultiheadAttention"
_FUSED_NAMES: Final = ("in_proj_weight", "in_proj_bias")
_ATTENTION_NAMES: Final = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Names of query, key and value in torch's attention where they are not one `in_proj_weight`."""
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
    has_torch_order: bool = False
    """Whether the fused one is the module's torch.nn.MultiheadAttention: query, key, value."""
    is_torch_attention: bool = False
    """Whether the names of the three in the file are also those of torch.nn.MultiheadAttention."""


def find_fused_projections(
    missing: list[TensorInfo], unexpected: list[TensorInfo], classes: Mapping[str, str]
) -> tuple[FusedProjection, ...]:
    """Return the projections fused on one side; ambiguous matches are left out.

    Args:
        missing: tensors that only the module has.
        unexpected: tensors that only the file has.
        classes: prefix of a sub-module -> qualified name of its class.
    """
    projections = (
        *_match_projections(missing, unexpected, needs_split=True),
        *_match_projections(unexpected, missing, needs_split=False),
    )
    return tuple(_find_order(projection, classes) for projection in projections)


def _find_order(projection: FusedProjection, classes: Mapping[str, str]) -> FusedProjection:
    """Return the projection with what torch's own attention tells of its order."""
    owner, _, name = projection.fused_key.rpartition(".")
    if projection.needs_split or classes.get(owner) != _ATTENTION_CLASS:
        return projection
    piece_keys = tuple(join_key(owner, piece) for piece in _ATTENTION_NAMES)
    return msgspec.structs.replace(
        projection,
        has_torch_order=name in _FUSED_NAMES,
        is_torch_attention=name == _FUSED_NAMES[0] and projection.piece_keys == piece_keys,
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
    for group in groups.values():
        if len(group) == 3 and len({tensor.dtype for tensor in group.values()}) == 1:
            yield [group[n] for n in range(3)]


def _attention_prefix(piece_key: str) -> str:
    """Return the prefix of the attention module: the key up to the segment with q, k or v."""
    match_start = list(_QKV_PATTERN.finditer(piece_key))[-1].start()
    return piece_key[: piece_key.rfind(".", 0, match_start) + 1]


def _concat_dim(fused_tensor: TensorInfo, pieces: list[TensorInfo]) -> int | None:
    """Return the dimension along which the pieces concatenate to the fused tensor, or None."""
    if not _has_same_role(fused_tensor.key, pieces[0].key):
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
