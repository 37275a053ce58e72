"""TensorInfos -> bitwise equality and fingerprints: streamed in bounded memory, without torch."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final, TypeVar

from msgspec.structs import replace

from ckptool import content
from ckptool import elements as reading
from ckptool.elements import (
    Files,
    cut,
    elements_in,
    has_layers,
    in_one_piece,
    is_swapped,
    obstacle,
    run_of,
)
from ckptool.model import BITS, Span, TensorInfo
from ckptool.strides import steps_of
from ckptool.workers import JOBS, Batch, Workers

_PIECE: Final = 32 << 20
"""Bytes per task: contiguous tensors are split at this size, small ones grouped up to it."""
_BATCH: Final = 1024
"""Maximum number of tensors, or pieces of tensors, of one task."""

_T = TypeVar("_T")
_Work = tuple[int, Span, Span] | tuple[int, TensorInfo, TensorInfo]
"""(position of a pair, spans or whole tensors to compare)."""
_Digested = tuple[int, Span | TensorInfo]
"""(position of a tensor, next span of it or the whole tensor to digest)."""


def equal(a: TensorInfo, b: TensorInfo) -> bool | None:
    """Whether two tensors have the same dtype, shape and bits.

    Returns:
        None if the elements cannot be read without torch (see `unreadable_reason`), or if the
        components of sparse or quantised tensors do not correspond.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    with Files() as files:
        return _equal(a, b, files)


def equal_many(
    pairs: Iterable[tuple[TensorInfo, TensorInfo]], jobs: int = JOBS, workers: Workers | None = None
) -> list[bool | None]:
    """Return `are_equal` of each pair, in order; large tensors are split into several tasks.

    Args:
        pairs: the tensors to compare.
        jobs: number of threads if there is no `runner`.
        runner: runs the tasks instead of threads.
    """
    together = list(pairs)
    verdicts: list[bool | None] = [True] * len(together)
    work = (
        (nbytes, item)
        for position, pair in enumerate(together)
        for nbytes, item in _work(position, *pair)
        if verdicts[position]
    )
    for items, told in (workers or Workers(jobs)).each(_settle, _batches(work)):
        for (position, *_), same in zip(items, told, strict=True):
            if verdicts[position] and same is not True:
                verdicts[position] = same
    return verdicts


def fingerprint(tensor: TensorInfo) -> str | None:
    """Return the content fingerprint of a tensor; None if it cannot be read without torch.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    with Files() as files:
        return _fingerprint(tensor, files)


def fingerprint_many(
    tensors: Iterable[TensorInfo], jobs: int = JOBS, workers: Workers | None = None
) -> list[str | None]:
    """Return `fingerprint_tensor` of each, in order; large tensors are split into several tasks."""
    together = list(tensors)
    told: list[str | None] = [None] * len(together)
    pieces: dict[int, list[bytes]] = {}
    work = (item for position, one in enumerate(together) for item in _digested(position, one))
    for items, found in (workers or Workers(jobs)).each(_digests, _batches(work)):
        for (position, _), digest in zip(items, found, strict=True):
            if isinstance(digest, bytes):
                pieces.setdefault(position, []).append(digest)
            else:
                told[position] = digest
    for position, digests in pieces.items():
        tensor = together[position]
        told[position] = content.fingerprint_of(tensor.dtype, tensor.shape, digests)
    return told


def aligned(
    a: TensorInfo, b: TensorInfo, elements: int, folder: Path = Path()
) -> Iterator[tuple[bytes, bytes]]:
    """Yield blocks of `element_count` elements of two tensors of one shape, as `iter_elements`.

    Only for readable tensors (`unreadable_reason` is "") with elements of whole bytes.
    """
    with Files(folder) as files:
        one, other = (
            _blocks(elements_in(tensor, files), elements * BITS[tensor.dtype] // 8)
            for tensor in (a, b)
        )
        yield from zip(one, other, strict=True)


def pieces(a: TensorInfo, b: TensorInfo, elements: int) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    """Split two tensors of one shape into pairs of `element_count` elements, if contiguous."""
    one, other = in_one_piece(a), in_one_piece(b)
    even = one.contiguous and other.contiguous and run_of(one) and run_of(other)
    if not (even or _runs(one, other)):
        yield a, b
        return
    for start in range(0, one.numel, elements):
        count = min(elements, one.numel - start)
        yield _stretch(one, start, count), _stretch(other, start, count)


def _equal(a: TensorInfo, b: TensorInfo, files: Files) -> bool | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if has_layers(a) or has_layers(b):
        return _equal_layers(a, b, files)
    if runs := _runs(a, b):
        return _same_bytes(*runs, files)
    if obstacle(a) or obstacle(b):
        return None
    both = (_blocks(elements_in(tensor, files), reading.CHUNK) for tensor in (a, b))
    blocks = zip_longest(*both)
    return all(x == y for x, y in blocks)


def _equal_layers(a: TensorInfo, b: TensorInfo, files: Files) -> bool | None:
    if a.layout != b.layout or [part.name for part in a.parts] != [part.name for part in b.parts]:
        return None
    both = zip(a.parts, b.parts, strict=True)
    told = [_equal(one.tensor, other.tensor, files) for one, other in both]
    return False if False in told else None if None in told else True


def _same_bytes(a: Span, b: Span, files: Files) -> bool:
    if a == b:
        return True
    pieces = zip(cut(a, reading.CHUNK), cut(b, reading.CHUNK), strict=True)
    return all(files.same(one, other) for one, other in pieces)


def _blocks(pieces: Iterable[bytes], nbytes: int) -> Iterator[bytes]:
    """Regroup a stream of bytes into blocks of `nbytes`; the last may be shorter."""
    rest = bytearray()
    for piece in pieces:
        if not rest and len(piece) == nbytes:
            yield piece
            continue
        rest += piece
        whole = len(rest) - len(rest) % nbytes
        for start in range(0, whole, nbytes):
            yield bytes(rest[start : start + nbytes])
        del rest[:whole]
    if rest:
        yield bytes(rest)


def _stretch(tensor: TensorInfo, start: int, count: int) -> TensorInfo:
    """Return a slice of a contiguous tensor's elements as a 1-d tensor, in storage order."""
    offset = tensor.storage_offset + start
    return replace(tensor, shape=(count,), stride=(1,), storage_offset=offset)


