"""Dtypes of numbers, and bytes of elements -> numbers, with the struct module."""

from struct import unpack
from typing import Final

from ckptool.model import DTYPE_BITS, STRUCT_CODES

FLOAT8_DTYPES: Final = (
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
HALF_DTYPES: Final = ("bfloat16", "float16")
COMPONENT_DTYPES: Final = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
NUMBER_DTYPES: Final = frozenset(
    {
        "float64", "float32", *HALF_DTYPES, *FLOAT8_DTYPES, *COMPONENT_DTYPES,
        "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    }
)  # fmt: skip
"""Dtypes whose elements are numbers of whole bytes: neither packed nor quantised."""


def decode_numbers(data: bytes | bytearray, dtype: str) -> tuple[float, ...] | None:
    """Return little-endian elements as numbers; None if the dtype cannot be decoded."""
    if dtype == "bfloat16":
        # The upper half of a float32.
        float32_bytes = bytearray(2 * len(data))
        float32_bytes[2::4], float32_bytes[3::4] = data[0::2], data[1::2]
        data, dtype = bytes(float32_bytes), "float32"
    code = STRUCT_CODES.get(dtype)
    return None if code is None else unpack(f"<{len(data) * 8 // DTYPE_BITS[dtype]}{code}", data)
