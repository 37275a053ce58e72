"""Byte string -> whether user code could load it: a pickle, an archive, compressed, a program."""

import re
from typing import Final

from ckptool.formats.files.lookalikes import TAR_BLOCK_BYTES, is_tar_header

_FIRST_OPCODE: Final = re.compile(
    rb"\x80[\x00-\x05]|[()\]}cdgijhrIJKLMNFGSTUVXBCP\x82-\x84\x88-\x8f\x95\x96]"
)
"""Opcodes that need nothing on the stack: a pickle begins with one of them."""
_NAMING_OPCODE: Final = re.compile(rb"[\x82-\x84\x93]")
"""Opcodes that import and take no lines: STACK_GLOBAL, and extension codes."""
_END_RECORD_BYTES: Final = 22 + 0xFFFF
"""Bytes before the end in which zip readers look for an end record."""
_TRIAL_BYTES: Final = 64


def may_be_pickle(data: bytes) -> bool:
    """Whether `data` could be a pickle that imports something, of any protocol."""
    if _FIRST_OPCODE.match(data) is None:
        return False
    has_lines = data.count(b"\n") > 1 and (b"c" in data or b"i" in data)  # GLOBAL and INST
    return has_lines or _NAMING_OPCODE.search(data) is not None


def identify_packed_bytes(data: bytes) -> str:
    """Return what `data` is if it would have to be unpacked or run to be looked into; else ""."""
    for magic, text in _PACKED_MAGIC.items():
        if data.startswith(magic):
            is_known = len(magic) > _WEAK_MAGIC_BYTES or _WEAK_MAGIC_CHECKS[magic](data)
            return text if is_known else ""
    if is_tar_header(data[:TAR_BLOCK_BYTES]):
        return "is a tar archive"
    if data.startswith(b"\x93NUMPY") and b"O'" in data[:_NUMPY_HEADER_BYTES]:
        return "is a numpy file of Python objects"
    has_end = data.rfind(b"PK\x05\x06", -_END_RECORD_BYTES) >= 0
    return "is a zip archive with data before it" if has_end else ""


def _is_zlib(data: bytes) -> bool:
    """Whether the first bytes can be inflated: numbers may begin with the two bytes of zlib."""
    from zlib import decompressobj
    from zlib import error as ZlibError  # noqa: N812 - it is an exception

    try:
        return bool(decompressobj().decompress(data[:4096], _TRIAL_BYTES))
    except ZlibError:
        return False


def _is_windows_program(data: bytes) -> bool:
    start = int.from_bytes(data[60:64], "little")
    return data[start : start + 4] == b"PE\0\0"


_NUMPY_HEADER_BYTES: Final = 1024
_WEAK_MAGIC_BYTES: Final = 2
_PACKED_MAGIC: Final = {
    b"PK\x03\x04": "is a zip archive",
    b"PK\x05\x06": "is a zip archive",
    b"\x1f\x8b\x08": "is compressed (gzip)",
    b"\x78\x01": "is compressed (zlib)",
    b"\x78\x5e": "is compressed (zlib)",
    b"\x78\x9c": "is compressed (zlib)",
    b"\x78\xda": "is compressed (zlib)",
    b"BZh": "is compressed (bzip2)",
    b"\xfd7zXZ\0": "is compressed (xz)",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd)",
    b"\x04\x22\x4d\x18": "is compressed (lz4)",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive",
    b"Rar!\x1a\x07": "is a rar archive",
    b"\x7fELF": "is a program",
    b"MZ": "is a program",
    b"\xcf\xfa\xed\xfe": "is a program",
    b"\xca\xfe\xba\xbe": "is a program",
}
_WEAK_MAGIC_CHECKS: Final = {
    b"\x78\x01": _is_zlib,
    b"\x78\x5e": _is_zlib,
    b"\x78\x9c": _is_zlib,
    b"\x78\xda": _is_zlib,
    b"MZ": _is_windows_program,
}
"""Magic of two bytes -> what else has to be true."""
