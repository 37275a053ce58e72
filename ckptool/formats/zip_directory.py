"""End of a zip archive -> ZipMember: parses end record and central directory."""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from msgspec import Struct as Record

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files import Source
from ckptool.formats.plain import quoted

STORED, DEFLATED = 0, 8
WIDE: Final = 0xFFFFFFFF
"""Value of a 32-bit field whose number is in the zip64 extra field."""


class Member(Record, gc=False):
    """One entry of the central directory."""

    name: str
    encoding: str
    """Encoding of the name in the file: "utf-8" or "cp437"."""
    method: int
    flags: int
    crc: int
    packed: int
    """Compressed size in the file."""
    nbytes: int
    """Uncompressed size."""
    at: int
    """File offset of its data; before that is known, of its local header."""
    lead: int = 0
    """Size of its local header; 0 if that was not read or is invalid."""
    used: bool = False
    """Whether the checkpoint refers to it (storage, pickle, known record)."""

    @property
    def raw(self) -> bytes:
        """Name as stored in the file."""
        return self.name.encode(self.encoding)

    @property
    def header(self) -> int:
        """File offset of its local header."""
        return self.at - self.lead

    @property
    def start(self) -> int:
        """File offset of its data; -1 if the local header is invalid."""
        return self.at if self.lead else -1


class Archive(Record):
    """Members of an archive in file order, and the first fault found."""

    members: list[Member] = []
    fault: str = ""
    """First property on which zip readers could disagree; "" if there is none."""
    assumed: int = 0
    """Number of members whose data offset was inferred, their local header not read."""

    def blame(self, fault: str) -> None:
        self.fault = self.fault or fault


_PER_ENTRY: Final = 4096
"""Maximum average directory bytes per member."""
_COMMENT: Final = 0xFFFF
_EOCD: Final = Struct("<4s4H2LH")
_EOCD64: Final = Struct("<4sQ2H2L4Q")
_LOCATOR: Final = Struct("<4sLQL")
_ENTRY: Final = Struct("<4s4x2H4x3L4H2x2L")
"""Magic, flags, method, checksum, sizes, lengths of name, extra fields and comment, disk, ..."""
_FLAGS: Final = 0x0002 | 0x0004 | 0x0008 | 0x0800
"""Flags all readers support: deflate level, data descriptor, UTF-8."""
_SYMLINK: Final = 0o120000


class End(Record, frozen=True):
    """End of central directory record, with zip64 values applied."""

    start: int
    """File offset of the directory."""
    nbytes: int
    count: int
    fault: str


