"""Zip archive -> ZipMembers; records faults on which zip readers could disagree."""

import re
from collections.abc import Iterable, Iterator
from operator import attrgetter
from struct import Struct
from typing import Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files.read_window import NEAR_BYTES, ReadWindow
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.zip.directory import (
    DEFLATED,
    STORED,
    ZIP64_MARKER,
    ZipMember,
    ZipMembers,
    decode_name,
    find_end_record,
    iter_entries,
    read_zip64_sizes,
)

__all__ = [
    "DEFLATED",
    "STORED",
    "ZipMember",
    "ZipMembers",
    "_iter_inflated_chunks",
    "find_bad_crc",
    "is_crc_valid",
    "is_zip",
    "iter_member_chunks",
    "read_archive",
    "read_member",
]


def read_archive(source: ByteSource, limits: Limits) -> ZipMembers:
    """Return the members of the archive, which must fill `source` from first to last byte.

    Inconsistencies are recorded in the result's `fault`.

    Raises:
        CorruptCheckpointError: its directory is missing or has too many members.
    """
    end = find_end_record(source)
    if end.member_count > limits.zip_members:
        raise CorruptCheckpointError(source.path, f"a zip archive of {end.member_count} members")
    archive = ZipMembers(fault=end.fault)
    entries = list(iter_entries(source, end, archive))
    archive.first_name = entries[0].name if entries else ""
    archive.members = sorted(entries, key=attrgetter("offset"))
    archive.names = [member.name for member in archive.members]
    archive.has_plain_names = _are_plain_names(archive.names)
    if not archive.has_plain_names:
        _check_names(archive.members, archive)
    if source.is_remote:
        from ckptool.formats.zip.remote_layout import prefetch_headers

        archive.assumed_count = prefetch_headers(
            source, archive.members, end.directory_offset, deep=limits.deep
        )
    if not archive.assumed_count:
        _locate_members(source, end.directory_offset, archive)
    elif archive.members[0].header_offset:
        archive.record_fault(_describe_gap(archive.members[0], 0))
    return archive


def is_zip(source: ByteSource) -> bool:
    """Whether the file starts with the zip magic; torch checks the same four bytes."""
    return source.read_head(4) == b"PK\x03\x04"


def read_member(source: ByteSource, member: ZipMember, limits: Limits, max_nbytes: int) -> bytes:
    """Return the first `max_nbytes` uncompressed bytes of a member, or all of them.

    Raises:
        CorruptCheckpointError: they cannot be inflated, or not within `limits`.
    """
    if member.method == STORED:
        return source.read(member.data_offset, min(member.nbytes, max_nbytes))
    return b"".join(_iter_inflated_chunks(source, member, limits, max_nbytes))


def find_bad_crc(
    source: ByteSource, members: Iterable[ZipMember], limits: Limits
) -> ZipMember | None:
    """Return the first member whose data does not match its CRC-32, or None."""
    from zlib import crc32

    window = ReadWindow(source)
    for member in members:
        nbytes = member.nbytes
        if member.method == STORED and nbytes < NEAR_BYTES:
            index = window.load_range(member.data_offset, nbytes)
            is_valid = crc32(window.data[index : index + nbytes]) == member.crc
        else:
            is_valid = is_crc_valid(source, member, limits)
        if not is_valid:
            return member
    return None


def is_crc_valid(source: ByteSource, member: ZipMember, limits: Limits) -> bool:
    """Whether a member's data matches its CRC-32 in the directory."""
    from zlib import crc32

    value = 0
    for chunk in iter_member_chunks(source, member, limits):
        value = crc32(chunk, value)
    return value == member.crc


def iter_member_chunks(source: ByteSource, member: ZipMember, limits: Limits) -> Iterator[bytes]:
    """Yield a member's uncompressed bytes in chunks of up to 1 MiB."""
    if member.method == DEFLATED:
        yield from _iter_inflated_chunks(source, member, limits, member.nbytes)
        return
    for offset in range(0, member.nbytes, _CHUNK_BYTES):
        yield source.read(member.data_offset + offset, min(_CHUNK_BYTES, member.nbytes - offset))


