"""Bytes of tensors -> equal or not, and fingerprints: streamed in bounded memory, without torch."""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby, zip_longest
from typing import Final, Self, TypeVar

from msgspec.structs import replace

from ckptool import model
from ckptool.formats.files import Source, open_source
from ckptool.locations import Location
from ckptool.model import BITS, Span, TensorInfo
from ckptool.strides import REGION, WORD, extent_of, is_dense, pick, steps_of

_CHUNK: Final = 1 << 20
"""Bytes of one read: with less the calls show, with more the processor's cache is left."""
_PIECE: Final = 32 << 20
"""Bytes of a tensor that one thread takes at a time."""
_BATCH: Final = 1024
"""Small tensors, or pieces, that one thread takes at a time."""
_GATHERED: Final = 4 << 20
"""Elements of a view that are picked from anywhere in a file."""
_OPEN_FILES: Final = 16
_JOBS: Final = min(8, os.cpu_count() or 1)
_COMPONENT: Final = {"complex128": 8, "complex64": 4, "complex32": 2}

_T = TypeVar("_T")
_R = TypeVar("_R")
_Work = tuple[int, Callable[["_Files"], bool | None]]
"""Position of a pair, and what tells whether some or all of its bytes are equal."""
_Digested = tuple[int, int, Span | None]
"""Position of a tensor, and a piece of it with its number; None for all of it."""
_Placed = tuple[tuple[int, ...], TensorInfo]
"""A chunk, and where it starts within the whole."""


def equal(a: TensorInfo, b: TensorInfo) -> bool | None:
    """Tell whether two tensors have the same dtype, shape and bits.

    Returns:
        None where their elements cannot be told without torch: `obstacle` says why.

    Raises:
        ReadError: a file cannot be read any more, or is not what was described.
    """
    with _Files() as files:
        return _equal(a, b, files)


def equal_many(
    pairs: Iterable[tuple[TensorInfo, TensorInfo]], jobs: int = _JOBS
) -> list[bool | None]:
    """Return `equal` of each pair, in order; `jobs` threads share the work, large tensors too."""
    together = list(pairs)
    verdicts: list[bool | None] = [True] * len(together)

    def settle(batch: Sequence[_Work]) -> None:
        with _Files() as files:
            for position, same in batch:
                if verdicts[position] and (told := same(files)) is not True:
                    verdicts[position] = told

    work = (piece for position, pair in enumerate(together) for piece in _work(position, *pair))
    _in_threads(settle, _batches(work), jobs)
    return verdicts


def fingerprint(tensor: TensorInfo) -> str | None:
    """Return `model.fingerprint` of its elements; None where only torch could tell them.

    Raises:
        ReadError: the file cannot be read any more, or is not what was described.
    """
    with _Files() as files:
        return _fingerprint(tensor, files)


def fingerprint_many(tensors: Iterable[TensorInfo], jobs: int = _JOBS) -> list[str | None]:
    """Return `fingerprint` of each tensor, in order; `jobs` threads share large tensors too."""
    together = list(tensors)
    told: list[str | None] = [None] * len(together)
    pieces: dict[int, dict[int, bytes]] = {}

    def take(batch: Sequence[_Digested]) -> None:
        with _Files() as files:
            for position, number, span in batch:
                if span is None:
                    told[position] = _fingerprint(together[position], files)
                else:
                    (digest,) = model.piece_digests(map(files.read, _cut(span, _CHUNK)))
                    pieces[position][number] = digest

    def work() -> Iterator[tuple[int, _Digested]]:
        for position, tensor in enumerate(together):
            run = _straight(tensor)
            if run is None or tensor.nbytes <= model.PIECE:
                yield tensor.nbytes, (position, 0, None)
                continue
            pieces[position] = {}
            for number, span in enumerate(_cut(run, model.PIECE)):
                yield span.nbytes, (position, number, span)

    _in_threads(take, _batches(work()), jobs)
    for position, found in pieces.items():
        tensor, digests = together[position], (found[n] for n in range(len(found)))
        told[position] = model.fingerprint_of(tensor.dtype, tensor.shape, digests)
    return told


