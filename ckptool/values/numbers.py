"""Bytes of elements -> numbers, with the struct module."""

from struct import unpack

from ckptool.model import DTYPE_BITS, STRUCT_CODES


def can_decode(dtype: str) -> bool:
    """Whether `decode_numbers` knows the dtype."""
    return dtype in STRUCT_CODES or dtype == "bfloat16"


def decode_numbers(data: bytes | bytearray, dtype: str) -> tuple[float, ...] | None:
    """Return little-endian elements as numbers; None if the dtype cannot be decoded."""
    if dtype == "bfloat16":
        # The upper half of a float32.
        float32_bytes = bytearray(2 * len(data))
        float32_bytes[2::4], float32_bytes[3::4] = data[0::2], data[1::2]
        data, dtype = bytes(float32_bytes), "float32"
    code = STRUCT_CODES.get(dtype)
    return None if code is None else unpack(f"<{len(data) * 8 // DTYPE_BITS[dtype]}{code}", data)
