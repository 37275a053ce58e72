"""TensorInfo -> bytes of its elements, from strided views, chunks or components; without torch."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final, Self

from msgspec.structs import replace

from ckptool.formats.files.read_window import SpanReader
from ckptool.formats.files.source import ByteSource, SourceCache
from ckptool.locations import Location
from ckptool.model import DTYPE_BITS, Span, TensorComponent, TensorInfo
from ckptool.values.sign_views import flip_signs, is_sign_view
from ckptool.values.strides import (
    REGION,
    WORD_CODES,
    compute_extent,
    compute_steps,
    is_dense,
    iter_view_bytes,
)

CHUNK: Final = 1 << 20
"""Bytes per read: less costs calls, more exceeds the CPU cache."""
_MAX_GATHERED_ELEMENTS: Final = 4 << 20
"""Maximum number of elements of a view that are gathered from scattered positions of a file."""
_MAX_OPEN_FILES: Final = 16
_COMPONENT_NBYTES: Final = {"complex128": 8, "complex64": 4, "complex32": 2}


def iter_elements(tensor: TensorInfo) -> Iterator[bytes]:
    """Yield the elements' bytes, little-endian, in C order, split at any byte.

    Only for tensors whose `unreadable_reason` is "". For named components (sparse, quantised) it
    yields the elements of each component in turn.
    """
    with OpenFiles() as files:
        yield from iter_elements_from(tensor, files)


def unreadable_reason(tensor: TensorInfo) -> str:
    """Return why the elements cannot be read without torch; "" if they can."""
    storage, bits = tensor.storage, DTYPE_BITS.get(tensor.dtype, 1)
    is_in_file = storage is not None and storage.span is not None and not tensor.parts
    if is_in_file and bits % 8 == 0 and tensor.is_contiguous:
        return ""
    if has_component_tensors(tensor):
        return next(
            (reason for part in tensor.parts if (reason := unreadable_reason(part.tensor))), ""
        )
    if tensor.numel == 0:
        return ""
    return _chunks_unreadable_reason(tensor) if tensor.parts else _strided_unreadable_reason(tensor)


class OpenFiles:
    """Reads spans for one thread, with its open files and its buffers."""

    def __init__(self, folder: Path = Path()) -> None:
        self._sources = SourceCache(_MAX_OPEN_FILES, folder)
        self._reader = SpanReader(self._sources)
        self._buffers = [bytearray(), bytearray()]
        """Reused: allocating a buffer per read costs more than the read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sources.close()

    def get_source(self, path: Location) -> ByteSource:
        """Return the open file at `path`.

        Raises:
            ReadError: it cannot be opened.
        """
        return self._sources.get_source(path)

    def read_span(self, span: Span) -> bytes:
        return self._reader.read_span(span)

    def equal_spans(self, first: Span, second: Span) -> bool:
        """Whether two spans of equal length, at most CHUNK bytes, have the same bytes."""
        return self._fill_buffer(first, 0) == self._fill_buffer(second, 1)

    def iter_chunk_pairs(
        self, first: Span, second: Span, first_nbytes: int, second_nbytes: int
    ) -> Iterator[tuple[bytearray, bytearray]]:
        """Yield two spans in chunks of these sizes; the buffers are reused for the next ones."""
        pieces = zip(
            split_span(first, first_nbytes), split_span(second, second_nbytes), strict=True
        )
        for first_piece, second_piece in pieces:
            yield self._fill_buffer(first_piece, 0), self._fill_buffer(second_piece, 1)

    def iter_chunks(self, span: Span) -> Iterator[bytearray]:
        """Yield a span in chunks of at most CHUNK bytes; the buffer is reused for the next one."""
        for piece in split_span(span, CHUNK):
            yield self._fill_buffer(piece, 0)

    def _fill_buffer(self, span: Span, buffer_index: int) -> bytearray:
        if len(self._buffers[buffer_index]) != span.nbytes:
            self._buffers[buffer_index] = bytearray(span.nbytes)
        source = self._sources.get_source(span.path)
        source.read_into(memoryview(self._buffers[buffer_index]), span.offset)
        return self._buffers[buffer_index]


