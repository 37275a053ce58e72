"""Records of an archive to which nothing refers -> dangerous globals, and what nobody looked at."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files.byte_strings import identify_packed_bytes
from ckptool.formats.pickle.global_uses import find_global_uses
from ckptool.formats.pickle.nodes import GlobalName
from ckptool.formats.pickle.reader import scan_globals
from ckptool.formats.zip.archive import ZipMember, read_member
from ckptool.model import GlobalUse, Safety, Skipped

if TYPE_CHECKING:
    from ckptool.formats.torch.archive_records import ArchiveRecords

_MAX_SCAN_BYTES: Final = 64 << 20
"""Bytes of all such records together that are searched for pickles."""
_MAX_REMOTE_SCAN_BYTES: Final = 1 << 20


def iter_hidden_uses(records: "ArchiveRecords") -> Iterator[GlobalUse]:
    """Yield the unsafe globals of unreferenced members that are pickles."""
    for member, names in scan_hidden_members(records):
        for use in find_global_uses(names):
            if use.safety is not Safety.SAFE:
                yield replace(use, at=f"record {member.name}")


def list_unread_records(records: "ArchiveRecords") -> tuple[Skipped, ...]:
    """Return the unreferenced members whose content was not searched, with the reason."""
    return tuple(
        Skipped(f"record {member.name}", reason)
        for member, _, reason in _iter_searched(records)
        if reason
    )


def scan_hidden_members(
    records: "ArchiveRecords",
) -> Iterator[tuple[ZipMember, list[GlobalName]]]:
    """Yield each unreferenced member (in a damaged archive, each member) and its globals."""
    for member, data, _ in _iter_searched(records):
        yield member, scan_globals(data, records.limits)


def _iter_searched(records: "ArchiveRecords") -> Iterator[tuple[ZipMember, bytes, str]]:
    """Yield (member, its content, why the content was not looked at); each offset once."""
    offsets: set[int] = set()
    remaining = _MAX_REMOTE_SCAN_BYTES if records.source.is_remote else _MAX_SCAN_BYTES
    for member in records.members:
        is_read = member.is_referenced and not records.archive.fault
        if is_read or member.data_offset < 0 or member.data_offset in offsets:
            continue
        offsets.add(member.data_offset)
        if member.nbytes > remaining:
            yield member, b"", f"has {member.nbytes} bytes, more than the search limit"
            continue
        remaining -= member.nbytes
        try:
            data = read_member(records.source, member, records.limits, member.nbytes)
        except CorruptCheckpointError as error:
            yield member, b"", error.reason
            continue
        yield member, data, identify_packed_bytes(data)