def _runs(a: TensorInfo, b: TensorInfo) -> tuple[Span, Span] | None:
    """Return the spans of both tensors if contiguous, with elements in the same order; or None."""
    a, b = in_one_piece(a), in_one_piece(b)
    if (a.dtype, a.shape) != (b.dtype, b.shape) or _order(a) != _order(b):
        return None
    one, other = run_of(a), run_of(b)
    return (one, other) if one and other else None


def _straight(tensor: TensorInfo) -> Span | None:
    """Return the span of the elements if its bytes are what is digested, in order; or None."""
    whole = in_one_piece(tensor)
    return run_of(whole) if whole.contiguous and not is_swapped(whole) else None


def _order(tensor: TensorInfo) -> object:
    """Return a value that is equal for tensors of one shape with elements in the same order."""
    swapped = is_swapped(tensor)
    return swapped if tensor.contiguous else (swapped, steps_of(tensor.shape, tensor.stride))


def _fingerprint(tensor: TensorInfo, files: Files) -> str | None:
    if obstacle(tensor):
        return None
    return content.fingerprint(tensor.dtype, tensor.shape, _content(tensor, files))


def _content(tensor: TensorInfo, files: Files) -> Iterator[bytes]:
    """Yield the elements' bytes; each component is preceded by its name, dtype and shape."""
    if not has_layers(tensor):
        yield from elements_in(tensor, files)
        return
    for part in tensor.parts:
        yield f"{part.name} {part.tensor.dtype}{list(part.tensor.shape)}".encode()
        yield from _content(part.tensor, files)


def _work(position: int, a: TensorInfo, b: TensorInfo) -> Iterator[tuple[int, _Work]]:
    """Yield (bytes read of each tensor, task) for a pair."""
    runs = None if has_layers(a) or has_layers(b) else _runs(a, b)
    if runs is None:
        yield a.nbytes, (position, a, b)
        return
    for one, other in zip(cut(runs[0], _PIECE), cut(runs[1], _PIECE), strict=True):
        yield one.nbytes, (position, one, other)


def _settle(folder: Path, work: Sequence[_Work]) -> list[bool | None]:
    with Files(folder) as files:
        return [_same(item, files) for item in work]


def _same(item: _Work, files: Files) -> bool | None:
    match item:
        case (_, Span() as one, Span() as other):
            return _same_bytes(one, other, files)
        case (_, TensorInfo() as a, TensorInfo() as b):
            return _equal(a, b, files)
    raise AssertionError(item)


def _digested(position: int, tensor: TensorInfo) -> Iterator[tuple[int, _Digested]]:
    """Yield (bytes read, task) for a tensor."""
    run = _straight(tensor)
    if run is None or tensor.nbytes <= content.PIECE:
        yield tensor.nbytes, (position, tensor)
        return
    for span in cut(run, content.PIECE):
        yield span.nbytes, (position, span)


def _digests(folder: Path, work: Sequence[_Digested]) -> list[bytes | str | None]:
    """Return the digest (bytes) of each span and the fingerprint (str, None) of each tensor."""
    with Files(folder) as files:
        return [
            next(content.piece_digests(files.passing(what)))
            if isinstance(what, Span)
            else _fingerprint(what, files)
            for _, what in work
        ]


def _batches(items: Iterable[tuple[int, _T]]) -> Iterator[Batch[_T]]:
    """Group items into batches of about _TASK_NBYTES bytes, or of at most _TASK_ITEMS items."""
    batch: list[_T] = []
    total = 0
    for nbytes, item in items:
        batch.append(item)
        total += nbytes
        if total >= _PIECE or len(batch) >= _BATCH:
            yield total, batch
            batch, total = [], 0
    if batch:
        yield total, batch
