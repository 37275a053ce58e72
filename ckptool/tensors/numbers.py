"""Bytes of elements -> numbers, with the struct module."""

from struct import unpack

from ckptool.model import DTYPE_BITS, STRUCT_CODES


def can_decode(dtype: str) -> bool:
    """Whether `decode_numbers` knows the dtype."""
    return dtype in STRUCT_CODES or dtype == "bfloat16"


def decode_numbers(data: bytes, dtype: str) -> tuple[float, ...] | None:
    """Return little-endian elements as numbers; None if the dtype cannot be decoded."""
    if dtype == "bfloat16":
        # The upper half of a float32.
        widened = bytearray(2 * len(data))
        widened[2::4], widened[3::4] = data[0::2], data[1::2]
        data, dtype = bytes(widened), "float32"
    code = STRUCT_CODES.get(dtype)
    return None if code is None else unpack(f"<{len(data) * 8 // DTYPE_BITS[dtype]}{code}", data)
