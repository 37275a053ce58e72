"""torch.save zip archive (torch >= 1.6) -> Checkpoint: data.pkl and one record per storage."""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, UnknownFormatError
from ckptool.formats import unrecognized
from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import Limits
from ckptool.formats.pickle import states
from ckptool.formats.pickle.global_uses import build_damaged_checkpoint, find_global_uses
from ckptool.formats.pickle.nodes import GlobalName, PersistentReference, PickleTreeError
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.reader import ParsedPickle, parse_whole_pickle, select_dangerous
from ckptool.formats.pickle.storage_ids import (
    StorageIdReader,
    check_repeated_id,
    select_byte_storages,
)
from ckptool.formats.pickle.tensors.storage import SavedStorage
from ckptool.formats.torch.archive_integrity import assess_integrity
from ckptool.formats.torch.archive_layout import fold_case
from ckptool.formats.torch.archive_records import ArchiveRecords, read_metadata
from ckptool.formats.torch.hidden_records import (
    iter_hidden_uses,
    list_unread_records,
    scan_hidden_members,
)
from ckptool.formats.torch.streams import SourceSlice
from ckptool.formats.torch.without_tensors import describe_tensorless_pickle
from ckptool.formats.zip.archive import (
    STORED,
    ZipMember,
    is_crc_valid,
    is_zip,
    read_archive,
    read_member,
)
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Container,
    ContainerIssue,
    IssueKind,
    Span,
    StorageInfo,
)


def matches(source: ByteSource) -> bool:
    """Whether the file starts with the zip magic."""
    return is_zip(source)


def read(source: ByteSource, limits: Limits) -> Checkpoint:
    """Describe the archive.

    Raises:
        UnknownFormatError: it is a zip archive that torch did not write.
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    with pause_gc():
        return _read_records(ArchiveRecords(source, read_archive(source, limits), limits))


def _read_records(records: "ArchiveRecords") -> Checkpoint:
    _refuse_package(records)
    if not records.main_pickles:
        return _read_other_archive(records)
    records.prefetch_small_records()
    if "constants.pkl" in records or records.has_folder("code/"):
        from ckptool.formats.torch import torchscript

        return torchscript.read(records)
    return describe_or_report_damage(
        records, Container.TORCH_ZIP, lambda names: _describe_archive(records, names)
    )


GlobalNames = list[GlobalName]
"""Globals of all pickles read so far; appended to while reading."""


def describe_or_report_damage(
    records: ArchiveRecords, container: Container, describe: Callable[[GlobalNames], Checkpoint]
) -> Checkpoint:
    """Return `describe(names)`; if the archive is damaged, a Checkpoint of its dangerous globals.

    Raises:
        CorruptCheckpointError: it is damaged, and holds no dangerous globals.
    """
    global_names: GlobalNames = []
    source = records.source
    try:
        return describe(global_names)
    except CorruptCheckpointError as error:
        reason = error.reason
    except PickleTreeError as error:
        reason = str(error)
    global_names += [
        name for _, hidden_names in scan_hidden_members(records) for name in hidden_names
    ]
    return build_damaged_checkpoint(source.path, container, source.nbytes, global_names, reason)


def read_main_pickle(records: ArchiveRecords, global_names: GlobalNames) -> ParsedPickle:
    """Parse data.pkl.

    Raises:
        CorruptCheckpointError: the archive or the pickle is damaged.
    """
    path, main_member = records.source.path, records.main_pickles[0]
    try:
        pickle = unpickle_member(records, main_member)
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(path, records.archive.fault or error.reason) from error
    global_names += pickle.globals
    if records.archive.fault:
        raise CorruptCheckpointError(path, records.archive.fault)
    if main_member.crc and not is_crc_valid(records.source, main_member, records.limits):
        raise CorruptCheckpointError(
            path, f"{quote_name(main_member.name)} does not match its checksum"
        )
    if pickle.error:
        raise CorruptCheckpointError(path, f"{quote_name(main_member.name)}: {pickle.error}")
    return pickle


def unpickle_member(records: ArchiveRecords, member: ZipMember) -> ParsedPickle:
    """Parse a pickle member.

    Raises:
        CorruptCheckpointError: it is too large, or cannot be inflated.
    """
    member.is_referenced = True
    if member.nbytes > records.limits.pickle_bytes or member.data_offset < 0:
        reason = (
            f"{quote_name(member.name)} has {member.nbytes} bytes, more than any pickle can need"
        )
        raise CorruptCheckpointError(records.source.path, reason)
    data = read_member(records.source, member, records.limits, member.nbytes)
    return parse_whole_pickle(data, records.limits)


def resolve_storages(
    nodes: Iterable[PersistentReference],
    records: ArchiveRecords,
    byteorder: str,
    folder: str = "data/",
    *,
    is_script: bool = False,
) -> None:
    """Resolve every persistent id to its storage record.

    Args:
        nodes: the persistent ids.
        records: the archive.
        byteorder: of the storages, "little" or "big".
        folder: of their records.
        is_script: whether they are of TorchScript; it has an empty record for a meta tensor.

    Raises:
        PickleTreeError: the record is missing or has another size.
    """
    stored_by_key: dict[str, SavedStorage] = {}
    ids, path = StorageIdReader(is_script=is_script), records.source.path
    get_member, root = records.members_by_name.get, records.root_folder + folder
    prefix = records.storage_prefix if folder == "data/" else records.storage_prefix + folder
    for node in nodes:
        storage, key = ids.read_alike(node), node.id[2]
        if key in stored_by_key:
            node.target = check_repeated_id(stored_by_key[key], replace(storage, key=key))
            continue
        member = get_member(root + key) or records.get(folder + key)
        is_on_meta = is_script and storage.location == "meta"
        if is_on_meta and member is not None and not member.nbytes:
            member.is_referenced = True
            info = StorageInfo(prefix + key, storage.nbytes, "meta")
            node.target = stored_by_key[key] = SavedStorage(info, storage.dtype, storage.numel)
            continue
        if member is None or member.nbytes != storage.nbytes:
            raise PickleTreeError(_describe_wrong_record(key, storage.nbytes, member))
        member.is_referenced = True
        span = None
        if member.method == STORED:
            start = member.data_offset
            if records.base_offset:  # else share the int: for 100,000 storages they take megabytes
                start += records.base_offset
            span = Span(path, start, member.nbytes)
        # torch swaps the bytes of typed storages only: not those of float8, uint16 and complex32.
        order = byteorder if DTYPE_BITS[storage.dtype] > 8 else "little"
        info = StorageInfo(prefix + key, member.nbytes, storage.location, span, order)
        node.target = stored_by_key[key] = SavedStorage(info, storage.dtype, storage.numel)


_PACKAGED_SCRIPT_LOADER: Final = "torch.jit._script.unpackage_script_module"
"""What torch.package writes for a TorchScript module; its importer alone has what it needs."""


def _read_other_archive(records: ArchiveRecords) -> Checkpoint:
    """Describe an archive without data.pkl: torch.export's, or raise for foreign ones."""
    from ckptool.formats.torch import export

    # An embedded archive must be of torch.save: this bounds the recursion.
    if export.is_export_archive(records) and not isinstance(records.source, SourceSlice):
        return export.read(records)
    reason = unrecognized.describe_unknown_archive(name for name, _ in records.items())

    def raise_reason(_names: GlobalNames) -> Checkpoint:
        raise CorruptCheckpointError(records.source.path, records.archive.fault or reason)

    try:
        return describe_or_report_damage(records, Container.TORCH_ZIP, raise_reason)
    except CorruptCheckpointError as error:
        if records.archive.fault or isinstance(records.source, SourceSlice):
            raise
        raise UnknownFormatError(error.path, error.reason) from None


