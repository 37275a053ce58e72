"""SafetensorsEntry -> safetensors file, in a deterministic order."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Final

from msgspec import Struct
from msgspec.json import encode

from ckptool.formats.files.writer import Blob, FileWriter
from ckptool.formats.safetensors.reader import TORCH_DTYPES
from ckptool.model import DTYPE_BITS

SAFETENSORS_DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {**{dtype: code for code, dtype in TORCH_DTYPES.items()}, "float4_e2m1fn_x2": "F4"}
)
"""torch dtype name -> safetensors dtype name."""

_ALIGNMENT: Final = 8
_LENGTH_BYTES: Final = 8
_PICKLE_PROTO_OPCODE: Final = 0x80
"""Opcode PROTO: the header length must not start with it, or loaders may see a pickle."""


class SafetensorsEntry(Struct, frozen=True, gc=False):
    """One tensor to write: header fields and data."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    blob: Blob
    sorts_last: bool = False
    """Whether it is ordered after the tensors of equal element width without this flag."""


def sort_entries(tensors: Sequence[SafetensorsEntry]) -> list[SafetensorsEntry]:
    """Sort by element width, widest first, which keeps all tensors aligned; else keep the order."""
    return sorted(tensors, key=lambda tensor: (-DTYPE_BITS[tensor.dtype], tensor.sorts_last))


class _HeaderEntry(Struct, frozen=True, gc=False):
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def encode_entries(tensors: Sequence[SafetensorsEntry]) -> bytes:
    """Return the JSON object of the header's entries for `tensors`, in this order."""
    ends = list(accumulate((tensor.blob.nbytes for tensor in tensors), initial=0))
    return encode(
        {
            tensor.key: _HeaderEntry(*_convert_to_safetensors(tensor), offsets)
            for tensor, offsets in zip(tensors, pairwise(ends), strict=True)
        }
    )


def build_header(entries: bytes, metadata: Mapping[str, str], min_nbytes: int = 0) -> bytes:
    """Return the 8-byte length and the JSON header of what `encode_entries` returned.

    Padded with spaces, which the format allows, to at least `min_nbytes`, a multiple of 8.
    """
    start = encode({"__metadata__": dict(sorted(metadata.items()))})[:-1]
    start += b"," if len(entries) > len(b"{}") else b""
    nbytes = len(start) + len(entries) - 1
    length = nbytes + -nbytes % _ALIGNMENT
    length = max(length, min_nbytes - _LENGTH_BYTES)
    length += _ALIGNMENT if length & 0xFF == _PICKLE_PROTO_OPCODE else 0
    length_field, padding = length.to_bytes(_LENGTH_BYTES, "little"), b" " * (length - nbytes)
    return b"".join((length_field, start, memoryview(entries)[1:], padding))


def write_safetensors(
    writer: FileWriter, tensors: Sequence[SafetensorsEntry], metadata: Mapping[str, str]
) -> None:
    """Write header and data; `tensors` must be ordered by `sort_entries`."""
    writer.write(build_header(encode_entries(tensors), metadata))
    writer.append_blobs(tensor.blob for tensor in tensors)


def _convert_to_safetensors(tensor: SafetensorsEntry) -> tuple[str, tuple[int, ...]]:
    shape = tensor.shape
    if tensor.dtype == "float4_e2m1fn_x2":
        # safetensors counts elements in a shape; torch counts pairs of elements.
        shape = (*shape[:-1], *(size * 2 for size in shape[-1:]))
    return SAFETENSORS_DTYPES[tensor.dtype], shape
