"""Bytes of tensors -> equal or not, and fingerprints: streamed in bounded memory, without torch."""

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
"""Bytes of a tensor that one thread takes at a time."""
_BATCH: Final = 1024
"""Small tensors, or pieces, that one thread takes at a time."""

_T = TypeVar("_T")
_Work = tuple[int, Span, Span] | tuple[int, TensorInfo, TensorInfo]
"""Position of a pair, and what of both is to be compared: a piece of the bytes, or all."""
_Digested = tuple[int, Span | TensorInfo]
"""Position of a tensor, and what of it is digested: the next piece of its bytes, or all."""


def equal(a: TensorInfo, b: TensorInfo) -> bool | None:
    """Tell whether two tensors have the same dtype, shape and bits.

    Returns:
        None where their elements cannot be told without torch: `obstacle` says why.

    Raises:
        ReadError: a file cannot be read any more, or is not what was described.
    """
    with Files() as files:
        return _equal(a, b, files)


def equal_many(
    pairs: Iterable[tuple[TensorInfo, TensorInfo]], jobs: int = JOBS, workers: Workers | None = None
) -> list[bool | None]:
    """Return `equal` of each pair, in order; large tensors are cut among those who work.

    Args:
        pairs: what is compared.
        jobs: threads that share the work.
        workers: who does it instead.
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
    """Return `content.fingerprint` of its elements; None where only torch could tell them.

    Raises:
        ReadError: the file cannot be read any more, or is not what was described.
    """
    with Files() as files:
        return _fingerprint(tensor, files)


def fingerprint_many(
    tensors: Iterable[TensorInfo], jobs: int = JOBS, workers: Workers | None = None
) -> list[str | None]:
    """Return `fingerprint` of each tensor, in order; large ones are cut among those who work."""
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
    """Yield the elements of two tensors of one shape, so many of each at a time, as `elements` do.

    Only for tensors without an `obstacle` whose elements take whole bytes.
    """
    with Files(folder) as files:
        one, other = (
            _blocks(elements_in(tensor, files), elements * BITS[tensor.dtype] // 8)
            for tensor in (a, b)
        )
        yield from zip(one, other, strict=True)


def pieces(a: TensorInfo, b: TensorInfo, elements: int) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    """Cut two tensors of one shape into tensors of so many elements each, where they can be."""
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
    """Cut anew, so that two streams can be compared piece by piece."""
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
    """Return some of the elements of a tensor that lie in one run, in the run's order."""
    offset = tensor.storage_offset + start
    return replace(tensor, shape=(count,), stride=(1,), storage_offset=offset)


def _runs(a: TensorInfo, b: TensorInfo) -> tuple[Span, Span] | None:
    """Return the bytes of both, where each lies in one run and the runs have the same order."""
    a, b = in_one_piece(a), in_one_piece(b)
    if (a.dtype, a.shape) != (b.dtype, b.shape) or _order(a) != _order(b):
        return None
    one, other = run_of(a), run_of(b)
    return (one, other) if one and other else None


def _straight(tensor: TensorInfo) -> Span | None:
    """Return the bytes of the elements, where they lie in one run as they are digested."""
    whole = in_one_piece(tensor)
    return run_of(whole) if whole.contiguous and not is_swapped(whole) else None


def _order(tensor: TensorInfo) -> object:
    """Return what is the same for tensors of one shape whose runs have their elements alike."""
    swapped = is_swapped(tensor)
    return swapped if tensor.contiguous else (swapped, steps_of(tensor.shape, tensor.stride))


def _fingerprint(tensor: TensorInfo, files: Files) -> str | None:
    if obstacle(tensor):
        return None
    return content.fingerprint(tensor.dtype, tensor.shape, _content(tensor, files))


def _content(tensor: TensorInfo, files: Files) -> Iterator[bytes]:
    """Yield the elements' bytes; of parts that are different things, what they are as well."""
    if not has_layers(tensor):
        yield from elements_in(tensor, files)
        return
    for part in tensor.parts:
        yield f"{part.name} {part.tensor.dtype}{list(part.tensor.shape)}".encode()
        yield from _content(part.tensor, files)


def _work(position: int, a: TensorInfo, b: TensorInfo) -> Iterator[tuple[int, _Work]]:
    """Yield what is to be done for a pair, with the bytes that it reads of each."""
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
    """Yield what is to be digested of a tensor, with the bytes that it reads."""
    run = _straight(tensor)
    if run is None or tensor.nbytes <= content.PIECE:
        yield tensor.nbytes, (position, tensor)
        return
    for span in cut(run, content.PIECE):
        yield span.nbytes, (position, span)


def _digests(folder: Path, work: Sequence[_Digested]) -> list[bytes | str | None]:
    """Return the digest of each piece, as bytes, and the fingerprint of each whole tensor."""
    with Files(folder) as files:
        return [
            next(content.piece_digests(files.passing(what)))
            if isinstance(what, Span)
            else _fingerprint(what, files)
            for _, what in work
        ]


def _batches(items: Iterable[tuple[int, _T]]) -> Iterator[Batch[_T]]:
    """Group items until they are worth sending: by the bytes they read, or by number."""
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
