"""A zip archive -> its members, after everything that readers could disagree on was refused."""

import re
from collections.abc import Iterable, Iterator
from operator import attrgetter
from struct import Struct
from typing import Final

from msgspec import Struct as Record

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.plain import quoted

STORED, DEFLATED = 0, 8


class Member(Record, gc=False):
    """One entry of the directory."""

    name: str
    encoding: str
    """Of the name in the file."""
    method: int
    flags: int
    crc: int
    packed: int
    """Bytes in the file."""
    nbytes: int
    """Bytes after inflating."""
    at: int
    """Where its bytes start; while that is not known, where its local header does."""
    lead: int = 0
    """Bytes of its local header; 0 while that was not read, or cannot be."""
    after: int = -1
    """Where the next member starts, where that follows from the directory alone."""
    used: bool = False
    """Whether anything in the checkpoint refers to it."""

    @property
    def raw(self) -> bytes:
        """The name's own bytes."""
        return self.name.encode(self.encoding)

    @property
    def header(self) -> int:
        """Where its local header starts."""
        return self.at - self.lead

    @property
    def start(self) -> int:
        """Where its bytes start; -1 where the local header cannot be read."""
        return self.at if self.lead else -1

    def begin(self, start: int) -> None:
        """Say where its bytes start."""
        self.at, self.lead = start, start - self.at


class Archive(Record):
    """The members of an archive, in the order of the file."""

    members: list[Member] = []
    fault: str = ""
    """The first thing about it that readers could disagree on."""
    assumed: int = 0
    """Members whose local header was not read: it lies far away, and the others tell its size."""

    def blame(self, fault: str) -> None:
        self.fault = self.fault or fault


def read_archive(source: Source, limits: Limits) -> Archive:
    """Return the members of the archive that `source` is, from its first byte to its last.

    Raises:
        CorruptCheckpointError: it has no directory that could be read.
    """
    end = _find_end(source)
    if end.count > limits.zip_members:
        raise CorruptCheckpointError(source.path, f"a zip archive of {end.count} members")
    archive = Archive(fault=end.fault)
    entries = sorted(_directory(source, end, archive), key=attrgetter("at"))
    _check_names(entries, archive)
    if source.remote:
        from ckptool.formats.zip_places import prepare

        archive.assumed = prepare(source, entries, end.start, deep=limits.deep)
    archive.members = list(_located(source, entries, end.start, archive))
    return archive


def is_zip(source: Source) -> bool:
    """Whether the file begins as a zip archive does. torch looks at the same four bytes."""
    return source.head(4) == b"PK\x03\x04"


def has_end_record(source: Source) -> bool:
    """Whether a zip reader that looks from the end would find a directory."""
    return b"PK\x05\x06" in source.tail(_EOCD.size + _COMMENT)


def read_member(source: Source, member: Member, limits: Limits, most: int) -> bytes:
    """Return the first `most` bytes of a member, or all there are.

    Raises:
        CorruptCheckpointError: they cannot be inflated, or not within the limits.
    """
    if member.method == STORED:
        return source.read(member.start, min(member.nbytes, most))
    return b"".join(inflate(source, member, limits, most))


def bad_crc(source: Source, members: Iterable[Member], limits: Limits) -> Member | None:
    """Return the first of `members`, in the order of the file, that does not have its checksum."""
    from zlib import crc32

    window = _Window(source)
    for member in members:
        if member.method == STORED and member.nbytes < _NEAR:
            at = window.at(member.start, member.nbytes)
            good = crc32(window.data[at : at + member.nbytes]) == member.crc
        else:
            good = check_crc(source, member, limits)
        if not good:
            return member
    return None


def check_crc(source: Source, member: Member, limits: Limits) -> bool:
    """Whether a member's bytes have the checksum that the directory says."""
    from zlib import crc32

    value = 0
    for chunk in chunks(source, member, limits):
        value = crc32(chunk, value)
    return value == member.crc


def chunks(source: Source, member: Member, limits: Limits) -> Iterator[bytes]:
    """Yield a member's bytes."""
    if member.method == DEFLATED:
        yield from inflate(source, member, limits, member.nbytes)
        return
    for offset in range(0, member.nbytes, _CHUNK):
        yield source.read(member.start + offset, min(_CHUNK, member.nbytes - offset))


