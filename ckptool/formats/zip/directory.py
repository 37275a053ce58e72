"""End of a zip archive -> ZipMember: parses end record and central directory."""

from collections.abc import Iterator
from struct import Struct
from typing import Final

from msgspec import Struct as Record

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files.source import ByteSource
from ckptool.formats.pickle.plain_values import quote_name

STORED, DEFLATED = 0, 8
ZIP64_MARKER: Final = 0xFFFFFFFF
"""Value of a 32-bit field whose number is in the zip64 extra field."""


class ZipMember(Record, gc=False):
    """One entry of the central directory."""

    name: str
    encoding: str
    """Encoding of the name in the file: "utf-8" or "cp437"."""
    method: int
    flags: int
    crc: int
    compressed_nbytes: int
    """Compressed size in the file."""
    nbytes: int
    """Uncompressed size."""
    offset: int
    """File offset of its data; before that is known, of its local header."""
    header_nbytes: int = 0
    """Size of its local header; 0 if that was not read or is invalid."""
    is_referenced: bool = False
    """Whether the checkpoint refers to it (storage, pickle, known record)."""

    @property
    def encoded_name(self) -> bytes:
        """Name as stored in the file."""
        return self.name.encode(self.encoding)

    @property
    def header_offset(self) -> int:
        """File offset of its local header."""
        return self.offset - self.header_nbytes

    @property
    def data_offset(self) -> int:
        """File offset of its data; -1 if the local header is invalid."""
        return self.offset if self.header_nbytes else -1


class ZipMembers(Record):
    """Members of an archive in file order, and the first fault found."""

    members: list[ZipMember] = []
    names: list[str] = []
    """Names of the members, in their order."""
    has_plain_names: bool = False
    """Whether the names are of files, different, in ASCII and without capitals, as torch's are."""
    fault: str = ""
    """First property on which zip readers could disagree; "" if there is none."""
    first_name: str = ""
    """Name of the first directory entry: torch takes its first folder for that of all records."""
    assumed_count: int = 0
    """Number of members whose data offset was inferred, their local header not read."""

    def record_fault(self, fault: str) -> None:
        self.fault = self.fault or fault


_MAX_ENTRY_BYTES: Final = 4096
"""Maximum average directory bytes per member."""
_MAX_COMMENT_BYTES: Final = 0xFFFF
_END_RECORD: Final = Struct("<4s4H2LH")
_ZIP64_END_RECORD: Final = Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR: Final = Struct("<4sLQL")
_DIRECTORY_ENTRY: Final = Struct("<6x3H4x3L4H2x2L")
"""Version needed, flags, method, checksum, sizes, lengths of name, extra fields and comment,
disk, ..."""
_NEWEST_VERSION: Final = 63
"""Version of the format up to which zip readers read; in tenths."""
_ALLOWED_FLAGS: Final = 0x0002 | 0x0004 | 0x0008 | 0x0800
"""Flags all readers support: deflate level, data descriptor, UTF-8."""
_DOS_FOLDER: Final = 0x10
_FILE_TYPE: Final = 0o170000
_REGULAR_FILE, _FOLDER, _LINK = 0o100000, 0o040000, 0o120000
"""Types in the Unix mode of an entry; 0 is none."""


class EndRecord(Record, frozen=True):
    """End of central directory record, with zip64 values applied."""

    directory_offset: int
    """File offset of the directory."""
    directory_nbytes: int
    member_count: int
    fault: str