def find_end(source: Source) -> End:
    """Return the end record, which may be followed only by its comment.

    Raises:
        CorruptCheckpointError: there is none, or the directory is not in the file.
    """
    tail = source.tail(_EOCD.size)
    if not (tail.startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")):
        tail = source.tail(_EOCD.size + _COMMENT)
    base = source.nbytes - len(tail)
    found = tail.rfind(b"PK\x05\x06")
    while found >= 0:
        if found + _EOCD.size <= len(tail):
            record = _EOCD.unpack_from(tail, found)
            if found + _EOCD.size + record[7] == len(tail):
                return _checked_end(source, record, base + found)
        found = tail.rfind(b"PK\x05\x06", 0, found)
    raise CorruptCheckpointError(source.path, "a zip archive without its end: it is cut short")


def _checked_end(source: Source, record: tuple[int, ...], at: int) -> End:
    _, disk, first_disk, here, count, nbytes, start, comment = record
    faults = []
    if comment:
        faults.append("a comment follows its directory")
    if (disk, first_disk) not in {(0, 0), (0xFFFF, 0xFFFF)} or here != count:
        faults.append("it is one of several disks")
    end, wide = at, _wide_end(source, at)
    if wide is not None:
        end, count64, nbytes64, start64 = wide
        narrow = ((count, 0xFFFF, count64), (nbytes, WIDE, nbytes64), (start, WIDE, start64))
        if any(small not in {full, large} for small, full, large in narrow):
            faults.append("its two end records disagree")
        count, nbytes, start = count64, nbytes64, start64
    if start + nbytes != end:
        faults.append(f"{end - start - nbytes} bytes stand between its directory and its end")
    if start + nbytes > source.nbytes or nbytes > _PER_ENTRY * (count + 1):
        raise CorruptCheckpointError(source.path, "a zip archive whose directory is not in it")
    return End(start, nbytes, count, faults[0] if faults else "")


def _wide_end(source: Source, at: int) -> tuple[int, int, int, int] | None:
    """Return (offset, member count, directory size, directory offset) of the zip64 end record.

    None if there is no zip64 locator.
    """
    if at < _LOCATOR.size + _EOCD64.size:
        return None
    magic, disk, where, disks = _LOCATOR.unpack(source.read(at - _LOCATOR.size, _LOCATOR.size))
    if magic != b"PK\x06\x07":
        return None
    if disk or disks > 1 or where + _EOCD64.size > at - _LOCATOR.size:
        raise CorruptCheckpointError(source.path, "its zip64 end record is somewhere else")
    fields = _EOCD64.unpack(source.read(where, _EOCD64.size))
    magic, size, *_, here, count, nbytes, start = fields
    if magic != b"PK\x06\x06" or where + 12 + size != at - _LOCATOR.size or here != count:
        raise CorruptCheckpointError(source.path, "a zip64 end record that contradicts itself")
    return where, count, nbytes, start


def entries(source: Source, end: End, archive: Archive) -> Iterator[Member]:
    """Yield the members in directory order; `offset` is that of the local header."""
    data = source.read(end.start, end.nbytes)
    pos, same = 0, dict[int, int]()
    for _ in range(end.count):
        fields = _ENTRY.unpack_from(data, pos) if pos + _ENTRY.size <= len(data) else (b"",)
        if fields[0] != b"PK\x01\x02":
            archive.blame(f"its end record counts {end.count} members and there are fewer")
            return
        name_end = pos + _ENTRY.size + fields[6]
        extra_end = name_end + fields[7]
        raw, extra = data[pos + _ENTRY.size : name_end], data[name_end:extra_end]
        pos = extra_end + fields[8]
        yield _entry(fields, raw, extra, archive, same)
    if pos != len(data):
        archive.blame(f"its end record counts {end.count} members and there are more")


def _entry(
    fields: tuple[int, ...], raw: bytes, extra: bytes, archive: Archive, same: dict[int, int]
) -> Member:
    """Build a member from a directory entry; `shared_flags` interns flag values to save memory."""
    _, flags, method, crc, packed, nbytes, _, _, _, disk, attributes, header = fields
    name, encoding = decoded(raw)
    odd = extra or method or disk or attributes or packed != nbytes or flags & ~_FLAGS
    flags = same.setdefault(flags, flags)
    if not odd:
        return Member(name, encoding, method, flags, crc, nbytes, nbytes, header)
    if extra:
        sizes = wide_sizes(extra, (nbytes, packed, header), name, archive)
        nbytes, packed, header = sizes
    if disk not in {0, 0xFFFF}:
        archive.blame(f"{quoted(name)} is on another disk")
    if attributes >> 16 & 0o170000 == _SYMLINK:
        archive.blame(f"{quoted(name)} is a link")
    if flags & ~_FLAGS:
        archive.blame(f"{quoted(name)} is encrypted or patched (flags {flags:#06x})")
    if method not in {STORED, DEFLATED}:
        archive.blame(f"{quoted(name)} is compressed by method {method}, not stored or deflated")
    if method == STORED and packed != nbytes:
        archive.blame(f"{quoted(name)} is stored, and of two sizes: {packed} and {nbytes} bytes")
    return Member(name, encoding, method, flags, crc, packed, nbytes, header)


def decoded(raw: bytes) -> tuple[str, str]:
    """Return (name, encoding): UTF-8 if valid, else cp437."""
    try:
        return raw.decode(), "utf-8"
    except UnicodeDecodeError:
        return raw.decode("cp437"), "cp437"


def wide_sizes(
    extra: bytes, sizes: tuple[int, int, int], name: str, archive: Archive
) -> tuple[int, int, int]:
    """Return (size, compressed size, header offset), read from the zip64 field where marked."""
    wide = list(sizes)
    for kind, body in _extra_fields(extra):
        if kind == 0x7075:
            archive.blame(f"{quoted(name)} has a second name")
        if kind == 0x0001:
            full = [index for index, size in enumerate(sizes) if size == WIDE]
            for place, index in enumerate(full[: len(body) // 8]):
                wide[index] = int.from_bytes(body[8 * place : 8 * place + 8], "little")
    return wide[0], wide[1], wide[2]


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    pos = 0
    while pos + 4 <= len(extra):
        kind, size = int.from_bytes(extra[pos : pos + 2], "little"), extra[pos + 2 : pos + 4]
        end = pos + 4 + int.from_bytes(size, "little")
        yield kind, extra[pos + 4 : end]
        pos = end
