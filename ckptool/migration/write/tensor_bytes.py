"""PlannedTensor -> Blob: bytes copied from a span, gathered by strides, or cast in chunks."""

from collections.abc import Iterator
from typing import Final

from ckptool.formats.files.writer import Blob
from ckptool.migration.plan.draft import PlannedTensor
from ckptool.model import DTYPE_BITS, TensorInfo
from ckptool.values.elements import iter_elements
from ckptool.values.torch_bytes import copy_tensor_bytes

_PIECE_NBYTES: Final = 1 << 20
_MAX_WHOLE_NBYTES: Final = 64 << 20
"""Bytes of the largest tensor that is cast in one call."""
_MAX_SPREAD: Final = 4
"""Elements of memory per element of a view that is laid out as in its source."""


def build_blob(item: PlannedTensor) -> Blob:
    """Return the blob of one tensor of the result: contiguous, little-endian."""
    tensor = item.tensor
    if item.casts:
        nbytes = tensor.numel * DTYPE_BITS[item.dtype] // 8
        return Blob(nbytes, iter_chunks=lambda: _iter_cast_bytes(tensor, item.casts))
    span = tensor.span
    if span is not None:
        return Blob(span.nbytes, span)
    return Blob(tensor.nbytes, iter_chunks=lambda: iter_elements(tensor))


def _iter_cast_bytes(tensor: TensorInfo, casts: tuple[str, ...]) -> Iterator[bytes]:
    """Yield the bytes after all casts; of a large tensor only one chunk is in memory at a time.

    A smaller one is laid out as in its source: the bits of a NaN after a cast depend on strides.
    """
    import torch

    dtypes = [getattr(torch, name) for name in casts]
    source_dtype = getattr(torch, tensor.dtype)
    if 0 < tensor.nbytes <= _MAX_WHOLE_NBYTES:
        data = bytearray(b"".join(iter_elements(tensor)))
        values = torch.frombuffer(data, dtype=source_dtype).reshape(tensor.shape)
        if not tensor.is_contiguous and _is_spread_little(tensor):
            values = torch.empty_strided(tensor.shape, tensor.stride, dtype=source_dtype).copy_(
                values
            )
        for dtype in dtypes:
            values = values.to(dtype)
        yield copy_tensor_bytes(values.contiguous())
        return
    for piece in _align_to_elements(iter_elements(tensor), DTYPE_BITS[tensor.dtype] // 8):
        converted_piece = torch.frombuffer(piece, dtype=source_dtype)
        for dtype in dtypes:
            converted_piece = converted_piece.to(dtype)
        yield copy_tensor_bytes(converted_piece)


def _is_spread_little(tensor: TensorInfo) -> bool:
    """Whether a view's elements are distinct, and lie in at most a few times their own memory."""
    if tensor.layout != "strided":
        return False
    is_expanded = any(
        size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride, strict=True)
    )
    extent = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    return not is_expanded and extent < _MAX_SPREAD * tensor.numel


def _align_to_elements(pieces: Iterator[bytes], nbytes: int) -> Iterator[bytearray]:
    """Rechunk so that no element of `nbytes` bytes is split across chunks."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if len(buffer) >= _PIECE_NBYTES:
            end = len(buffer) - len(buffer) % nbytes
            yield buffer[:end]
            buffer = buffer[end:]
    if buffer:
        yield buffer