def _find_compressed_storages(records: ArchiveRecords) -> tuple[ContainerIssue, ...]:
    """Return the issue that tensors are compressed, which torch's memory map does not expect."""
    names = [
        name
        for member in records.members
        if member.method != STORED
        and member.is_referenced
        and fold_case(name := member.name.removeprefix(records.root_folder)).startswith("data/")
    ]
    if not names:
        return ()
    return (ContainerIssue(IssueKind.COMPRESSED, names[0], {"count": str(len(names))}),)


def _refuse_package(records: ArchiveRecords) -> None:
    """Raise UnknownFormatError for a torch.package archive whose pickles name nothing dangerous."""
    names = [member.name for member in records.members]
    if not unrecognized.is_package_archive(names) or records.archive.fault:
        return
    dangerous_names = {
        name.qualified_name
        for _, hidden_names in scan_hidden_members(records)
        for name in select_dangerous(hidden_names)
    }
    if dangerous_names <= {_PACKAGED_SCRIPT_LOADER}:
        raise UnknownFormatError(records.source.path, unrecognized.describe_unknown_archive(names))


def _describe_archive(records: ArchiveRecords, global_names: GlobalNames) -> Checkpoint:
    pickle = read_main_pickle(records, global_names)
    metadata = read_metadata(records)
    resolve_storages(pickle.persistent_references, records, metadata.get("byteorder", "little"))
    # With unreferenced storages it is an unusual checkpoint; without storages it is none.
    has_storages = records.has_folder("data/")
    integrity = assess_integrity(records)
    load_refusal = records.find_load_refusal()
    faults = _find_compressed_storages(records)
    unreferenced = records.list_unreferenced()
    records.release_referenced()
    state_tree = states.describe_tree(pickle.root, records.limits)
    if state_tree.is_empty and not has_storages and not select_dangerous(global_names):
        raise CorruptCheckpointError(records.source.path, describe_tensorless_pickle(pickle.root))
    if integrity.fault:
        raise CorruptCheckpointError(records.source.path, integrity.fault)
    return Checkpoint(
        records.source.path,
        Container.TORCH_ZIP,
        records.source.nbytes,
        tuple(state_tree.states),
        tuple(state_tree.entries),
        (*find_global_uses(global_names, pickle.root), *iter_hidden_uses(records)),
        metadata,
        skipped=(*integrity.skipped, *state_tree.skipped),
        load_refusal=load_refusal,
        faults=faults,
        weights_only_refusal=pickle.refusal,
        unread=(*list_unread_records(records), *pickle.list_unread()),
        opaque=tuple(state_tree.opaque),
        contents=dict(state_tree.contents) | records.collect_contents(unreferenced),
        byte_storages=select_byte_storages(pickle.persistent_references),
    )


def _describe_wrong_record(key: str, nbytes: int, member: ZipMember | None) -> str:
    """Return what is wrong with the record of a storage: there is none, or it has another size."""
    name = quote_name(key)
    if member is None:
        return f"storage {name} is missing from the archive"
    return f"storage {name} should have {nbytes} bytes but has {member.nbytes}"
