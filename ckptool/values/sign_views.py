"""Conjugate and negative views of torch: bytes of the storage -> bytes of the elements."""

from collections.abc import Iterable, Iterator
from typing import Final

from ckptool.model import TensorInfo

SIGN_VIEWS: Final = frozenset({"conj", "neg", "conj-neg"})
"""Layouts of views whose elements have another sign than their storage: `x.conj()`, `x.mH`."""
_COMPONENT_NBYTES: Final = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "complex128": 8, "complex64": 4, "complex32": 2,
}  # fmt: skip
"""Dtypes whose sign is the last bit of a component -> bytes of one component, little-endian."""


def is_sign_view(tensor: TensorInfo) -> bool:
    """Whether the elements are those of the storage, but for the signs of their components."""
    return tensor.layout in SIGN_VIEWS and tensor.dtype in _COMPONENT_NBYTES


def flip_signs(tensor: TensorInfo, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the elements of a sign view from those of its storage, both split at any byte."""
    mask = _build_sign_mask(tensor)
    start = 0
    for piece in pieces:
        repeated = mask * (len(piece) // len(mask) + 2)
        signs = int.from_bytes(repeated[start : start + len(piece)], "little")
        yield (int.from_bytes(piece, "little") ^ signs).to_bytes(len(piece), "little")
        start = (start + len(piece)) % len(mask)


def _build_sign_mask(tensor: TensorInfo) -> bytes:
    """Return the bits of one element that differ from the storage."""
    is_negated, is_conjugated = "neg" in tensor.layout, "conj" in tensor.layout
    flips = [is_negated]
    if tensor.dtype.startswith("complex"):
        flips.append(is_negated != is_conjugated)
    zeros = bytes(_COMPONENT_NBYTES[tensor.dtype] - 1)
    return b"".join(zeros + (b"\x80" if flip else b"\0") for flip in flips)
