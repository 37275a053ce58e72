"""Zip archive -> ZipMembers; records faults on which zip readers could disagree."""

import re
from collections.abc import Iterable, Iterator
from operator import attrgetter
from struct import Struct
from typing import Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.plain import quoted
from ckptool.formats.zip_directory import (
    DEFLATED,
    STORED,
    WIDE,
    Archive,
    Member,
    decoded,
    entries,
    find_end,
    wide_sizes,
)

__all__ = [
    "DEFLATED",
    "STORED",
    "Archive",
    "Member",
    "bad_crc",
    "check_crc",
    "chunks",
    "inflate",
    "is_zip",
    "read_archive",
    "read_member",
]


def read_archive(source: Source, limits: Limits) -> Archive:
    """Return the members of the archive, which must fill `source` from first to last byte.

    Inconsistencies are recorded in the result's `fault`.

    Raises:
        CorruptCheckpointError: its directory is missing or has too many members.
    """
    end = find_end(source)
    if end.count > limits.zip_members:
        raise CorruptCheckpointError(source.path, f"a zip archive of {end.count} members")
    archive = Archive(fault=end.fault)
    archive.members = sorted(entries(source, end, archive), key=attrgetter("at"))
    _check_names(archive.members, archive)
    if source.remote:
        from ckptool.formats.zip_places import prepare

        archive.assumed = prepare(source, archive.members, end.start, deep=limits.deep)
    if not archive.assumed:
        _locate(source, end.start, archive)
    elif archive.members[0].header:
        archive.blame(_gap(archive.members[0], 0))
    return archive


def is_zip(source: Source) -> bool:
    """Whether the file starts with the zip magic; torch checks the same four bytes."""
    return source.head(4) == b"PK\x03\x04"


def read_member(source: Source, member: Member, limits: Limits, most: int) -> bytes:
    """Return the first `max_nbytes` uncompressed bytes of a member, or all of them.

    Raises:
        CorruptCheckpointError: they cannot be inflated, or not within `limits`.
    """
    if member.method == STORED:
        return source.read(member.start, min(member.nbytes, most))
    return b"".join(inflate(source, member, limits, most))


def bad_crc(source: Source, members: Iterable[Member], limits: Limits) -> Member | None:
    """Return the first member whose data does not match its CRC-32, or None."""
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
    """Whether a member's data matches its CRC-32 in the directory."""
    from zlib import crc32

    value = 0
    for chunk in chunks(source, member, limits):
        value = crc32(chunk, value)
    return value == member.crc


def chunks(source: Source, member: Member, limits: Limits) -> Iterator[bytes]:
    """Yield a member's uncompressed bytes in chunks of up to 1 MiB."""
    if member.method == DEFLATED:
        yield from inflate(source, member, limits, member.nbytes)
        return
    for offset in range(0, member.nbytes, _CHUNK):
        yield source.read(member.start + offset, min(_CHUNK, member.nbytes - offset))


def inflate(source: Source, member: Member, limits: Limits, most: int) -> Iterator[bytes]:
    """Yield up to `max_nbytes` inflated bytes of a member, never more than its declared size.

    Raises:
        CorruptCheckpointError: invalid deflate data, too little of it, or a zip bomb.
    """
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
_SMALL: Final = 1 << 20
"""Inflated size up to which the ratio is not checked: zeros compress a thousandfold."""
_LOCAL: Final = Struct("<4s5H3L2H")
_BRIEFLY: Final = Struct("<4s2x2H4x12s2H")
"""Same layout as fewer fields: magic, flags, method, CRC and sizes, name and extra lengths."""
_AFTER: Final = 0x0008


def _check_names(members: list[Member], archive: Archive) -> None:
    """Record names that leave the archive, and names equal when case is ignored."""
    seen: dict[str, str] = {}
    for member in members:
        name = member.name
        if _NAME.fullmatch(name) is None:
            archive.blame(f"a member is named {quoted(name)}: it leaves the archive")
        if name[-1:] == "/" and member.nbytes:
            archive.blame(f"{quoted(name)} is a folder and has bytes")
        known = len(seen)
        other = seen.setdefault(name.casefold(), name)
        if len(seen) == known:
            same = "stands twice in it" if other == name else f"and {quoted(other)} are one name"
            archive.blame(f"{quoted(name)} {same}")


