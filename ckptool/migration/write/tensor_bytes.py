"""PlannedTensor -> Blob: bytes copied from a span, gathered by strides, or cast in chunks."""

from collections.abc import Iterator
from typing import Final

from ckptool.formats.files.writer import Blob
from ckptool.migration.plan.draft import PlannedTensor
from ckptool.model import DTYPE_BITS, TensorInfo
from ckptool.tensors.elements import iter_elements
from ckptool.tensors.torch_bytes import copy_tensor_bytes

_PIECE_NBYTES: Final = 1 << 20


def build_blob(item: PlannedTensor) -> Blob:
    """Return the blob of one tensor of the result: contiguous, little-endian."""
    tensor = item.tensor
    if item.casts:
        nbytes = tensor.numel * DTYPE_BITS[item.dtype] // 8
        return Blob(nbytes, iter_chunks=lambda: _iter_cast_bytes(tensor, item.casts))
    if tensor.span is not None:
        return Blob(tensor.nbytes, tensor.span)
    return Blob(tensor.nbytes, iter_chunks=lambda: iter_elements(tensor))


def _iter_cast_bytes(tensor: TensorInfo, casts: tuple[str, ...]) -> Iterator[bytes]:
    """Yield the bytes after all casts; only one chunk is in memory at a time."""
    import torch

    dtypes = [getattr(torch, name) for name in casts]
    source_dtype = getattr(torch, tensor.dtype)
    for piece in _align_to_elements(iter_elements(tensor), DTYPE_BITS[tensor.dtype] // 8):
        converted_piece = torch.frombuffer(piece, dtype=source_dtype)
        for dtype in dtypes:
            converted_piece = converted_piece.to(dtype)
        yield copy_tensor_bytes(converted_piece)


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