def inflate(source: Source, member: Member, limits: Limits, most: int) -> Iterator[bytes]:
    """Yield up to `most` inflated bytes of a member, never more than it says it has."""
    from zlib import decompressobj
    from zlib import error as ZlibError  # noqa: N812 - it is an exception

    if member.nbytes > max(_SMALL, limits.inflate_ratio * member.packed):
        reason = f"{quoted(member.name)} would inflate {member.packed} bytes to {member.nbytes}"
        raise CorruptCheckpointError(source.path, reason)
    left, stream = min(most, member.nbytes), decompressobj(-15)
    try:
        for offset in range(0, member.packed, _CHUNK):
            piece = source.read(member.start + offset, min(_CHUNK, member.packed - offset))
            while piece and left:
                out = stream.decompress(piece, min(left, _CHUNK))
                piece = stream.unconsumed_tail
                left -= len(out)
                yield out
    except ZlibError as error:
        reason = f"{quoted(member.name)} cannot be inflated: {error}"
        raise CorruptCheckpointError(source.path, reason) from error
    if left:
        raise CorruptCheckpointError(source.path, f"{quoted(member.name)} inflates to too little")


_CHUNK: Final = 1 << 20
_PER_ENTRY: Final = 4096
"""Bytes of the directory for one member."""
_SMALL: Final = 1 << 20
"""Inflated bytes that are never called a bomb: zeros shrink a thousandfold."""
_COMMENT: Final = 0xFFFF
_EOCD: Final = Struct("<4s4H2LH")
_EOCD64: Final = Struct("<4sQ2H2L4Q")
_LOCATOR: Final = Struct("<4sLQL")
_ENTRY: Final = Struct("<4s6H3L5H2L")
_LOCAL: Final = Struct("<4s5H3L2H")
_WIDE: Final = 0xFFFFFFFF
_FLAGS: Final = 0x0002 | 0x0004 | 0x0008 | 0x0800
"""How it was deflated, sizes after the data, UTF-8: what no reader stumbles over."""
_AFTER: Final = 0x0008
_SYMLINK: Final = 0o120000


class _End(Record, frozen=True):
    """The record at the end of an archive."""

    start: int
    """Where the directory starts."""
    nbytes: int
    count: int
    fault: str


def _find_end(source: Source) -> _End:
    """Return the end record: the last bytes of the file, with a comment at most."""
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


def _checked_end(source: Source, record: tuple[int, ...], at: int) -> _End:
    _, disk, first_disk, here, count, nbytes, start, comment = record
    faults = []
    if comment:
        faults.append("a comment follows its directory")
    if (disk, first_disk) not in {(0, 0), (0xFFFF, 0xFFFF)} or here != count:
        faults.append("it is one of several disks")
    end, wide = at, _wide_end(source, at)
    if wide is not None:
        end, count64, nbytes64, start64 = wide
        narrow = ((count, 0xFFFF, count64), (nbytes, _WIDE, nbytes64), (start, _WIDE, start64))
        if any(small not in {full, large} for small, full, large in narrow):
            faults.append("its two end records disagree")
        count, nbytes, start = count64, nbytes64, start64
    if start + nbytes != end:
        faults.append(f"{end - start - nbytes} bytes stand between its directory and its end")
    if start + nbytes > source.nbytes or nbytes > _PER_ENTRY * (count + 1):
        raise CorruptCheckpointError(source.path, "a zip archive whose directory is not in it")
    return _End(start, nbytes, count, faults[0] if faults else "")


def _wide_end(source: Source, at: int) -> tuple[int, int, int, int] | None:
    """Return (position, count, size and start of the directory) of a zip64 end record."""
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


