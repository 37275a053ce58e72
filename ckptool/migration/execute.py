"""PlannedTensor -> Blob: bytes copied from a span, gathered by strides, or cast in chunks."""

import ctypes
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ckptool.elements import elements
from ckptool.formats.blobs import Blob
from ckptool.migration.draft import Item
from ckptool.model import BITS, TensorInfo

if TYPE_CHECKING:
    import torch

_PIECE: Final = 1 << 20


def blob(item: Item) -> Blob:
    """Return the blob of one tensor of the result: contiguous, little-endian."""
    tensor = item.tensor
    if item.casts:
        nbytes = tensor.numel * BITS[item.dtype] // 8
        return Blob(nbytes, chunks=lambda: _cast(tensor, item.casts))
    if tensor.span is not None:
        return Blob(tensor.nbytes, tensor.span)
    return Blob(tensor.nbytes, chunks=lambda: elements(tensor))


def _cast(tensor: TensorInfo, casts: tuple[str, ...]) -> Iterator[bytes]:
    """Yield the bytes after all casts; only one chunk is in memory at a time."""
    import torch

    dtypes = [getattr(torch, name) for name in casts]
    before = getattr(torch, tensor.dtype)
    for piece in _whole_elements(elements(tensor), BITS[tensor.dtype] // 8):
        made = torch.frombuffer(piece, dtype=before)
        for dtype in dtypes:
            made = made.to(dtype)
        yield _bytes(made)


def _whole_elements(pieces: Iterator[bytes], nbytes: int) -> Iterator[bytearray]:
    """Rechunk so that no element of `nbytes` bytes is split across chunks."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        if len(rest) >= _PIECE:
            end = len(rest) - len(rest) % nbytes
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _bytes(tensor: "torch.Tensor") -> bytes:
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