def _iter_inflated_chunks(
    source: ByteSource, member: ZipMember, limits: Limits, max_nbytes: int
) -> Iterator[bytes]:
    """Yield up to `max_nbytes` inflated bytes of a member, never more than its declared size.

    Raises:
        CorruptCheckpointError: invalid deflate data, too little of it, or a zip bomb.
    """
    from zlib import decompressobj
    from zlib import error as ZlibError  # noqa: N812 - it is an exception

    if member.nbytes > max(_MIN_BOMB_BYTES, limits.inflate_ratio * member.compressed_nbytes):
        reason = (
            f"{quote_name(member.name)} would decompress {member.compressed_nbytes} bytes to "
            f"{member.nbytes}"
        )
        raise CorruptCheckpointError(source.path, reason)
    is_whole = max_nbytes >= member.nbytes
    remaining_nbytes, decompressor = min(max_nbytes, member.nbytes), decompressobj(-15)
    try:
        for offset in range(0, member.compressed_nbytes, _CHUNK_BYTES):
            compressed_chunk = source.read(
                member.data_offset + offset, min(_CHUNK_BYTES, member.compressed_nbytes - offset)
            )
            # One byte more than is wanted shows whether there is one.
            while compressed_chunk and (remaining_nbytes or is_whole):
                if decompressor.eof:
                    raise _build_deflate_error(source, member, "is followed by bytes of no member")
                chunk = decompressor.decompress(
                    compressed_chunk, min(remaining_nbytes + is_whole, _CHUNK_BYTES)
                )
                if len(chunk) > remaining_nbytes:
                    raise _build_deflate_error(
                        source, member, "decompresses to more bytes than declared"
                    )
                compressed_chunk = decompressor.unconsumed_tail or decompressor.unused_data
                remaining_nbytes -= len(chunk)
                yield chunk
    except ZlibError as error:
        raise _build_deflate_error(source, member, f"cannot be decompressed: {error}") from error
    if remaining_nbytes:
        raise _build_deflate_error(source, member, "decompresses to fewer bytes than declared")


def _build_deflate_error(
    source: ByteSource, member: ZipMember, reason: str
) -> CorruptCheckpointError:
    return CorruptCheckpointError(source.path, f"{quote_name(member.name)} {reason}")


_CHUNK_BYTES: Final = 1 << 20
_MIN_BOMB_BYTES: Final = 1 << 20
"""Inflated size up to which the ratio is not checked: zeros compress a thousandfold."""
_LOCAL_HEADER: Final = Struct("<4s5H3L2H")
_LOCAL_HEADER_CHECKED_FIELDS: Final = Struct("<4s2x2H4x12s2H")
"""Same layout as fewer fields: magic, flags, method, CRC and sizes, name and extra lengths."""
_DESCRIPTOR_FLAG: Final = 0x0008
_TORCH_FLAGS: Final = 0x0808
"""A descriptor after the data, and a name in UTF-8."""
_TORCH_HEADER: Final = _LOCAL_HEADER.pack(b"PK\x03\x04", 0, _TORCH_FLAGS, *[0] * 8)[:-4]
"""How each local header of torch.save begins: stored, without times, checksum and sizes."""
_unpack_lengths: Final = Struct("<2H").unpack_from
"""Lengths of name and extra fields, which end a local header."""


def _check_names(members: list[ZipMember], archive: ZipMembers) -> None:
    """Record names that leave the archive, are equal when case is ignored, or file and folder."""
    folders = {member.name.casefold().rpartition("/")[0] for member in members}
    names_by_casefold: dict[str, str] = {}
    for member in members:
        name = member.name
        if _SAFE_NAME.fullmatch(name) is None:
            archive.record_fault(f"a member is named {quote_name(name)}: it is outside the archive")
        if name[-1:] == "/" and member.nbytes:
            archive.record_fault(f"{quote_name(name)} is a folder but has data")
        if name.casefold() in folders:
            archive.record_fault(f"{quote_name(name)} is both a file and a folder")
        count = len(names_by_casefold)
        first_name = names_by_casefold.setdefault(name.casefold(), name)
        if len(names_by_casefold) == count:
            problem = (
                "appears twice in it"
                if first_name == name
                else f"and {quote_name(first_name)} are the same name"
            )
            archive.record_fault(f"{quote_name(name)} {problem}")