def _directory(source: Source, end: _End, archive: Archive) -> Iterator[Member]:
    """Yield what the directory says, in its order."""
    data = source.read(end.start, end.nbytes)
    pos, same = 0, dict[int, int]()
    for _ in range(end.count):
        if pos + _ENTRY.size > len(data) or data[pos : pos + 4] != b"PK\x01\x02":
            archive.blame(f"its end record counts {end.count} members and there are fewer")
            return
        fields = _ENTRY.unpack_from(data, pos)
        name_end = pos + _ENTRY.size + fields[10]
        extra_end = name_end + fields[11]
        raw, extra = data[pos + _ENTRY.size : name_end], data[name_end:extra_end]
        pos = extra_end + fields[12]
        yield _entry(fields, raw, extra, archive, same)
    if pos != len(data):
        archive.blame(f"its end record counts {end.count} members and there are more")


def _entry(
    fields: tuple[int, ...], raw: bytes, extra: bytes, archive: Archive, same: dict[int, int]
) -> Member:
    """Return the member that an entry describes; `same` holds each value of the flags once."""
    _, _, _, flags, method, _, _, crc, packed, nbytes, _, _, _, disk, _, attributes, header = fields
    name, encoding = _name(raw)
    odd = extra or method or disk or attributes or packed != nbytes or flags & ~_FLAGS
    flags = same.setdefault(flags, flags)
    if not odd:
        return Member(name, encoding, method, flags, crc, nbytes, nbytes, header)
    if extra:
        sizes = _wide_sizes(extra, (nbytes, packed, header), name, archive)
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


def _name(raw: bytes) -> tuple[str, str]:
    """Return a name and its encoding."""
    try:
        return raw.decode(), "utf-8"
    except UnicodeDecodeError:
        return raw.decode("cp437"), "cp437"


def _wide_sizes(
    extra: bytes, sizes: tuple[int, int, int], name: str, archive: Archive
) -> tuple[int, int, int]:
    """Return (bytes, packed bytes, header), each from the zip64 field where it does not fit."""
    wide = list(sizes)
    for kind, body in _extra_fields(extra):
        if kind == 0x7075:
            archive.blame(f"{quoted(name)} has a second name")
        if kind == 0x0001:
            full = [index for index, size in enumerate(sizes) if size == _WIDE]
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


def _check_names(members: list[Member], archive: Archive) -> None:
    """Refuse names that leave the archive, and two members that a reader may take for one."""
    seen: dict[str, str] = {}
    for member in members:
        name = member.name
        if _NAME.fullmatch(name) is None:
            archive.blame(f"a member is named {quoted(name)}: it leaves the archive")
        if name[-1:] == "/" and member.nbytes:
            archive.blame(f"{quoted(name)} is a folder and has bytes")
        folded = name.casefold()
        if folded in seen:
            other = seen[folded]
            same = "stands twice in it" if other == name else f"and {quoted(other)} are one name"
            archive.blame(f"{quoted(name)} {same}")
        seen[folded] = name


_NAME: Final = re.compile(r"(?![A-Za-z]:/)(?:(?!\.{1,2}(?:/|$))[^/\\\0]+(?:/|$))+")
"""Parts between slashes: none empty, "." or "..", no drive, no NUL."""


def _located(source: Source, members: list[Member], end: int, archive: Archive) -> Iterator[Member]:
    """Yield the members with the place of their bytes; local headers must say what it says."""
    window, reached = _Window(source), 0
    for member in members:
        if member.header != reached:
            archive.blame(_gap(member, reached))
        if member.start >= 0:
            reached = member.after
            yield member
            continue
        start = _local(window, member, end, archive)
        if start + member.packed > end:
            archive.blame(f"{quoted(member.name)} leaves the archive")
        elif start >= 0:
            member.begin(start)
            reached = _after(window, member, start + member.packed, archive)
        yield member
    if reached != end:
        archive.blame(f"{end - reached} bytes before its directory belong to no member")


def _gap(member: Member, reached: int) -> str:
    if member.header < reached:
        return f"{quoted(member.name)} overlaps another member"
    what = "precede the archive" if not reached else f"before {quoted(member.name)} are no member's"
    return f"{member.header - reached} bytes {what}"


