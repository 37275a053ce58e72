"""Pickle and storages -> zip archive in the layout of torch.save."""

from collections.abc import Iterator, Sequence
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from ckptool.formats.files.writer import Blob, FileWriter, blob_from_bytes

_ROOT_FOLDER: Final = "archive/"
_ALIGNMENT: Final = 64
_ZIP64_MARKER: Final = 0xFFFFFFFF
_ZIP64_COUNT_MARKER: Final = 0xFFFF
_LOCAL_HEADER: Final = Layout("<4s5H3L2H")
_DIRECTORY_ENTRY: Final = Layout("<4s6H3L5H2L")
_END_RECORD: Final = Layout("<4s4H2LH")
_ZIP64_END_RECORD: Final = Layout("<4sQ2H2L4Q")
_ZIP64_LOCATOR: Final = Layout("<4sLQL")
_PADDING_FIELD_ID: Final = b"FB"
"""Id of the extra field that torch uses to align record data to 64 bytes."""
_TIME_AND_DATE: Final = (0, 0)
"""Time and date of every record: zero, so that two runs give the same bytes."""


class ZipRecord(Struct, frozen=True):
    """One record of the archive to write."""

    name: str
    blob: Blob


class _WrittenRecord(Struct, frozen=True):
    name: bytes
    crc: int
    nbytes: int
    offset: int


def write_torch_zip(writer: FileWriter, pickle: bytes, storages: Sequence[ZipRecord]) -> list[int]:
    """Write the archive; return the file offset of each storage's bytes, in order."""
    written_records: list[_WrittenRecord] = []
    starts = [
        _append_record(writer, record, written_records)
        for record in _iter_records(pickle, storages)
    ]
    _write_directory(writer, written_records)
    return starts[
        len(_RECORDS_BEFORE_STORAGES) + 1 : len(_RECORDS_BEFORE_STORAGES) + 1 + len(storages)
    ]


_RECORDS_BEFORE_STORAGES: Final = (
    (".format_version", b"1"),
    (".storage_alignment", b"64"),
    ("byteorder", b"little"),
)


def _iter_records(pickle: bytes, storages: Sequence[ZipRecord]) -> Iterator[ZipRecord]:
    yield ZipRecord("data.pkl", blob_from_bytes(pickle))
    for name, content in _RECORDS_BEFORE_STORAGES:
        yield ZipRecord(name, blob_from_bytes(content))
    for storage in storages:
        yield ZipRecord(f"data/{storage.name}", storage.blob)
    yield ZipRecord("version", blob_from_bytes(b"3\n"))


def _append_record(
    writer: FileWriter, record: ZipRecord, written_records: list[_WrittenRecord]
) -> int:
    """Append a record and return its data offset; the header is rewritten with the checksum."""
    name, offset = f"{_ROOT_FOLDER}{record.name}".encode(), writer.position
    writer.write(_build_local_header(name, record.blob.nbytes, record.blob.crc or 0, offset))
    start = writer.position
    crc = writer.append_blob(record.blob, checksum=True)
    writer.overwrite_at(offset, _build_local_header(name, record.blob.nbytes, crc, offset))
    written_records.append(_WrittenRecord(name, crc, record.blob.nbytes, offset))
    return start


def _build_local_header(name: bytes, nbytes: int, crc: int, offset: int) -> bytes:
    """Return a local header padded so that the data starts at a multiple of 64 bytes."""
    size, extra = nbytes, b""
    if nbytes >= _ZIP64_MARKER:
        size, extra = (
            _ZIP64_MARKER,
            _build_extra_field(b"\x01\x00", nbytes.to_bytes(8, "little") * 2),
        )
    end = offset + _LOCAL_HEADER.size + len(name) + len(extra) + 4
    extra += _build_extra_field(_PADDING_FIELD_ID, b"Z" * (-end % _ALIGNMENT))
    fields = (b"PK\x03\x04", 45 if nbytes >= _ZIP64_MARKER else 20, 0x0800, 0, *_TIME_AND_DATE)
    return _LOCAL_HEADER.pack(*fields, crc, size, size, len(name), len(extra)) + name + extra


def _build_extra_field(field_id: bytes, body: bytes) -> bytes:
    return field_id + len(body).to_bytes(2, "little") + body


def _write_directory(writer: FileWriter, written_records: Sequence[_WrittenRecord]) -> None:
    start = writer.position
    writer.write(b"".join(map(_build_directory_entry, written_records)))
    nbytes, count, end = writer.position - start, len(written_records), writer.position
    if count >= _ZIP64_COUNT_MARKER or start >= _ZIP64_MARKER or nbytes >= _ZIP64_MARKER:
        directory_fields = (count, count, nbytes, start)
        writer.write(
            _ZIP64_END_RECORD.pack(
                b"PK\x06\x06", _ZIP64_END_RECORD.size - 12, 45, 45, 0, 0, *directory_fields
            )
        )
        writer.write(_ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, end, 1))
        # Marker values tell readers to use the zip64 end record.
        count, nbytes, start = _ZIP64_COUNT_MARKER, _ZIP64_MARKER, _ZIP64_MARKER
    writer.write(_END_RECORD.pack(b"PK\x05\x06", 0, 0, count, count, nbytes, start, 0))


def _build_directory_entry(record: _WrittenRecord) -> bytes:
    zip64_values = [
        value for value in (record.nbytes, record.nbytes, record.offset) if value >= _ZIP64_MARKER
    ]
    body = b"".join(value.to_bytes(8, "little") for value in zip64_values)
    extra = _build_extra_field(b"\x01\x00", body) if body else b""
    size, offset = min(record.nbytes, _ZIP64_MARKER), min(record.offset, _ZIP64_MARKER)
    version = 45 if zip64_values else 20
    fields = (b"PK\x01\x02", version, version, 0x0800, 0, *_TIME_AND_DATE, record.crc, size, size)
    lengths = (len(record.name), len(extra), 0, 0, 0, 0, offset)
    return _DIRECTORY_ENTRY.pack(*fields, *lengths) + record.name + extra
