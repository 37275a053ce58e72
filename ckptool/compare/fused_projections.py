"""Missing x unexpected tensors -> FusedProjections: query, key, value in one tensor or three."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


_MAX_RANK: Final = 8
"""Dimensions of which one may be the fused one; projections have two, or four as convolutions."""


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


class _FusedTensors:
    """Tensors by what decides whether pieces fit into them: each look-up is a bisection."""

    def __init__(self, tensors: Iterable[TensorInfo]) -> None:
        self._tensors_by_form: dict[object, list[TensorInfo]] = {}
        for tensor in tensors:
            role = _parse_role(tensor.key)
            for dim, size in enumerate(tensor.shape[:_MAX_RANK]):
                other_sizes = _drop_dim(tensor.shape, dim)
                form = (role, tensor.dtype, dim, other_sizes, size)
                self._tensors_by_form.setdefault(form, []).append(tensor)
        for group in self._tensors_by_form.values():
            group.sort(key=lambda tensor: tensor.key)

    def find_single(self, pieces: Sequence[TensorInfo]) -> tuple[TensorInfo, int] | None:
        """Return the tensor that the pieces make, and the dimension; None if it is not decided.

        Of several, the only one in the module that holds the pieces is taken.
        """
        matches = list(self._iter_matches(pieces))
        prefix = _attention_prefix(pieces[0].key)
        for group_prefix in (prefix, ""):
            ranges = [
                (group, *_find_prefix_range(group, group_prefix), dim) for group, dim in matches
            ]
            candidates = [(group[start], dim) for group, start, stop, dim in ranges if stop > start]
            if sum(stop - start for _, start, stop, _ in ranges) == 1:
                return candidates[0]
        return None

    def _iter_matches(self, pieces: Sequence[TensorInfo]) -> Iterator[tuple[list[TensorInfo], int]]:
        first = pieces[0]
        role = _parse_role(first.key)
        for dim in range(min(len(first.shape), _MAX_RANK)):
            other_sizes = _drop_dim(first.shape, dim)
            if all(
                len(piece.shape) == len(first.shape) and _drop_dim(piece.shape, dim) == other_sizes
                for piece in pieces
            ):
                size = sum(piece.shape[dim] for piece in pieces)
                form = (role, first.dtype, dim, other_sizes, size)
                group = self._tensors_by_form.get(form)
                if group and all(piece.shape[dim] < size for piece in pieces):
                    yield group, dim


def _match_projections(
    separate_tensors: list[TensorInfo], fused_tensors: list[TensorInfo], *, needs_split: bool
) -> Iterator[FusedProjection]:
    used_keys: set[str] = set()
    candidates = _FusedTensors(fused_tensors)
    for pieces in _iter_qkv_triples(separate_tensors):
        match = candidates.find_single(pieces)
        if match is not None and match[0].key not in used_keys:
            fused_tensor, dim = match
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


def _drop_dim(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return shape[:dim] + shape[dim + 1 :]


def _find_prefix_range(tensors: Sequence[TensorInfo], prefix: str) -> tuple[int, int]:
    """Return (start, stop) of the tensors whose keys begin with `prefix`; they are sorted."""
    start = bisect_left(tensors, prefix, key=lambda tensor: tensor.key)
    stop = bisect_left(tensors, 1, lo=start, key=lambda t: not t.key.startswith(prefix))
    return start, stop


def _parse_role(key: str) -> tuple[str, tuple[str, ...]]:
    """Return "weight", "bias" or "", and the numbers in the key; pieces have the same."""
    suffix = next((e for e in ("weight", "bias") if key.endswith(e)), "")
    return suffix, tuple(re.findall(r"\d+", key))
