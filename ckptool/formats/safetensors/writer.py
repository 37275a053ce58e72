"""SafetensorsEntry -> safetensors file, in a deterministic order."""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from ckptool.formats.files.writer import Blob, FileWriter
from ckptool.formats.safetensors.reader import TORCH_DTYPES
from ckptool.model import DTYPE_BITS, natural_sort_key

SAFETENSORS_DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {**{dtype: code for code, dtype in TORCH_DTYPES.items()}, "float4_e2m1fn_x2": "F4"}
)
"""torch dtype name -> safetensors dtype name."""

_ALIGNMENT: Final = 8
_LENGTH_BYTES: Final = 8
_PICKLE_PROTO_OPCODE: Final = 0x80
"""Opcode PROTO: the header length must not start with it, or loaders may see a pickle."""


class SafetensorsEntry(Struct, frozen=True):
    """One tensor to write: header fields and data."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    blob: Blob
    sorts_last: bool = False
    """Whether it is ordered after the tensors of equal element width without this flag."""
    sort_key: str = ""
    """Key to sort by; "" means `key`."""


def sort_entries(tensors: Sequence[SafetensorsEntry]) -> list[SafetensorsEntry]:
    """Sort by element width, widest first (keeps all tensors aligned), then by key."""
    return sorted(
        tensors,
        key=lambda tensor: (
            -DTYPE_BITS[tensor.dtype],
            tensor.sorts_last,
            natural_sort_key(tensor.sort_key or tensor.key),
            tensor.key,
        ),
    )


def encode_entries(tensors: Sequence[SafetensorsEntry]) -> str:
    """Return the JSON object of the header's entries for `tensors`, in this order."""
    ends = list(accumulate((tensor.blob.nbytes for tensor in tensors), initial=0))
    entries: dict[str, object] = {}
    for tensor, begin, end in zip(tensors, ends, ends[1:], strict=False):
        code, shape = _convert_to_safetensors(tensor)
        entries[tensor.key] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    return _encode_json(entries)


def build_header(entries: str, metadata: Mapping[str, str], min_nbytes: int = 0) -> bytes:
    """Return the 8-byte length and the JSON header of what `encode_entries` returned.

    Padded with spaces, which the format allows, to at least `min_nbytes`, a multiple of 8.
    """
    metadata_entry = _encode_json({"__metadata__": dict(sorted(metadata.items()))})
    separator = "," if len(entries) > len("{}") else ""
    text = f"{metadata_entry[:-1]}{separator}{entries[1:]}".encode()
    length = len(text) + -len(text) % _ALIGNMENT
    length = max(length, min_nbytes - _LENGTH_BYTES)
    length += _ALIGNMENT if length & 0xFF == _PICKLE_PROTO_OPCODE else 0
    return length.to_bytes(_LENGTH_BYTES, "little") + text.ljust(length)


def _encode_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_safetensors(
    writer: FileWriter, tensors: Sequence[SafetensorsEntry], metadata: Mapping[str, str]
) -> None:
    """Write header and data; `tensors` must be ordered by `sort_entries`."""
    writer.write(build_header(encode_entries(tensors), metadata))
    for tensor in tensors:
        writer.append_blob(tensor.blob)


def _convert_to_safetensors(tensor: SafetensorsEntry) -> tuple[str, list[int]]:
    shape = list(tensor.shape)
    if tensor.dtype == "float4_e2m1fn_x2":
        # safetensors counts elements in a shape; torch counts pairs of elements.
        shape[-1:] = [size * 2 for size in shape[-1:]]
    return SAFETENSORS_DTYPES[tensor.dtype], shape