def _are_plain_names(names: list[str]) -> bool:
    """Whether names are as `ZipMembers.has_plain_names` says; nothing is wrong with them then."""
    joined_names = "/".join(("", "/\n/".join(names), ""))
    return (
        joined_names.count("\n") == len(names) - 1
        and not any(text in joined_names for text in _UNUSUAL_NAME_PARTS)
        and joined_names.isascii()
        and joined_names.lower() == joined_names
        and len(known_names := set(names)) == len(names)
        and known_names.isdisjoint({name.rpartition("/")[0] for name in names})
    )


_UNUSUAL_NAME_PARTS: Final = ("//", "/./", "/../", ":/", "\\", "\0")
"""What a name holds that leaves the archive, is empty, or is that of a folder."""
_SAFE_NAME: Final = re.compile(r"(?![A-Za-z]:/)(?:(?!\.{1,2}(?:/|$))[^/\\\0]+(?:/|$))+")
"""Path components: none empty, "." or "..", no drive, no NUL."""


def _locate_members(source: ByteSource, end: int, archive: ZipMembers) -> None:
    """Set each member's data offset; compare local headers with the directory."""
    window, expected_offset = ReadWindow(source), 0
    for member in archive.members:
        if member.offset != expected_offset:
            archive.record_fault(_describe_gap(member, expected_offset))
        record_end = _locate_usual_record(window, member)
        if 0 < record_end <= end:
            expected_offset = record_end
            continue
        header_nbytes = _check_local_header(window, member, end, archive)
        data_offset = member.offset + header_nbytes
        if data_offset + member.compressed_nbytes > end:
            archive.record_fault(f"{quote_name(member.name)} is outside the archive")
        elif header_nbytes:
            member.offset, member.header_nbytes = data_offset, header_nbytes
            expected_offset = _skip_descriptor(
                window, member, data_offset + member.compressed_nbytes, archive
            )
    if expected_offset != end:
        archive.record_fault(
            f"{end - expected_offset} bytes before its directory do not belong to a member"
        )


def _locate_usual_record(window: ReadWindow, member: ZipMember) -> int:
    """Set the data offset of a small record that is laid out as torch does; return its end.

    0 if it is not: a stored record whose checksum and sizes stand after its data only, or one that
    is not in the window.
    """
    data, offset, nbytes = window.data, member.offset, member.nbytes
    index = offset - window.start
    if (
        not 0 <= index <= len(data) - HEADER_READ_BYTES
        or not 0 < nbytes < NEAR_BYTES
        or not data.startswith(_TORCH_HEADER, index)
    ):
        return 0
    name_nbytes, extra_nbytes = _unpack_lengths(data, index + len(_TORCH_HEADER))
    header_nbytes: int = _LOCAL_HEADER.size + name_nbytes + extra_nbytes
    name = member.name.encode(member.encoding)
    is_usual = (
        member.flags == _TORCH_FLAGS
        and member.method == STORED
        and nbytes == member.compressed_nbytes
        and name_nbytes == len(name)
        and data.startswith(name, index + _LOCAL_HEADER.size)
        and data.startswith(
            _pack_descriptor(b"PK\x07\x08", member.crc, nbytes, nbytes),
            index + header_nbytes + nbytes,
        )
    )
    if not is_usual:
        return 0
    member.offset = offset = offset + header_nbytes
    member.header_nbytes = header_nbytes
    return offset + nbytes + _DESCRIPTOR.size


def _describe_gap(member: ZipMember, expected_offset: int) -> str:
    if member.header_offset < expected_offset:
        return f"{quote_name(member.name)} overlaps another member"
    description = (
        "precede the archive"
        if not expected_offset
        else f"before {quote_name(member.name)} are no member's"
    )
    return f"{member.header_offset - expected_offset} bytes {description}"