def has_component_tensors(tensor: TensorInfo) -> bool:
    """Whether its parts are components (indices, values), not chunks."""
    return bool(tensor.parts) and tensor.layout != "chunked"


def split_span(span: Span, nbytes: int) -> Iterator[Span]:
    for start in range(0, span.nbytes, nbytes):
        yield Span(span.path, span.offset + start, min(nbytes, span.nbytes - start))


def unwrap_single_chunk(tensor: TensorInfo) -> TensorInfo:
    """Return the chunk of a tensor that has one only, else the tensor itself."""
    if tensor.layout == "chunked" and len(tensor.parts) == 1:
        chunk = tensor.parts[0].tensor
        return chunk if chunk.shape == tensor.shape else tensor
    return tensor


def contiguous_span(tensor: TensorInfo) -> Span | None:
    """Return the span of the elements if contiguous in a file, in any order; else None."""
    storage, bits = tensor.storage, DTYPE_BITS.get(tensor.dtype)
    if storage is None or storage.span is None or bits is None or tensor.layout != "strided":
        return None
    start = tensor.storage_offset * bits
    if start % 8 or not (
        tensor.is_contiguous or is_dense(compute_steps(tensor.shape, tensor.stride))
    ):
        return None
    return Span(storage.span.path, storage.span.offset + start // 8, tensor.nbytes)


def needs_byteswap(tensor: TensorInfo) -> bool:
    is_big_endian = tensor.storage is not None and tensor.storage.byteorder != "little"
    return is_big_endian and DTYPE_BITS.get(tensor.dtype, 0) > 8


def iter_elements_from(tensor: TensorInfo, files: OpenFiles) -> Iterator[bytes]:
    if has_component_tensors(tensor):
        for part in tensor.parts:
            yield from iter_elements_from(part.tensor, files)
    elif tensor.numel == 0:
        return
    elif is_sign_view(tensor):
        stored_tensor = replace(tensor, layout="strided")
        yield from flip_signs(tensor, iter_elements_from(stored_tensor, files))
    elif tensor.parts:
        yield from _iter_tiled_elements(_list_chunks(tensor), files)
    elif tensor.is_contiguous and (span := contiguous_span(tensor)):
        pieces = map(files.read_span, split_span(span, CHUNK))
        yield from _to_little_endian(tensor, pieces)
    else:
        yield from _to_little_endian(tensor, _iter_view_elements(tensor, files))


def _to_little_endian(tensor: TensorInfo, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Swap the bytes of each element if the file is big-endian."""
    yield from swap_element_bytes(tensor.dtype, pieces) if needs_byteswap(tensor) else pieces


def swap_element_bytes(dtype: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield pieces of elements of `dtype` in the other byte order; they may be cut at any byte."""
    nbytes = _COMPONENT_NBYTES.get(dtype, DTYPE_BITS[dtype] // 8)
    tail = b""
    for piece in pieces:
        data = tail + piece if tail else piece
        end = len(data) - len(data) % nbytes
        data, tail = data[:end], data[end:]
        words = array(WORD_CODES[nbytes], data)
        words.byteswap()
        yield words.tobytes()


def iter_span_chunks(span: Span) -> Iterator[bytes]:
    """Yield the bytes of a span of a file in chunks."""
    with OpenFiles() as files:
        yield from map(files.read_span, split_span(span, CHUNK))


def _chunks_unreadable_reason(tensor: TensorInfo) -> str:
    has_nested_parts = any(part.tensor.parts for part in tensor.parts)
    if has_nested_parts or not _covers_shape(_list_chunks(tensor), tensor.shape):
        return "its chunks do not tile it row by row"
    return next((reason for part in tensor.parts if (reason := unreadable_reason(part.tensor))), "")


def _strided_unreadable_reason(tensor: TensorInfo) -> str:
    if is_sign_view(tensor):
        return unreadable_reason(replace(tensor, layout="strided"))
    if tensor.layout != "strided":
        return f"it is laid out as {tensor.layout}"
    if tensor.dtype not in DTYPE_BITS:
        return f"torch has no dtype {tensor.dtype}"
    storage = tensor.storage
    if tensor.is_on_meta:
        return "it was saved on meta, without data"
    if storage is None or (storage.span is None and storage.content is None):
        return "its bytes are compressed, or not in a file"
    return _view_unreadable_reason(tensor)


def _view_unreadable_reason(tensor: TensorInfo) -> str:
    if tensor.is_contiguous and contiguous_span(tensor):
        return ""
    if DTYPE_BITS[tensor.dtype] % 8:
        return "its elements are bit-packed"
    extent = compute_extent(compute_steps(tensor.shape, tensor.stride))
    is_scattered = extent * DTYPE_BITS[tensor.dtype] // 8 > REGION or tensor.numel > extent
    if tensor.numel > _MAX_GATHERED_ELEMENTS and is_scattered:
        return f"it is a view of {tensor.numel} elements that are not contiguous"
    return ""


def _iter_view_elements(tensor: TensorInfo, files: OpenFiles) -> Iterator[bytes]:
    """Yield the elements of a view, gathered as machine words; a complex128 is two words."""
    storage = tensor.storage
    assert storage is not None
    span, content = storage.span, storage.content
    words_per_element = max(1, DTYPE_BITS[tensor.dtype] // 64)
    word_nbytes = DTYPE_BITS[tensor.dtype] // 8 // words_per_element

    def read_words(first: int, count: int) -> bytes:
        if content is not None:
            return content[first * word_nbytes : (first + count) * word_nbytes]
        assert span is not None
        return files.read_span(
            Span(span.path, span.offset + first * word_nbytes, count * word_nbytes)
        )

    steps = [
        (size, stride * words_per_element)
        for size, stride in compute_steps(tensor.shape, tensor.stride)
    ]
    word_steps = [(words_per_element, 1)] if words_per_element > 1 else []
    return iter_view_bytes(
        read_words, [*steps, *word_steps], tensor.storage_offset * words_per_element, word_nbytes
    )


def _list_chunks(tensor: TensorInfo) -> list[TensorComponent]:
    """Return the chunks of a tensor that have elements."""
    return [part for part in tensor.parts if part.tensor.numel]


def _group_row_bands(
    chunks: Iterable[TensorComponent],
) -> Iterator[tuple[int, list[TensorComponent]]]:
    """Yield (start in the first dimension, chunks that start there), in order."""
    by_start = sorted(chunks, key=lambda chunk: chunk.offsets)
    for start, band in groupby(by_start, key=lambda chunk: chunk.offsets[0]):
        yield start, list(band)


def _covers_shape(chunks: list[TensorComponent], shape: tuple[int, ...]) -> bool:
    """Whether the chunks cover the shape exactly once, in bands of chunks of equal height."""
    if not shape:
        return len(chunks) == 1
    end = 0
    for start, band in _group_row_bands(chunks):
        height = _get_height(band)
        same_height = all(chunk.tensor.shape[0] == height for chunk in band)
        rows = [_select_row(chunk, 0) for chunk in band]
        if start != end or not same_height or not _covers_shape(rows, shape[1:]):
            return False
        end = start + height
    return end == shape[0]


def _get_height(band: list[TensorComponent]) -> int:
    return band[0].tensor.shape[0]


def _iter_tiled_elements(chunks: list[TensorComponent], files: OpenFiles) -> Iterator[bytes]:
    """Yield the elements, in C order, of the tensor that the chunks tile."""
    if len(chunks) == 1:
        yield from iter_elements_from(chunks[0].tensor, files)
        return
    for _, band in _group_row_bands(chunks):
        if len(band) == 1:
            yield from iter_elements_from(band[0].tensor, files)
            continue
        for row in range(_get_height(band)):
            yield from _iter_tiled_elements([_select_row(chunk, row) for chunk in band], files)


def _select_row(chunk: TensorComponent, row: int) -> TensorComponent:
    """Return one index of the first dimension of a chunk, as a chunk without that dimension."""
    tensor = chunk.tensor
    row_tensor = replace(
        tensor,
        shape=tensor.shape[1:],
        stride=tensor.stride[1:],
        storage_offset=tensor.storage_offset + row * tensor.stride[0],
    )
    return TensorComponent(chunk.name, chunk.offsets[1:], row_tensor)
