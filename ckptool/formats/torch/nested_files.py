"""Byte range that torch.load would be given -> object tree and globals, in torch.load's order."""

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.global_uses import find_global_uses
from ckptool.formats.pickle.nodes import GlobalName, PickleTreeError
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.reader import select_dangerous
from ckptool.formats.torch import tar
from ckptool.formats.torch.archive_records import ArchiveRecords, read_metadata
from ckptool.formats.torch.hidden_records import iter_hidden_uses, list_unread_records
from ckptool.formats.torch.legacy import MAGIC_NUMBER, LegacyReader
from ckptool.formats.torch.streams import PickleStream, SourceSlice
from ckptool.formats.torch.zip_reader import read_main_pickle, resolve_storages
from ckptool.formats.zip.archive import STORED, ZipMember, find_bad_crc, is_zip, read_archive
from ckptool.model import GlobalUse, Skipped


class NestedFile(Struct):
    """What one file within another holds."""

    root: object
    """Object tree with resolved storages; see `is_broken`."""
    uses: tuple[GlobalUse, ...]
    unread: tuple[Skipped, ...] = ()
    is_broken: bool = False
    """Whether it could not be read, and `uses` are the globals before the fault."""


def read_nested_file(
    file_slice: SourceSlice,
    limits: Limits,
    description: str,
    *,
    storage_prefix: str = "",
    verify_checksums: bool = False,
) -> NestedFile:
    """Read a file of torch.save, or a pickle, that is a part of another file.

    A broken one is read up to its fault if dangerous globals come before it.

    Raises:
        PickleTreeError, CorruptCheckpointError: it is inconsistent.
    """
    names: list[GlobalName] = []
    if tar.matches(file_slice):
        raise PickleTreeError(f"{quote_name(description)} is a tar archive")
    try:
        if is_zip(file_slice):
            records = ArchiveRecords(
                file_slice, read_archive(file_slice, limits), limits, storage_prefix
            )
            return _read_zip(records, names, description, verify_checksums=verify_checksums)
        return _read_pickles(file_slice, names, limits, description)
    except (PickleTreeError, CorruptCheckpointError):
        if not select_dangerous(names):
            raise
        return NestedFile(None, _locate_uses(names, description), is_broken=True)


def read_nested_record(records: ArchiveRecords, member: ZipMember) -> NestedFile:
    """Read a record of an archive that is a file of torch.save, or a pickle.

    Raises:
        PickleTreeError, CorruptCheckpointError: it is compressed, or inconsistent.
    """
    member.is_referenced = True
    if member.method != STORED or member.data_offset < 0:
        raise PickleTreeError(f"{quote_name(member.name)} is compressed, which torch never does")
    file_slice = SourceSlice(records.source, member.data_offset, member.nbytes)
    name = f"record {member.name}"
    return read_nested_file(file_slice, records.limits, name, storage_prefix=f"{member.name}:")


def _read_zip(
    records: ArchiveRecords, names: list[GlobalName], description: str, *, verify_checksums: bool
) -> NestedFile:
    if not records.main_pickles:
        raise PickleTreeError(f"{quote_name(description)} is a zip archive without data.pkl")
    pickle = read_main_pickle(records, names)
    if refusal := records.find_load_refusal():
        raise PickleTreeError(f"{quote_name(description)}: torch.load refuses it: {refusal}")
    metadata = read_metadata(records)
    resolve_storages(pickle.persistent_references, records, metadata.get("byteorder", "little"))
    summed_members = (member for member in records.members if member.crc and verify_checksums)
    if find_bad_crc(records.source, summed_members, records.limits) is not None:
        raise PickleTreeError(f"{quote_name(description)} does not match its checksum")
    hidden_uses = (replace(use, at=description) for use in iter_hidden_uses(records))
    unread = (*list_unread_records(records), *pickle.list_unread())
    return NestedFile(pickle.root, (*_locate_uses(names, description), *hidden_uses), unread)


def _read_pickles(
    file_slice: SourceSlice, names: list[GlobalName], limits: Limits, description: str
) -> NestedFile:
    stream = PickleStream(file_slice, limits)
    try:
        pickle = stream.read_pickle(description)
        if type(pickle.root) is int and pickle.root == MAGIC_NUMBER:
            pickle = LegacyReader(stream, file_slice.start).read()
        elif pickle.persistent_references:
            raise PickleTreeError(f"{quote_name(description)} refers to storages that are missing")
        if stream.position != stream.end:
            stream.global_names += stream.scan_remaining()
            trailing_nbytes = stream.end - stream.position
            raise PickleTreeError(f"{trailing_nbytes} bytes follow {quote_name(description)}")
    finally:
        names += stream.global_names
    return NestedFile(pickle.root, _locate_uses(names, description), pickle.list_unread())


def _locate_uses(names: Iterable[GlobalName], at: str) -> tuple[GlobalUse, ...]:
    return tuple(replace(use, at=at) for use in find_global_uses(names))
