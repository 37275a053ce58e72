"""Pickle and storages -> zip archive in the layout of torch.save."""

from collections.abc import Iterator, Sequence
from struct import Struct as Layout
from typing import Final

from msgspec import Struct

from ckptool.formats.blobs import Blob, Sink, blob_of

_ROOT: Final = "archive/"
_ALIGNED: Final = 64
_WIDE: Final = 0xFFFFFFFF
_MANY: Final = 0xFFFF
_LOCAL: Final = Layout("<4s5H3L2H")
_ENTRY: Final = Layout("<4s6H3L5H2L")
_END: Final = Layout("<4s4H2LH")
_END64: Final = Layout("<4sQ2H2L4Q")
_LOCATOR: Final = Layout("<4sLQL")
_PADDING: Final = b"FB"
"""Id of the extra field that torch uses to align record data to 64 bytes."""
_STAMP: Final = (0, 0)
"""Time and date of every record: zero, so that two runs give the same bytes."""


class Record(Struct, frozen=True):
    """One record of the archive to write."""

    name: str
    blob: Blob


class _Placed(Struct, frozen=True):
    name: bytes
    crc: int
    nbytes: int
    offset: int


def write(sink: Sink, pickle: bytes, storages: Sequence[Record]) -> list[int]:
    """Write the archive; return the file offset of each storage's bytes, in order."""
    placed: list[_Placed] = []
    starts = [_add(sink, record, placed) for record in _records(pickle, storages)]
    _directory(sink, placed)
    return starts[len(_BEFORE) + 1 : len(_BEFORE) + 1 + len(storages)]


_BEFORE: Final = (
    (".format_version", b"1"),
    (".storage_alignment", b"64"),
    ("byteorder", b"little"),
)


def _records(pickle: bytes, storages: Sequence[Record]) -> Iterator[Record]:
    yield Record("data.pkl", blob_of(pickle))
    for name, content in _BEFORE:
        yield Record(name, blob_of(content))
    for storage in storages:
        yield Record(f"data/{storage.name}", storage.blob)
    yield Record("version", blob_of(b"3\n"))


def _add(sink: Sink, record: Record, placed: list[_Placed]) -> int:
    """Append a record and return its data offset; the header is rewritten with the checksum."""
    name, offset = f"{_ROOT}{record.name}".encode(), sink.position
    sink.write(_local(name, record.blob.nbytes, record.blob.crc or 0, offset))
    start = sink.position
    crc = sink.append(record.blob, checksum=True)
    sink.patch(offset, _local(name, record.blob.nbytes, crc, offset))
    placed.append(_Placed(name, crc, record.blob.nbytes, offset))
    return start


def _local(name: bytes, nbytes: int, crc: int, offset: int) -> bytes:
    """Return a local header padded so that the data starts at a multiple of 64 bytes."""
    size, extra = nbytes, b""
    if nbytes >= _WIDE:
        size, extra = _WIDE, _field(b"\x01\x00", nbytes.to_bytes(8, "little") * 2)
    end = offset + _LOCAL.size + len(name) + len(extra) + 4
    extra += _field(_PADDING, b"Z" * (-end % _ALIGNED))
    fields = (b"PK\x03\x04", 45 if nbytes >= _WIDE else 20, 0x0800, 0, *_STAMP)
    return _LOCAL.pack(*fields, crc, size, size, len(name), len(extra)) + name + extra


def _field(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(2, "little") + body


def _directory(sink: Sink, placed: Sequence[_Placed]) -> None:
    start = sink.position
    sink.write(b"".join(map(_entry, placed)))
    nbytes, count, end = sink.position - start, len(placed), sink.position
    if count >= _MANY or start >= _WIDE or nbytes >= _WIDE:
        both = (count, count, nbytes, start)
        sink.write(_END64.pack(b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, *both))
        sink.write(_LOCATOR.pack(b"PK\x06\x07", 0, end, 1))
        # Marker values tell readers to use the zip64 end record.
        count, nbytes, start = _MANY, _WIDE, _WIDE
    sink.write(_END.pack(b"PK\x05\x06", 0, 0, count, count, nbytes, start, 0))


def _entry(record: _Placed) -> bytes:
    wide = [n for n in (record.nbytes, record.nbytes, record.offset) if n >= _WIDE]
    body = b"".join(n.to_bytes(8, "little") for n in wide)
    extra = _field(b"\x01\x00", body) if body else b""
    size, offset = min(record.nbytes, _WIDE), min(record.offset, _WIDE)
    version = 45 if wide else 20
    fields = (b"PK\x01\x02", version, version, 0x0800, 0, *_STAMP, record.crc, size, size)
    lengths = (len(record.name), len(extra), 0, 0, 0, 0, offset)
    return _ENTRY.pack(*fields, *lengths) + record.name + extra
