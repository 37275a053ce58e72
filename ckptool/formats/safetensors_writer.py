"""Tensors as runs of bytes -> a safetensors file, in an order that is always the same."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from ckptool.formats.blobs import Blob, Sink
from ckptool.formats.safetensors import DTYPES
from ckptool.model import BITS, natural

CODES: Final[Mapping[str, str]] = MappingProxyType(
    {**{dtype: code for code, dtype in DTYPES.items()}, "float4_e2m1fn_x2": "F4"}
)
"""torch's name of a dtype -> safetensors'."""

_ALIGNED: Final = 8
_LENGTH_BYTES: Final = 8
_PICKLES: Final = 0x80
"""The first byte of a pickle: a length must not begin so, or loaders could take it for one."""


class Stored(Struct, frozen=True):
    """One tensor of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    blob: Blob
    after: bool = False
    """Whether it stands behind those of its width that are not."""
    place: str = ""
    """Key by which it is sorted; "" is its own."""


def ordered(tensors: Sequence[Stored]) -> list[Stored]:
    """Return the order in the file: wide elements first, so that each lies aligned, then by key."""
    return sorted(
        tensors, key=lambda t: (-BITS[t.dtype], t.after, natural(t.place or t.key), t.key)
    )


def header(tensors: Sequence[Stored], metadata: Mapping[str, str], room: int = 0) -> bytes:
    """Return the length and the header of a file of `tensors`, in their order.

    It takes `room` bytes at least, a multiple of 8: the format lets a header end in spaces.
    """
    ends = list(accumulate((t.blob.nbytes for t in tensors), initial=0))
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    for tensor, begin, end in zip(tensors, ends, ends[1:], strict=False):
        code, shape = _as_safetensors(tensor)
        entries[tensor.key] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    length = len(text) + -len(text) % _ALIGNED
    length = max(length, room - _LENGTH_BYTES)
    length += _ALIGNED if length & 0xFF == _PICKLES else 0
    return length.to_bytes(_LENGTH_BYTES, "little") + text.ljust(length)


def write(sink: Sink, tensors: Sequence[Stored], metadata: Mapping[str, str]) -> None:
    """Write the whole file; `tensors` are in the order that `ordered` gives."""
    sink.write(header(tensors, metadata))
    for tensor in tensors:
        sink.append(tensor.blob)


def _as_safetensors(tensor: Stored) -> tuple[str, list[int]]:
    shape = list(tensor.shape)
    if tensor.dtype == "float4_e2m1fn_x2":
        # There, a shape counts elements; in torch, pairs of them.
        shape[-1:] = [size * 2 for size in shape[-1:]]
    return CODES[tensor.dtype], shape
