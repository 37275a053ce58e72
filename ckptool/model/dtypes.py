"""Names of dtypes, and the size of their elements."""

from collections.abc import Mapping
from typing import Final

DTYPE_BITS: Final[Mapping[str, int]] = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float4_e2m1fn_x2": 8,
    "complex128": 128,
    "complex64": 64,
    "complex32": 32,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint64": 64,
    "uint32": 32,
    "uint16": 16,
    "uint8": 8,
    "bool": 8,
    "qint8": 8,
    "quint8": 8,
    "qint32": 32,
    "quint4x2": 8,
    "quint2x4": 8,
    "bits16": 16,
    "bits8": 8,
    "bits4x2": 8,
    "bits2x4": 8,
    "bits1x8": 8,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float4_e2m1fn": 4,
    **{f"{sign}int{n}": 8 for sign in ("", "u") for n in range(1, 8)},
}
"""Dtype -> bits of one element in a storage; dtypes have torch's names without the prefix.

torch gives its sub-byte integers (uint1 ... int7) one byte each, and its packed types
(`float4_e2m1fn_x2`, `quint4x2`) one byte for the whole pack. The unpacked 4 and 6 bit floats exist
in safetensors only (its `F4`, `F6_E2M3`, `F6_E3M2`).
"""

BYTE_DTYPES: Final = frozenset({"uint8", "int8", "bool", "quint8", "qint8", "bits8"})
"""Dtypes of one byte for each element, that are no floats: any bytes may stand in them."""

STRUCT_CODES: Final[Mapping[str, str]] = {
    "float64": "d", "float32": "f", "float16": "e",
    "int64": "q", "int32": "i", "int16": "h", "int8": "b",
    "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B", "bool": "?",
}  # fmt: skip
"""Dtype -> its code in the struct module, where that has one."""
