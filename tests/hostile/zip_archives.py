"""Bytes of zip archives, written field by field: what no library would write."""

import struct
import zlib

from hostile.pickles import mapping, pickled, tensor

DATA = struct.pack("<4f", 0, 1, 2, 3)
PLAIN = [0.0, 1.0, 2.0, 3.0]
"""Elements of `w` in the file that all others are made of."""
PICKLE = pickled(mapping(w=tensor()))
MARK = 0xFFFFFFFF
"""Value of a 32-bit field whose number is in the zip64 field."""
STORED, DEFLATED = 0, 8


def raw_archive(members: list[dict], **end) -> bytes:
    """Return a zip archive; `members` have name and data, and any field of either header.

    `extra`, `comment`, `size`, `packed_size`, `disk`, `attributes`, `offset`, `version`, `flags`,
    `method` and `crc` stand in the directory, and in the local header as well, where they have a
    place there, unless it has its own, as `local_size`; `after` are bytes behind the data. `end`
    has `prefix` (bytes before all), `shift` (added to the offsets), `between` (bytes before the end
    record), `start` and `nbytes` (of the directory), `more` (its further entries), `count`,
    `total`, `disk`, `start_disk`, `comment`, `zip64` (whether there is an end
    record of zip64) and `sector` (its last field).
    """
    out, directory = bytearray(end.get("prefix", b"")), bytearray()
    shift = end.get("shift", len(out)) - len(out)
    for member in members:
        at = member.get("offset", len(out) + shift)
        out += _local_header(member) + member["data"] + member.get("after", b"")
        directory += _directory_entry(member, at)
    for entry in end.get("more", ()):
        directory += _directory_entry({"data": b"", **entry}, entry["offset"])
    count = len(members) + len(end.get("more", ()))
    numbers = {"count": count, "total": count, "start": len(out) + shift}
    return bytes(out + directory) + _end_records(bytes(directory), **(numbers | end))


def _encode(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode()


def _local_header(member: dict) -> bytes:
    def get(field: str, default: object) -> object:
        return member.get(f"local_{field}", member.get(field, default))

    key, data, extra = _encode(get("name", "")), member["data"], member.get("local_extra", b"")
    size = get("size", len(data))
    return struct.pack(
        "<4s5H3L2H", b"PK\3\4", get("version", 0), get("flags", 0), get("method", STORED), 0, 0,
        get("crc", zlib.crc32(data)), get("packed_size", size), size, len(key), len(extra),
    ) + key + extra  # fmt: skip


def _directory_entry(member: dict, at: int) -> bytes:
    key, data = _encode(member["name"]), member["data"]
    extra, comment = member.get("extra", b""), member.get("comment", b"")
    size = member.get("size", len(data))
    return struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 0, member.get("version", 0), member.get("flags", 0),
        member.get("method", STORED), 0, 0, member.get("crc", zlib.crc32(data)),
        member.get("packed_size", size), size, len(key), len(extra), len(comment),
        member.get("disk", 0), 0, member.get("attributes", 0), at,
    ) + key + extra + comment  # fmt: skip


def _end_records(directory: bytes, **end) -> bytes:
    """Return what follows the directory: `between`, the end records of zip64, the end record."""
    start, nbytes = end["start"], end.get("nbytes", len(directory))
    numbers = (end["count"], end["total"], nbytes, start)
    out = end.get("between", b"")
    if end.get("zip64"):
        sector = end.get("sector", b"")
        at = start + len(directory) + len(out)
        out += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44 + len(sector), 45, 45, 0, 0, *numbers)
        out += sector + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
        numbers = (0xFFFF, 0xFFFF, MARK, MARK)
    comment = end.get("comment", b"")
    disks = (end.get("disk", 0), end.get("start_disk", 0))
    return out + struct.pack("<4s4H2LH", b"PK\5\6", *disks, *numbers, len(comment)) + comment


def entries(pickle: bytes = PICKLE, data: bytes = DATA, folder: str = "archive") -> list[dict]:
    """Return the members of a file of torch.save, for `raw_archive`."""
    members = {"data.pkl": pickle, "byteorder": b"little", "data/0": data, "version": b"3\n"}
    return [{"name": f"{folder}/{key}", "data": value} for key, value in members.items()]


def change_member(index: int, **fields) -> bytes:
    """Return the archive with fields of one member changed; 0 is data.pkl, 2 data/0."""
    members = entries()
    members[index] |= fields
    return raw_archive(members)


def add_member(
    name: str | bytes, data: bytes = b"", *, at: int = 4, more: tuple[dict, ...] = (), **fields
) -> bytes:
    """Return the archive with one member more; `more` are entries of the directory alone."""
    members = entries()
    members.insert(at, {"name": name, "data": data, **fields})
    return raw_archive(members, more=more)


def two_directories() -> bytes:
    """The zip64 end record names a directory without `data/0`, the other one the plain one."""
    plain = raw_archive(entries())
    start, end = plain.index(b"PK\1\2"), plain.index(b"PK\5\6")
    directory = plain[start:end]
    out = plain[:start] + directory.replace(b"data/0", b"data/1") + directory
    zip64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(out), 1)
    second = start + len(directory)
    return out + zip64 + locator + struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, 4, 4, len(directory), second, 0
    )  # fmt: skip


def zip64_field(*numbers: int) -> bytes:
    return struct.pack("<HH", 1, 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def deflated(data: bytes, **fields) -> dict:
    """Return the fields of a deflated member whose content is `data`."""
    packed = deflate(data)
    sizes = {"size": len(data), "packed_size": len(packed), "crc": zlib.crc32(data)}
    return {"data": packed, "method": DEFLATED, **sizes, **fields}
