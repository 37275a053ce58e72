"""Bytes of tensors -> equal or not, and fingerprints: streamed in bounded memory, without torch."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Final, Self, TypeVar

from msgspec.structs import replace

from ckptool import model
from ckptool.formats.files import Source, open_source
from ckptool.locations import Location, within
from ckptool.model import BITS, Span, TensorInfo
from ckptool.strides import REGION, WORD, extent_of, is_dense, pick, steps_of
from ckptool.workers import JOBS, Batch, Workers

_CHUNK: Final = 1 << 20
"""Bytes of one read: with less the calls show, with more the processor's cache is left."""
_PIECE: Final = 32 << 20
"""Bytes of a tensor that one thread takes at a time."""
_BATCH: Final = 1024
"""Small tensors, or pieces, that one thread takes at a time."""
_GATHERED: Final = 4 << 20
"""Elements of a view that are picked from anywhere in a file."""
_OPEN_FILES: Final = 16
_COMPONENT: Final = {"complex128": 8, "complex64": 4, "complex32": 2}

_T = TypeVar("_T")
_Work = tuple[int, Span, Span] | tuple[int, TensorInfo, TensorInfo]
"""Position of a pair, and what of both is to be compared: a piece of the bytes, or all."""
_Digested = tuple[int, Span | TensorInfo]
"""Position of a tensor, and what of it is digested: the next piece of its bytes, or all."""
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
    """Return `model.fingerprint` of its elements; None where only torch could tell them.

    Raises:
        ReadError: the file cannot be read any more, or is not what was described.
    """
    with _Files() as files:
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
        told[position] = model.fingerprint_of(tensor.dtype, tensor.shape, digests)
    return told


def aligned(
    a: TensorInfo, b: TensorInfo, elements: int, folder: Path = Path()
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the elements of two tensors of one shape, so many of each at a time, as `elements` do.

    Only for tensors without an `obstacle` whose elements take whole bytes.
    """
    with _Files(folder) as files:
        one, other = (
            _blocks(_elements(tensor, files), elements * BITS[tensor.dtype] // 8)
            for tensor in (a, b)
        )
        yield from zip(one, other, strict=True)


def pieces(a: TensorInfo, b: TensorInfo, elements: int) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    """Cut two tensors of one shape into tensors of so many elements each, where they can be."""
    one, other = _whole(a), _whole(b)
    even = one.contiguous and other.contiguous and _run(one) and _run(other)
    if not (even or _runs(one, other)):
        yield a, b
        return
    for start in range(0, one.numel, elements):
        count = min(elements, one.numel - start)
        yield _stretch(one, start, count), _stretch(other, start, count)


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

    def __init__(self, folder: Path = Path()) -> None:
        self._open: dict[Location, tuple[Source, ExitStack]] = {}
        self._folder = folder

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
        return stack.enter_context(open_source(within(self._folder, path))), stack

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
    both = (_blocks(_elements(tensor, files), _CHUNK) for tensor in (a, b))
    blocks = zip_longest(*both)
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
        yield a.nbytes, (position, a, b)
        return
    for one, other in zip(_cut(runs[0], _PIECE), _cut(runs[1], _PIECE), strict=True):
        yield one.nbytes, (position, one, other)


def _settle(folder: Path, work: Sequence[_Work]) -> list[bool | None]:
    with _Files(folder) as files:
        return [_same(item, files) for item in work]


def _same(item: _Work, files: _Files) -> bool | None:
    match item:
        case (_, Span() as one, Span() as other):
            return _same_bytes(one, other, files)
        case (_, TensorInfo() as a, TensorInfo() as b):
            return _equal(a, b, files)
    raise AssertionError(item)


def _digested(position: int, tensor: TensorInfo) -> Iterator[tuple[int, _Digested]]:
    """Yield what is to be digested of a tensor, with the bytes that it reads."""
    run = _straight(tensor)
    if run is None or tensor.nbytes <= model.PIECE:
        yield tensor.nbytes, (position, tensor)
        return
    for span in _cut(run, model.PIECE):
        yield span.nbytes, (position, span)


def _digests(folder: Path, work: Sequence[_Digested]) -> list[bytes | str | None]:
    """Return the digest of each piece, as bytes, and the fingerprint of each whole tensor."""
    with _Files(folder) as files:
        return [
            next(model.piece_digests(map(files.read, _cut(what, _CHUNK))))
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
