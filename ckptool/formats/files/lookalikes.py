"""First and last bytes of a file -> whether zip or tar readers would open it as theirs.

torch.load looks for the zip magic in the first four bytes, then for a tar header, then for a
pickle. Other zip readers look for an end record at the end, whatever the first bytes are.
"""

import re
from struct import Struct
from typing import Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files.source import ByteSource

TAR_BLOCK_BYTES: Final = 512
_MAX_END_DISTANCE: Final = 22 + 0xFFFF + 2 * 4096
"""Bytes before the end in which an end record is looked for: miniz reads whole blocks of 4096."""
_END_RECORD: Final = re.compile(rb"PK\x05\x06(?=.{18})", re.DOTALL)
_SIZE_AND_OFFSET: Final = Struct("<II")
_CHECKSUM: Final = slice(148, 156)


def check_no_archive(source: ByteSource, description: str) -> None:
    """Refuse a file that `description` names if a zip or tar reader would open it as well.

    Raises:
        CorruptCheckpointError: it is also a zip or a tar archive.
    """
    head = source.read_head(TAR_BLOCK_BYTES)
    kind = "tar" if is_tar_header(head) else ""
    if _has_zip_directory(source, is_end_enough=head.startswith(b"PK\x03\x04")):
        kind = "zip"
    if kind:
        reason = (
            f"is {description} and a {kind} archive at the same time: loaders disagree about it"
        )
        raise CorruptCheckpointError(source.path, reason)


def is_tar_header(block: bytes) -> bool:
    """Whether Python's tarfile takes 512 bytes for a header: by checksum, whatever the magic."""
    if len(block) < TAR_BLOCK_BYTES:
        return False
    digits = block[_CHECKSUM].partition(b"\0")[0].strip()
    if not digits or digits.strip(b"01234567"):
        return False
    others = block[: _CHECKSUM.start] + block[_CHECKSUM.stop : TAR_BLOCK_BYTES]
    unsigned = sum(others) + 8 * ord(" ")
    signed = unsigned - 256 * sum(byte > 127 for byte in others)
    return int(digits, 8) in {unsigned, signed}


def _has_zip_directory(source: ByteSource, *, is_end_enough: bool) -> bool:
    """Whether the last bytes have an end record, and the directory is where it says.

    The record is enough where the file begins with the zip magic: torch.load takes it for a zip.
    """
    tail = source.read_tail(_MAX_END_DISTANCE)
    for match in _END_RECORD.finditer(tail):
        end = source.nbytes - len(tail) + match.start()
        size, offset = _SIZE_AND_OFFSET.unpack_from(tail, match.start() + 12)
        zip64 = tail[max(0, match.start() - 20) : match.start()].startswith(b"PK\x06\x07")
        is_archive = is_end_enough or zip64
        if is_archive or any(_is_directory(source, start) for start in (end - size, offset)):
            return True
    return False


def _is_directory(source: ByteSource, offset: int) -> bool:
    return 0 <= offset <= source.nbytes - 4 and source.read(offset, 4) == b"PK\x01\x02"