def find_end_record(source: ByteSource) -> EndRecord:
    """Return the end record, which may be followed only by its comment.

    Raises:
        CorruptCheckpointError: there is none, or the directory is not in the file.
    """
    tail = source.read_tail(_END_RECORD.size)
    if not (tail.startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")):
        tail = source.read_tail(_END_RECORD.size + _MAX_COMMENT_BYTES)
    base = source.nbytes - len(tail)
    position = tail.rfind(b"PK\x05\x06")
    while position >= 0:
        if position + _END_RECORD.size <= len(tail):
            record = _END_RECORD.unpack_from(tail, position)
            if position + _END_RECORD.size + record[7] == len(tail):
                return _check_end_record(source, record, base + position)
        position = tail.rfind(b"PK\x05\x06", 0, position)
    raise CorruptCheckpointError(
        source.path, "a zip archive without its end record: it is truncated"
    )


def _check_end_record(source: ByteSource, record: tuple[int, ...], position: int) -> EndRecord:
    _, disk, directory_disk, disk_count, count, nbytes, start, comment = record
    faults = []
    if comment:
        faults.append("a comment follows its directory")
    end, zip64_end = position, _read_zip64_end(source, position)
    disks = {(0, 0)} if zip64_end is None else {(0, 0), (0xFFFF, 0xFFFF)}
    if (disk, directory_disk) not in disks or disk_count != count:
        faults.append("it is one of several disks")
    if zip64_end is not None:
        end, count64, nbytes64, start64 = zip64_end
        field_pairs = (
            (count, 0xFFFF, count64),
            (nbytes, ZIP64_MARKER, nbytes64),
            (start, ZIP64_MARKER, start64),
        )
        if any(value not in {marker, zip64_value} for value, marker, zip64_value in field_pairs):
            faults.append("its two end records disagree")
        count, nbytes, start = count64, nbytes64, start64
    if start + nbytes != end:
        faults.append(f"{end - start - nbytes} bytes are between its directory and its end record")
    if start + nbytes > source.nbytes or nbytes > _MAX_ENTRY_BYTES * (count + 1):
        raise CorruptCheckpointError(
            source.path, "a zip archive whose directory is outside the file"
        )
    return EndRecord(start, nbytes, count, faults[0] if faults else "")


def _read_zip64_end(source: ByteSource, position: int) -> tuple[int, int, int, int] | None:
    """Return (offset, member count, directory size, directory offset) of the zip64 end record.

    None if there is no zip64 locator.
    """
    if position < _ZIP64_LOCATOR.size + _ZIP64_END_RECORD.size:
        return None
    magic, disk, end_offset, disks = _ZIP64_LOCATOR.unpack(
        source.read(position - _ZIP64_LOCATOR.size, _ZIP64_LOCATOR.size)
    )
    if magic != b"PK\x06\x07":
        return None
    if disk or disks != 1 or end_offset + _ZIP64_END_RECORD.size > position - _ZIP64_LOCATOR.size:
        raise CorruptCheckpointError(source.path, "its zip64 end record is at a different position")
    fields = _ZIP64_END_RECORD.unpack(source.read(end_offset, _ZIP64_END_RECORD.size))
    magic, size, _, _, own_disk, directory_disk, disk_count, count, nbytes, start = fields
    if (
        magic != b"PK\x06\x06"
        or size != _ZIP64_END_RECORD.size - 12
        or end_offset + _ZIP64_END_RECORD.size != position - _ZIP64_LOCATOR.size
        or disk_count != count
        or own_disk
        or directory_disk
    ):
        raise CorruptCheckpointError(source.path, "an inconsistent zip64 end record")
    return end_offset, count, nbytes, start


def iter_entries(source: ByteSource, end: EndRecord, archive: ZipMembers) -> Iterator[ZipMember]:
    """Yield the members in directory order; `offset` is that of the local header."""
    data = source.read(end.directory_offset, end.directory_nbytes)
    position, last_start = 0, len(data) - _DIRECTORY_ENTRY.size
    unpack_entry, shared_flags = _DIRECTORY_ENTRY.unpack_from, dict[int, int]()
    for _ in range(end.member_count):
        if position > last_start or not data.startswith(b"PK\x01\x02", position):
            archive.record_fault(
                f"its end record counts {end.member_count} members but there are fewer"
            )
            return
        (
            version,
            flags,
            method,
            crc,
            compressed_nbytes,
            nbytes,
            name_nbytes,
            extra_nbytes,
            comment_nbytes,
            disk,
            attributes,
            header_offset,
        ) = unpack_entry(data, position)
        name_start = position + _DIRECTORY_ENTRY.size
        name_end = name_start + name_nbytes
        position = name_end + extra_nbytes + comment_nbytes
        try:  # inline, as `decode_name`: there is one for each tensor
            name, encoding = data[name_start:name_end].decode(), "utf-8"
        except UnicodeDecodeError:
            name, encoding = decode_name(data[name_start:name_end])
        # One int for equal flags and sizes: for 100,000 members they take megabytes.
        member = ZipMember(
            name,
            encoding,
            method,
            shared_flags.setdefault(flags, flags),
            crc,
            nbytes if compressed_nbytes == nbytes else compressed_nbytes,
            nbytes,
            header_offset,
        )
        if extra_nbytes:
            extra = data[name_end : name_end + extra_nbytes]
            sizes = (nbytes, compressed_nbytes, header_offset)
            member.nbytes, member.compressed_nbytes, member.offset = read_zip64_sizes(
                extra, sizes, name, archive
            )
        is_usual = (
            not (method or disk or attributes or flags & ~_ALLOWED_FLAGS)
            and version <= _NEWEST_VERSION
            and member.compressed_nbytes == member.nbytes
        )
        if not is_usual:
            _check_entry(member, version, disk, attributes, archive)
        yield member
    if position != len(data):
        archive.record_fault(f"its end record counts {end.member_count} members but there are more")


def _check_entry(
    member: ZipMember, version: int, disk: int, attributes: int, archive: ZipMembers
) -> None:
    """Record what zip readers could disagree on in a directory entry."""
    name, flags = member.name, member.flags
    if disk:
        archive.record_fault(f"{quote_name(name)} is on another disk")
    if attributes & _DOS_FOLDER and not name.endswith("/"):
        # torch.load takes it for a folder and returns memory that was never written.
        archive.record_fault(f"{quote_name(name)} is marked as a folder")
    if fault := _describe_file_type(attributes >> 16 & _FILE_TYPE, name):
        archive.record_fault(f"{quote_name(name)} is {fault}")
    if version > _NEWEST_VERSION:
        archive.record_fault(f"{quote_name(name)} needs a reader of version {version}")
    if flags & ~_ALLOWED_FLAGS:
        archive.record_fault(f"{quote_name(name)} is encrypted or patched (flags {flags:#06x})")
    if member.method not in {STORED, DEFLATED}:
        archive.record_fault(
            f"{quote_name(name)} is compressed by method {member.method}, not stored or deflated"
        )
    if member.method == STORED and member.compressed_nbytes != member.nbytes:
        archive.record_fault(
            f"{quote_name(name)} is stored, but with two sizes: {member.compressed_nbytes} and "
            f"{member.nbytes} bytes"
        )


def _describe_file_type(file_type: int, name: str) -> str:
    """Return what is wrong with the type in an entry's Unix mode; "" if nothing."""
    if file_type in {0, _REGULAR_FILE} or (file_type == _FOLDER and name.endswith("/")):
        return ""
    texts = {_FOLDER: "marked as a folder", _LINK: "a link"}
    return texts.get(file_type, "marked as a device or a pipe")


def decode_name(encoded_name: bytes) -> tuple[str, str]:
    """Return (name, encoding): UTF-8 if valid, else cp437."""
    try:
        return encoded_name.decode(), "utf-8"
    except UnicodeDecodeError:
        return encoded_name.decode("cp437"), "cp437"


def read_zip64_sizes(
    extra: bytes, sizes: tuple[int, int, int], name: str, archive: ZipMembers
) -> tuple[int, int, int]:
    """Return (size, compressed size, header offset), read from the zip64 field where marked.

    Readers take the first or the last of several zip64 fields: more than one is a fault, and so
    are one that is too short and extra fields that end beyond their entry.
    """
    values = list(sizes)
    zip64_count = 0
    for field_id, body, is_complete in _iter_extra_fields(extra):
        if not is_complete:
            archive.record_fault(f"{quote_name(name)} has a truncated extra field")
        if field_id == 0x7075:
            archive.record_fault(f"{quote_name(name)} has a second name")
        if field_id == 0x0001:
            zip64_count += 1
            marked_indices = [index for index, size in enumerate(sizes) if size == ZIP64_MARKER]
            for position, index in enumerate(marked_indices[: len(body) // 8]):
                values[index] = int.from_bytes(body[8 * position : 8 * position + 8], "little")
            if len(body) < 8 * len(marked_indices):
                archive.record_fault(f"{quote_name(name)} has a zip64 field that is too short")
    if zip64_count > 1:
        archive.record_fault(f"{quote_name(name)} has {zip64_count} zip64 fields")
    return values[0], values[1], values[2]


def _iter_extra_fields(extra: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (id, content, whether all of it is there) of each extra field."""
    position = 0
    while position + 4 <= len(extra):
        field_id, size = (
            int.from_bytes(extra[position : position + 2], "little"),
            extra[position + 2 : position + 4],
        )
        end = position + 4 + int.from_bytes(size, "little")
        yield field_id, extra[position + 4 : end], end <= len(extra)
        position = end
    if position < len(extra):
        yield -1, extra[position:], False
