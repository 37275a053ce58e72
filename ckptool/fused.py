"""Missing x unexpected tensors -> FusedProjections: query, key, value in one tensor or three."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo

_LETTERS: Final = {"q": 0, "query": 0, "k": 1, "key": 1, "v": 2, "value": 2}
_WORD: Final = re.compile(r"(?<![a-zA-Z])w?(query|key|value|[qkv])(?![a-z])", re.IGNORECASE)


class Fused(Struct, frozen=True):
    """One tensor on one side that is the concatenation of three on the other."""

    whole: str
    pieces: tuple[str, ...]
    """Keys of query, key and value, in this order, whatever their order in the fused tensor."""
    sizes: tuple[int, ...]
    """Sizes of the three along `dim`, in the same order."""
    dim: int
    split: bool
    """Whether the file has the fused tensor, which must be split for the module."""


def find_fused(missing: list[TensorInfo], unexpected: list[TensorInfo]) -> tuple[Fused, ...]:
    """Return the projections fused on one side; ambiguous matches are left out."""
    return (*_fused(missing, unexpected, split=True), *_fused(unexpected, missing, split=False))


def _fused(apart: list[TensorInfo], wholes: list[TensorInfo], *, split: bool) -> Iterator[Fused]:
    taken: set[str] = set()
    for pieces in _triples(apart):
        fitting = [(w, dim) for w in wholes if (dim := _along(w, pieces)) is not None]
        beside = [(w, dim) for w, dim in fitting if w.key.startswith(_parent(pieces[0].key))]
        found = beside if len(beside) == 1 else fitting
        if len(found) == 1 and found[0][0].key not in taken:
            whole, dim = found[0]
            taken.add(whole.key)
            sizes = tuple(piece.shape[dim] for piece in pieces)
            yield Fused(whole.key, tuple(p.key for p in pieces), sizes, dim, split)


def _triples(tensors: Iterable[TensorInfo]) -> Iterator[list[TensorInfo]]:
    """Yield [query, key, value] tensors whose keys differ only in that word."""
    groups: dict[str, dict[int, TensorInfo]] = {}
    for tensor in tensors:
        words = list(_WORD.finditer(tensor.key))
        if words:
            start, end = words[-1].span(1)
            form = f"{tensor.key[:start]}*{tensor.key[end:]}"
            groups.setdefault(form, {})[_LETTERS[words[-1][1].lower()]] = tensor
    yield from ([group[n] for n in range(3)] for group in groups.values() if len(group) == 3)


def _parent(piece: str) -> str:
    """Return the prefix of the attention module: the key up to the segment with q, k or v."""
    last = list(_WORD.finditer(piece))[-1].start()
    return piece[: piece.rfind(".", 0, last) + 1]


def _along(whole: TensorInfo, pieces: list[TensorInfo]) -> int | None:
    """Return the dimension along which the pieces concatenate to the fused tensor, or None."""
    if not _alike(whole.key, pieces[0].key) or whole.dtype != pieces[0].dtype:
        return None
    for dim, size in enumerate(whole.shape):
        if all(_fits(piece.shape, whole.shape, dim) for piece in pieces):
            return dim if sum(piece.shape[dim] for piece in pieces) == size else None
    return None


def _fits(piece: tuple[int, ...], whole: tuple[int, ...], dim: int) -> bool:
    """Whether the sizes are equal except along `dim`, where the piece is smaller."""
    same = len(piece) == len(whole) and piece[dim] < whole[dim]
    return same and all(
        a == b for n, (a, b) in enumerate(zip(piece, whole, strict=True)) if n != dim
    )


def _alike(whole: str, piece: str) -> bool:
    """Whether both are weights, or both biases, with the same numbers in their keys."""
    ends = [next((e for e in ("weight", "bias") if key.endswith(e)), "") for key in (whole, piece)]
    return ends[0] == ends[1] and re.findall(r"\d+", whole) == re.findall(r"\d+", piece)