_NAME: Final = re.compile(r"(?![A-Za-z]:/)(?:(?!\.{1,2}(?:/|$))[^/\\\0]+(?:/|$))+")
"""Path components: none empty, "." or "..", no drive, no NUL."""


def _locate(source: Source, end: int, archive: Archive) -> None:
    """Set each member's data offset; compare local headers with the directory."""
    window, reached = _Window(source), 0
    for member in archive.members:
        if member.at != reached:
            archive.blame(_gap(member, reached))
        lead = _lead(window, member, end, archive)
        start = member.at + lead
        if start + member.packed > end:
            archive.blame(f"{quoted(member.name)} leaves the archive")
        elif lead:
            member.at, member.lead = start, lead
            reached = _after(window, member, start + member.packed, archive)
    if reached != end:
        archive.blame(f"{end - reached} bytes before its directory belong to no member")


def _gap(member: Member, reached: int) -> str:
    if member.header < reached:
        return f"{quoted(member.name)} overlaps another member"
    what = "precede the archive" if not reached else f"before {quoted(member.name)} are no member's"
    return f"{member.header - reached} bytes {what}"


def _lead(window: "_Window", member: Member, end: int, archive: Archive) -> int:
    """Return the size of a member's local header; 0 if it is invalid."""
    if member.at + _LOCAL.size > end:
        archive.blame(f"{quoted(member.name)} is said to start outside the archive")
        return 0
    at = window.at(member.at, HEADER_READ)
    magic, flags, method, sizes, name, extra = _BRIEFLY.unpack_from(window.data, at)
    lead: int = _LOCAL.size + name + extra
    if magic != b"PK\x03\x04" or member.at + lead > end:
        archive.blame(f"{quoted(member.name)} has no local header")
        return 0
    if lead > HEADER_READ:
        at = window.at(member.at, lead)
    raw = member.raw
    # Fast path for torch's layout: same flags, method and name, no sizes.
    if not (
        sizes == _ABSENT
        and flags == member.flags
        and method == member.method
        and flags & _AFTER
        and name == len(raw)
        and window.data.startswith(raw, at + _LOCAL.size)
    ):
        _compare(window.data[at : at + lead], member, archive)
    return lead


def _compare(header: bytes, member: Member, archive: Archive) -> None:
    """Record a fault if a local header differs from the directory entry."""
    _, _, flags, method, _, _, crc, packed, nbytes, name_size, _ = _LOCAL.unpack_from(header)
    rest = header[_LOCAL.size :]
    name = rest[:name_size]
    if name != member.raw:
        there = quoted(decoded(name)[0])
        archive.blame(f"{quoted(member.name)} is named {there} in its local header")
    if WIDE in {packed, nbytes}:
        sizes = (nbytes, packed, 0)
        nbytes, packed, _ = wide_sizes(rest[name_size:], sizes, member.name, archive)
    # With a data descriptor, checksum and sizes may be 0 here.
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
    """Return the end offset of a member, including its data descriptor if it has one."""
    if not member.flags & _AFTER:
        return end
    at, data = window.at(end, _WIDE_SIZES.size), window.data
    sizes = (member.crc, member.packed, member.nbytes)
    small = member.nbytes > 0 and max(sizes) <= WIDE
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
    """Buffer for small forward reads: 1 MiB for dense files, little more than asked for sparse."""

    def __init__(self, source: Source) -> None:
        self.data = b""
        self._source = source
        self._start = 0

    def at(self, offset: int, nbytes: int) -> int:
        """Buffer `nbytes` bytes from `offset`; return their index in `data`. Fewer at file end."""
        skip = offset - self._start
        if skip < 0 or skip + nbytes > len(self.data):
            near = -len(self.data) <= skip - len(self.data) < _NEAR
            least = 0 if self._source.remote else _CHUNK if near and self.data else _SPARSE
            size = min(max(nbytes, least), max(0, self._source.nbytes - offset))
            self.data, self._start, skip = self._source.read(offset, size), offset, 0
        return skip


_ABSENT: Final = bytes(12)
_NEAR: Final = 1 << 14
_SPARSE: Final = 1 << 10
HEADER_READ: Final = 256
"""Bytes read per local header: usually enough for name and padding."""
_SIZES: Final = Struct("<4sLLL")
_WIDE_SIZES: Final = Struct("<4sLQQ")
_NO_SIZES: Final = _SIZES.pack(b"PK\x07\x08", 0, 0, 0)