def _check_local_header(
    window: ReadWindow, member: ZipMember, end: int, archive: ZipMembers
) -> int:
    """Return the size of a member's local header; 0 if it is invalid."""
    if member.offset + _LOCAL_HEADER.size > end:
        archive.record_fault(f"{quote_name(member.name)} starts outside the archive")
        return 0
    index = window.load_range(member.offset, HEADER_READ_BYTES)
    magic, flags, method, sizes, name_nbytes, extra_nbytes = (
        _LOCAL_HEADER_CHECKED_FIELDS.unpack_from(window.data, index)
    )
    header_nbytes: int = _LOCAL_HEADER.size + name_nbytes + extra_nbytes
    if magic != b"PK\x03\x04" or member.offset + header_nbytes > end:
        archive.record_fault(f"{quote_name(member.name)} has no local header")
        return 0
    if header_nbytes > HEADER_READ_BYTES:
        index = window.load_range(member.offset, header_nbytes)
    encoded_name = member.encoded_name
    # Fast path for torch's layout: same flags, method and name, no sizes.
    if not (
        sizes == _ZERO_SIZES
        and flags == member.flags
        and method == member.method
        and flags & _DESCRIPTOR_FLAG
        and name_nbytes == len(encoded_name)
        and window.data.startswith(encoded_name, index + _LOCAL_HEADER.size)
    ):
        _compare_local_header(window.data[index : index + header_nbytes], member, archive)
    return header_nbytes


def _compare_local_header(header: bytes, member: ZipMember, archive: ZipMembers) -> None:
    """Record a fault if a local header differs from the directory entry."""
    _, _, flags, method, _, _, crc, compressed_nbytes, nbytes, name_nbytes, _ = (
        _LOCAL_HEADER.unpack_from(header)
    )
    name_and_extra = header[_LOCAL_HEADER.size :]
    local_name = name_and_extra[:name_nbytes]
    if local_name != member.encoded_name:
        quoted_name = quote_name(decode_name(local_name)[0])
        archive.record_fault(
            f"{quote_name(member.name)} is named {quoted_name} in its local header"
        )
    if ZIP64_MARKER in {compressed_nbytes, nbytes}:
        sizes = (nbytes, compressed_nbytes, 0)
        nbytes, compressed_nbytes, _ = read_zip64_sizes(
            name_and_extra[name_nbytes:], sizes, member.name, archive
        )
    # With a data descriptor, checksum and sizes may be 0 here.
    may_be_zero = flags & _DESCRIPTOR_FLAG
    is_equal = (
        method == member.method
        and not (flags ^ member.flags) & ~0x0806
        and (crc == member.crc or (may_be_zero and not crc))
        and (
            compressed_nbytes == member.compressed_nbytes or (may_be_zero and not compressed_nbytes)
        )
        and (nbytes == member.nbytes or (may_be_zero and not nbytes))
    )
    if not is_equal:
        archive.record_fault(
            f"{quote_name(member.name)} is described differently in its local header"
        )


def _skip_descriptor(window: ReadWindow, member: ZipMember, end: int, archive: ZipMembers) -> int:
    """Return the end offset of a member, including its data descriptor if it has one."""
    if not member.flags & _DESCRIPTOR_FLAG:
        return end
    index, data = window.load_range(end, _ZIP64_DESCRIPTOR.size), window.data
    sizes = (member.crc, member.compressed_nbytes, member.nbytes)
    fits_32_bits = member.nbytes > 0 and max(sizes) <= ZIP64_MARKER
    for layout in (_DESCRIPTOR, _ZIP64_DESCRIPTOR) if fits_32_bits else (_ZIP64_DESCRIPTOR,):
        descriptor = layout.pack(b"PK\x07\x08", *sizes)
        if data.startswith(descriptor, index):
            return end + len(descriptor)
        if member.nbytes and data.startswith(descriptor[4:], index):
            return end + len(descriptor) - 4
    if not member.nbytes and data.startswith(_EMPTY_DESCRIPTOR, index):
        return end + len(_EMPTY_DESCRIPTOR)
    if member.nbytes:
        archive.record_fault(f"{quote_name(member.name)} is described differently after its data")
    return end


_ZERO_SIZES: Final = bytes(12)
HEADER_READ_BYTES: Final = 256
"""Bytes read per local header: usually enough for name and padding."""
_DESCRIPTOR: Final = Struct("<4sLLL")
_pack_descriptor: Final = _DESCRIPTOR.pack
_ZIP64_DESCRIPTOR: Final = Struct("<4sLQQ")
_EMPTY_DESCRIPTOR: Final = _DESCRIPTOR.pack(b"PK\x07\x08", 0, 0, 0)
