"""TensorInfo -> bytes of its elements, from strided views, chunks or components; without torch."""

from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Final, Self

from msgspec.structs import replace

from ckptool.formats.files import Source, open_source
from ckptool.locations import Location, within
from ckptool.model import BITS, Span, TensorInfo
from ckptool.strides import REGION, WORD, extent_of, is_dense, pick, steps_of

CHUNK: Final = 1 << 20
"""Bytes per read: less costs calls, more exceeds the CPU cache."""
_GATHERED: Final = 4 << 20
"""Maximum number of elements of a view that are gathered from scattered positions of a file."""
_OPEN_FILES: Final = 16
_COMPONENT: Final = {"complex128": 8, "complex64": 4, "complex32": 2}

_Placed = tuple[tuple[int, ...], TensorInfo]
"""(offsets of a chunk in the whole tensor, the chunk)."""


def elements(tensor: TensorInfo) -> Iterator[bytes]:
    """Yield the elements' bytes, little-endian, in C order, split at any byte.

    Only for tensors whose `unreadable_reason` is "". For named components (sparse, quantised) it
    yields the elements of each component in turn.
    """
    with Files() as files:
        yield from elements_in(tensor, files)


def obstacle(tensor: TensorInfo) -> str:
    """Return why the elements cannot be read without torch; "" if they can."""
    if has_layers(tensor):
        return next((why for part in tensor.parts if (why := obstacle(part.tensor))), "")
    if tensor.numel == 0:
        return ""
    return _chunk_obstacle(tensor) if tensor.parts else _strided_obstacle(tensor)


class Files:
    """Open files of one thread: at most _MAX_OPEN_FILES, the least recently used closed first."""

    def __init__(self, folder: Path = Path()) -> None:
        self._open: dict[Location, tuple[Source, ExitStack]] = {}
        self._folder = folder
        self._buffers = [bytearray(), bytearray()]
        """Reused: allocating a buffer per read costs more than the read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._close_oldest()

    def read(self, span: Span) -> bytes:
        return self._source(span).read(span.offset, span.nbytes)

    def same(self, one: Span, other: Span) -> bool:
        """Whether two spans of equal length, at most CHUNK bytes, have the same bytes."""
        return self._filled(one, 0) == self._filled(other, 1)

    def passing(self, span: Span) -> Iterator[bytearray]:
        """Yield a span in chunks of at most CHUNK bytes; the buffer is reused for the next one."""
        for piece in cut(span, CHUNK):
            yield self._filled(piece, 0)

    def _filled(self, span: Span, number: int) -> bytearray:
        if len(self._buffers[number]) != span.nbytes:
            self._buffers[number] = bytearray(span.nbytes)
        self._source(span).read_into(memoryview(self._buffers[number]), span.offset)
        return self._buffers[number]

    def _source(self, span: Span) -> Source:
        found = self._open.pop(span.path, None) or self._opened(span.path)
        self._open[span.path] = found
        return found[0]

    def _opened(self, path: Location) -> tuple[Source, ExitStack]:
        if len(self._open) >= _OPEN_FILES:
            self._close_oldest()
        stack = ExitStack()
        return stack.enter_context(open_source(within(self._folder, path))), stack

    def _close_oldest(self) -> None:
        _, stack = self._open.pop(next(iter(self._open)))
        stack.close()


def has_layers(tensor: TensorInfo) -> bool:
    """Whether its parts are components (indices, values), not chunks."""
    return bool(tensor.parts) and tensor.layout != "chunked"


def cut(span: Span, nbytes: int) -> Iterator[Span]:
    for start in range(0, span.nbytes, nbytes):
        yield Span(span.path, span.offset + start, min(nbytes, span.nbytes - start))


def in_one_piece(tensor: TensorInfo) -> TensorInfo:
    """Return the chunk of a tensor that has one only, else the tensor itself."""
    if tensor.layout == "chunked" and len(tensor.parts) == 1:
        chunk = tensor.parts[0].tensor
        return chunk if chunk.shape == tensor.shape else tensor
    return tensor


def run_of(tensor: TensorInfo) -> Span | None:
    """Return the span of the elements if contiguous in a file, in any order; else None."""
    storage, bits = tensor.storage, BITS.get(tensor.dtype)
    if storage is None or storage.span is None or bits is None or tensor.layout != "strided":
        return None
    start = tensor.storage_offset * bits
    if start % 8 or not (tensor.contiguous or is_dense(steps_of(tensor.shape, tensor.stride))):
        return None
    return Span(storage.span.path, storage.span.offset + start // 8, tensor.nbytes)


def is_swapped(tensor: TensorInfo) -> bool:
    big = tensor.storage is not None and tensor.storage.byteorder != "little"
    return big and BITS.get(tensor.dtype, 0) > 8


def elements_in(tensor: TensorInfo, files: Files) -> Iterator[bytes]:
    if has_layers(tensor):
        for part in tensor.parts:
            yield from elements_in(part.tensor, files)
    elif tensor.numel == 0:
        return
    elif tensor.parts:
        yield from _stitched(_tiled(tensor), files)
    elif tensor.contiguous and (run := run_of(tensor)):
        pieces = map(files.read, cut(run, CHUNK))
        yield from _little(tensor, pieces)
    else:
        yield from _little(tensor, _gathered(tensor, files))


def _little(tensor: TensorInfo, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Swap the bytes of each element if the file is big-endian."""
    if not is_swapped(tensor):
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
    if tensor.contiguous and run_of(tensor):
        return ""
    if BITS[tensor.dtype] % 8:
        return "its elements are packed into bits"
    extent = extent_of(steps_of(tensor.shape, tensor.stride))
    scattered = extent * BITS[tensor.dtype] // 8 > REGION or tensor.numel > extent
    if tensor.numel > _GATHERED and scattered:
        return f"it is a view of {tensor.numel} elements that do not lie together"
    return ""


def _gathered(tensor: TensorInfo, files: Files) -> Iterator[bytes]:
    """Yield the elements of a view, gathered as machine words; a complex128 is two words."""
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
    """Yield (start in the first dimension, chunks that start there), in order."""
    by_start = sorted(chunks, key=lambda chunk: chunk[0])
    for start, band in groupby(by_start, key=lambda chunk: chunk[0][0]):
        yield start, list(band)


def _tiles(chunks: list[_Placed], shape: tuple[int, ...]) -> bool:
    """Whether the chunks cover the shape exactly once, in bands of chunks of equal height."""
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


def _stitched(chunks: list[_Placed], files: Files) -> Iterator[bytes]:
    """Yield the elements, in C order, of the tensor that the chunks tile."""
    if len(chunks) == 1:
        yield from elements_in(chunks[0][1], files)
        return
    for _, band in _bands(chunks):
        if len(band) == 1:
            yield from elements_in(band[0][1], files)
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
