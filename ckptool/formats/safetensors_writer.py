"""SafetensorsEntry -> safetensors file, in a deterministic order."""

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
"""torch dtype name -> safetensors dtype name."""

_ALIGNED: Final = 8
_LENGTH_BYTES: Final = 8
_PICKLES: Final = 0x80
"""Opcode PROTO: the header length must not start with it, or loaders may see a pickle."""


class Stored(Struct, frozen=True):
    """One tensor to write: header fields and data."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    blob: Blob
    after: bool = False
    """Whether it is ordered after the tensors of equal element width without this flag."""
    place: str = ""
    """Key to sort by; "" means `key`."""


def ordered(tensors: Sequence[Stored]) -> list[Stored]:
    """Sort by element width, widest first (keeps all tensors aligned), then by key."""
    return sorted(
        tensors, key=lambda t: (-BITS[t.dtype], t.after, natural(t.place or t.key), t.key)
    )


def header(tensors: Sequence[Stored], metadata: Mapping[str, str], room: int = 0) -> bytes:
    """Return the 8-byte length and the JSON header for `tensors` in this order.

    Padded with spaces, which the format allows, to at least `min_nbytes`, a multiple of 8.
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
    """Write header and data; `tensors` must be ordered by `sort_entries`."""
    sink.write(header(tensors, metadata))
    for tensor in tensors:
        sink.append(tensor.blob)


def _as_safetensors(tensor: Stored) -> tuple[str, list[int]]:
    shape = list(tensor.shape)
    if tensor.dtype == "float4_e2m1fn_x2":
        # safetensors counts elements in a shape; torch counts pairs of elements.
        shape[-1:] = [size * 2 for size in shape[-1:]]
    return CODES[tensor.dtype], shape