def elements(tensor: TensorInfo) -> Iterator[bytes]:
    """Yield the elements' bytes, little-endian, in C order, cut anywhere.

    Only for a tensor without an `obstacle`. One that has named parts (a sparse or quantised one)
    gives the parts' elements one after the other.
    """
    with _Files() as files:
        yield from _elements(tensor, files)


def obstacle(tensor: TensorInfo) -> str:
    """Return why the elements cannot be told without torch; "" where they can."""
    if _has_layers(tensor):
        return next((why for part in tensor.parts if (why := obstacle(part.tensor))), "")
    if tensor.numel == 0:
        return ""
    return _chunk_obstacle(tensor) if tensor.parts else _strided_obstacle(tensor)


class _Files:
    """The files that one thread has open: a few at a time, however many shards there are."""

    def __init__(self) -> None:
        self._open: dict[Location, tuple[Source, ExitStack]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._close_oldest()

    def read(self, span: Span) -> bytes:
        found = self._open.pop(span.path, None) or self._opened(span.path)
        self._open[span.path] = found
        return found[0].read(span.offset, span.nbytes)

    def _opened(self, path: Location) -> tuple[Source, ExitStack]:
        if len(self._open) >= _OPEN_FILES:
            self._close_oldest()
        stack = ExitStack()
        return stack.enter_context(open_source(path)), stack

    def _close_oldest(self) -> None:
        _, stack = self._open.pop(next(iter(self._open)))
        stack.close()


def _equal(a: TensorInfo, b: TensorInfo, files: _Files) -> bool | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if _has_layers(a) or _has_layers(b):
        return _equal_layers(a, b, files)
    if runs := _runs(a, b):
        return _same_bytes(*runs, files)
    if obstacle(a) or obstacle(b):
        return None
    blocks = zip_longest(_blocks(_elements(a, files)), _blocks(_elements(b, files)))
    return all(x == y for x, y in blocks)


def _equal_layers(a: TensorInfo, b: TensorInfo, files: _Files) -> bool | None:
    if a.layout != b.layout or [part.name for part in a.parts] != [part.name for part in b.parts]:
        return None
    both = zip(a.parts, b.parts, strict=True)
    told = [_equal(one.tensor, other.tensor, files) for one, other in both]
    return False if False in told else None if None in told else True


def _has_layers(tensor: TensorInfo) -> bool:
    """Whether its parts are different things (indices, values), and not pieces of one."""
    return bool(tensor.parts) and tensor.layout != "chunked"


def _same_bytes(a: Span, b: Span, files: _Files) -> bool:
    if a == b:
        return True
    if a.nbytes <= _CHUNK:
        return files.read(a) == files.read(b)
    pieces = zip(_cut(a, _CHUNK), _cut(b, _CHUNK), strict=True)
    return all(files.read(one) == files.read(other) for one, other in pieces)


def _cut(span: Span, nbytes: int) -> Iterator[Span]:
    for start in range(0, span.nbytes, nbytes):
        yield Span(span.path, span.offset + start, min(nbytes, span.nbytes - start))


def _blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut anew, so that two streams can be compared piece by piece."""
    rest = bytearray()
    for piece in pieces:
        if not rest and len(piece) == _CHUNK:
            yield piece
            continue
        rest += piece
        while len(rest) >= _CHUNK:
            yield bytes(rest[:_CHUNK])
            del rest[:_CHUNK]
    yield bytes(rest)


def _runs(a: TensorInfo, b: TensorInfo) -> tuple[Span, Span] | None:
    """Return the bytes of both, where each lies in one run and the runs have the same order."""
    a, b = _whole(a), _whole(b)
    if (a.dtype, a.shape) != (b.dtype, b.shape) or _order(a) != _order(b):
        return None
    one, other = _run(a), _run(b)
    return (one, other) if one and other else None


def _whole(tensor: TensorInfo) -> TensorInfo:
    """Return the only chunk of a tensor that is in one piece, else the tensor itself."""
    if tensor.layout == "chunked" and len(tensor.parts) == 1:
        chunk = tensor.parts[0].tensor
        return chunk if chunk.shape == tensor.shape else tensor
    return tensor


def _run(tensor: TensorInfo) -> Span | None:
    """Return the bytes of the elements, where they are one run in a file, in whatever order."""
    storage, bits = tensor.storage, BITS.get(tensor.dtype)
    if storage is None or storage.span is None or bits is None or tensor.layout != "strided":
        return None
    start = tensor.storage_offset * bits
    if start % 8 or not (tensor.contiguous or is_dense(steps_of(tensor.shape, tensor.stride))):
        return None
    return Span(storage.span.path, storage.span.offset + start // 8, tensor.nbytes)


def _straight(tensor: TensorInfo) -> Span | None:
    """Return the bytes of the elements, where they lie in one run as they are digested."""
    whole = _whole(tensor)
    return _run(whole) if whole.contiguous and not _is_swapped(whole) else None


def _order(tensor: TensorInfo) -> object:
    """Return what is the same for tensors of one shape whose runs have their elements alike."""
    swapped = _is_swapped(tensor)
    return swapped if tensor.contiguous else (swapped, steps_of(tensor.shape, tensor.stride))


def _is_swapped(tensor: TensorInfo) -> bool:
    big = tensor.storage is not None and tensor.storage.byteorder != "little"
    return big and BITS.get(tensor.dtype, 0) > 8


def _fingerprint(tensor: TensorInfo, files: _Files) -> str | None:
    if obstacle(tensor):
        return None
    return model.fingerprint(tensor.dtype, tensor.shape, _content(tensor, files))


def _content(tensor: TensorInfo, files: _Files) -> Iterator[bytes]:
    """Yield the elements' bytes; of parts that are different things, what they are as well."""
    if not _has_layers(tensor):
        yield from _elements(tensor, files)
        return
    for part in tensor.parts:
        yield f"{part.name} {part.tensor.dtype}{list(part.tensor.shape)}".encode()
        yield from _content(part.tensor, files)


def _elements(tensor: TensorInfo, files: _Files) -> Iterator[bytes]:
    if _has_layers(tensor):
        for part in tensor.parts:
            yield from _elements(part.tensor, files)
    elif tensor.numel == 0:
        return
    elif tensor.parts:
        yield from _stitched(_tiled(tensor), files)
    elif tensor.contiguous and (run := _run(tensor)):
        pieces = map(files.read, _cut(run, _CHUNK))
        yield from _little(tensor, pieces)
    else:
        yield from _little(tensor, _gathered(tensor, files))


def _little(tensor: TensorInfo, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Turn the bytes of each element around where the file has them the other way."""
    if not _is_swapped(tensor):
        yield from pieces
        return
    nbytes = _COMPONENT.get(tensor.dtype, BITS[tensor.dtype] // 8)
    for piece in pieces:
        words = array(WORD[nbytes], piece)
        words.byteswap()
        yield words.tobytes()


def _chunk_obstacle(tensor: TensorInfo) -> str:
    nested = any(part.tensor.parts for part in tensor.parts)
    if nested or not _tiles(_tiled(tensor), tensor.shape):
        return "its chunks do not tile it row by row"
    return next((why for part in tensor.parts if (why := obstacle(part.tensor))), "")


def _strided_obstacle(tensor: TensorInfo) -> str:
    if tensor.layout != "strided":
        return f"it is laid out as {tensor.layout}"
    if tensor.dtype not in BITS:
        return f"torch has no dtype {tensor.dtype}"
    if tensor.storage is None or tensor.storage.span is None:
        return "its bytes are compressed, or in no file"
    return _view_obstacle(tensor)


def _view_obstacle(tensor: TensorInfo) -> str:
    if tensor.contiguous and _run(tensor):
        return ""
    if BITS[tensor.dtype] % 8:
        return "its elements are packed into bits"
    extent = extent_of(steps_of(tensor.shape, tensor.stride))
    scattered = extent * BITS[tensor.dtype] // 8 > REGION or tensor.numel > extent
    if tensor.numel > _GATHERED and scattered:
        return f"it is a view of {tensor.numel} elements that do not lie together"
    return ""


def _gathered(tensor: TensorInfo, files: _Files) -> Iterator[bytes]:
    """Pick the elements of a view, as machine words; a complex128 is two of them."""
    span = tensor.storage.span if tensor.storage else None
    assert span is not None
    words = max(1, BITS[tensor.dtype] // 64)
    word = BITS[tensor.dtype] // 8 // words

    def read(first: int, count: int) -> bytes:
        return files.read(Span(span.path, span.offset + first * word, count * word))

    steps = [(size, stride * words) for size, stride in steps_of(tensor.shape, tensor.stride)]
    inside = [(words, 1)] if words > 1 else []
    return pick(read, [*steps, *inside], tensor.storage_offset * words, word)


def _tiled(tensor: TensorInfo) -> list[_Placed]:
    return [(part.offsets, part.tensor) for part in tensor.parts if part.tensor.numel]


def _bands(chunks: Iterable[_Placed]) -> Iterator[tuple[int, list[_Placed]]]:
    """Group the chunks by where they start in the first dimension."""
    by_start = sorted(chunks, key=lambda chunk: chunk[0])
    for start, band in groupby(by_start, key=lambda chunk: chunk[0][0]):
        yield start, list(band)


def _tiles(chunks: list[_Placed], shape: tuple[int, ...]) -> bool:
    """Whether the chunks cover the shape once, in bands that all their chunks fill in height."""
    if not shape:
        return len(chunks) == 1
    end = 0
    for start, band in _bands(chunks):
        height = band[0][1].shape[0]
        rows = [(offsets[1:], _row(chunk, 0)) for offsets, chunk in band]
        even = all(chunk.shape[0] == height for _, chunk in band)
        if start != end or not even or not _tiles(rows, shape[1:]):
            return False
        end = start + height
    return end == shape[0]


def _stitched(chunks: list[_Placed], files: _Files) -> Iterator[bytes]:
    """Yield the elements of the whole that the chunks tile."""
    if len(chunks) == 1:
        yield from _elements(chunks[0][1], files)
        return
    for _, band in _bands(chunks):
        if len(band) == 1:
            yield from _elements(band[0][1], files)
            continue
        for row in range(band[0][1].shape[0]):
            yield from _stitched([(at[1:], _row(chunk, row)) for at, chunk in band], files)


def _row(tensor: TensorInfo, row: int) -> TensorInfo:
    return replace(
        tensor,
        shape=tensor.shape[1:],
        stride=tensor.stride[1:],
        storage_offset=tensor.storage_offset + row * tensor.stride[0],
    )


def _work(position: int, a: TensorInfo, b: TensorInfo) -> Iterator[tuple[int, _Work]]:
    """Yield what is to be done for a pair, with the bytes that it reads of each."""
    runs = None if _has_layers(a) or _has_layers(b) else _runs(a, b)
    if runs is None:
        yield a.nbytes, (position, partial(_equal, a, b))
        return
    for one, other in zip(_cut(runs[0], _PIECE), _cut(runs[1], _PIECE), strict=True):
        yield one.nbytes, (position, partial(_same_bytes, one, other))


def _batches(items: Iterable[tuple[int, _T]]) -> Iterator[list[_T]]:
    """Group items until they are worth a thread's while: by the bytes they read, or by number."""
    batch: list[_T] = []
    total = 0
    for nbytes, item in items:
        batch.append(item)
        total += nbytes
        if total >= _PIECE or len(batch) >= _BATCH:
            yield batch
            batch, total = [], 0
    yield batch


def _in_threads(
    function: Callable[[list[_T]], _R], batches: Iterable[list[_T]], jobs: int
) -> list[_R]:
    together = list(batches)
    if jobs <= 1 or len(together) == 1:
        return list(map(function, together))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(function, together))