def _local(window: "_Window", member: Member, end: int, archive: Archive) -> int:
    """Return where a member's bytes start, -1 where there is no local header."""
    if member.header + _LOCAL.size > end:
        archive.blame(f"{quoted(member.name)} is said to start outside the archive")
        return -1
    at = window.at(member.header, HEADER_READ)
    fields = _LOCAL.unpack_from(window.data, at)
    start: int = member.header + _LOCAL.size + fields[9] + fields[10]
    if fields[0] != b"PK\x03\x04" or start > end:
        archive.blame(f"{quoted(member.name)} has no local header")
        return -1
    if start - member.header > HEADER_READ:
        at = window.at(member.header, start - member.header)
    at += _LOCAL.size
    raw = member.raw
    # As torch writes it: the same flags, no sizes, the same name.
    if not (
        fields[6:9] == _ABSENT
        and fields[2] == member.flags
        and fields[3] == member.method
        and member.flags & _AFTER
        and fields[9] == len(raw)
        and window.data.startswith(raw, at)
    ):
        _compare(fields, window.data[at : at + fields[9] + fields[10]], member, archive)
    return start


def _compare(fields: tuple[int, ...], rest: bytes, member: Member, archive: Archive) -> None:
    """Blame the archive where a local header says something else than the directory."""
    _, _, flags, method, _, _, crc, packed, nbytes, name_size, _ = fields
    name = rest[:name_size]
    if name != member.raw:
        there = quoted(_name(name)[0])
        archive.blame(f"{quoted(member.name)} is named {there} in its local header")
    if _WIDE in {packed, nbytes}:
        sizes = (nbytes, packed, 0)
        nbytes, packed, _ = _wide_sizes(rest[name_size:], sizes, member.name, archive)
    # Where the sizes follow the data, they may be left out here.
    absent = flags & _AFTER
    same = (
        method == member.method
        and not (flags ^ member.flags) & ~0x0806
        and (crc == member.crc or (absent and not crc))
        and (packed == member.packed or (absent and not packed))
        and (nbytes == member.nbytes or (absent and not nbytes))
    )
    if not same:
        archive.blame(f"{quoted(member.name)} is described differently in its local header")


def _after(window: "_Window", member: Member, end: int, archive: Archive) -> int:
    """Return the end of a member: past the sizes that follow its data, where they do."""
    if not member.flags & _AFTER:
        return end
    at, data = window.at(end, _WIDE_SIZES.size), window.data
    sizes = (member.crc, member.packed, member.nbytes)
    small = member.nbytes > 0 and max(sizes) <= _WIDE
    for layout in (_SIZES, _WIDE_SIZES) if small else (_WIDE_SIZES,):
        signed = layout.pack(b"PK\x07\x08", *sizes)
        if data.startswith(signed, at):
            return end + len(signed)
        if member.nbytes and data.startswith(signed[4:], at):
            return end + len(signed) - 4
    if not member.nbytes and data.startswith(_NO_SIZES, at):
        return end + len(_NO_SIZES)
    if member.nbytes:
        archive.blame(f"{quoted(member.name)} is described differently after its data")
    return end


class _Window:
    """Small reads, mostly forward: of dense files by the megabyte, of sparse ones as asked."""

    def __init__(self, source: Source) -> None:
        self.data = b""
        self._source = source
        self._start = 0

    def at(self, offset: int, nbytes: int) -> int:
        """Return where in `data` the `nbytes` from `offset` stand; fewer at the end of the file."""
        skip = offset - self._start
        if skip < 0 or skip + nbytes > len(self.data):
            near = -len(self.data) <= skip - len(self.data) < _NEAR
            least = 0 if self._source.remote else _CHUNK if near and self.data else _SPARSE
            size = min(max(nbytes, least), max(0, self._source.nbytes - offset))
            self.data, self._start, skip = self._source.read(offset, size), offset, 0
        return skip


_ABSENT: Final = (0, 0, 0)
_NEAR: Final = 1 << 14
_SPARSE: Final = 1 << 10
HEADER_READ: Final = 256
"""Bytes of a local header with its name and its padding, mostly."""
_SIZES: Final = Struct("<4sLLL")
_WIDE_SIZES: Final = Struct("<4sLQQ")
_NO_SIZES: Final = _SIZES.pack(b"PK\x07\x08", 0, 0, 0)
