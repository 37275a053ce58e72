"""Records of an archive -> wrong checksums, unreferenced records, omitted checks."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.pickle.plain_values import escape_unprintable, quote_name
from ckptool.formats.torch.archive_records import ArchiveRecords
from ckptool.formats.zip.archive import ZipMember, find_bad_crc
from ckptool.model import Skipped
from ckptool.phrases import join_limited


class IntegrityResult(Struct, frozen=True):
    """Result of the checksum and record checks of an archive."""

    skipped: tuple[Skipped, ...]
    """Checks that were omitted."""
    fault: str
    """First record with a wrong checksum, as a message; "" if there is none."""


def assess_integrity(records: ArchiveRecords) -> IntegrityResult:
    """Compare checksums and list unreferenced records, without raising."""
    skipped_checksums, fault = _verify_checksums(records)
    return IntegrityResult(
        (*_report_unread_headers(records), *skipped_checksums, *_report_unreferenced(records)),
        fault,
    )


def check_integrity(records: ArchiveRecords) -> tuple[Skipped, ...]:
    """Raise on a wrong checksum; else return the checks that `assess_integrity` omitted.

    Raises:
        CorruptCheckpointError: a record does not match its checksum.
    """
    result = assess_integrity(records)
    if result.fault:
        raise CorruptCheckpointError(records.source.path, result.fault)
    return result.skipped


def _report_unread_headers(records: ArchiveRecords) -> list[Skipped]:
    count = records.archive.assumed_count
    if not count:
        return []
    reason = f"{count} are far apart; the archive's directory gives their ends; --deep reads them"
    return [Skipped("headers before the records", reason)]


def _verify_checksums(records: ArchiveRecords) -> tuple[list[Skipped], str]:
    """Compare all checksums in small local files, or with `limits.deep`.

    Returns the omitted checks and the first mismatch as a message ("" if there is none).
    """
    source, limits = records.source, records.limits
    nonempty_members = [member for member in records.members if member.nbytes]
    missing_checksums = _report_missing_checksums(nonempty_members)
    if not limits.deep and (source.is_remote or source.nbytes > limits.checked_bytes):
        reason = f"the file has {source.nbytes} bytes; --deep compares them"
        if source.is_remote:
            reason = f"the file is remote; --deep downloads {source.nbytes} bytes to compare them"
        return [*missing_checksums, Skipped("checksums of the storages", reason)], ""
    damaged_member = find_bad_crc(
        source, (member for member in nonempty_members if member.crc), limits
    )
    if damaged_member is not None:
        return (
            [],
            (
                f"{quote_name(damaged_member.name)} does not match its checksum: its bytes were "
                "modified"
            ),
        )
    return missing_checksums, ""


MISSING_CHECKSUMS: Final = "checksums"
"""`Skipped.what` of an archive whose writer left checksums out."""


def _report_missing_checksums(nonempty_members: Iterable[ZipMember]) -> list[Skipped]:
    has_checksum = [bool(member.crc) for member in nonempty_members]
    if all(has_checksum):
        return []
    reason = f"{has_checksum.count(False)} of {len(has_checksum)} records were written without one"
    return [Skipped(MISSING_CHECKSUMS, reason)]


def _report_unreferenced(records: ArchiveRecords) -> list[Skipped]:
    unreferenced_names = [
        member.name.removeprefix(records.root_folder)
        for member in records.members
        if not member.is_referenced
    ]
    if not unreferenced_names:
        return []
    names = join_limited(unreferenced_names, 4, escape_unprintable, more=", ...")
    return [Skipped("records", f"nothing refers to {names}")]
