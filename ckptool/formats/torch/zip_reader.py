"""torch.save zip archive (torch >= 1.6) -> Checkpoint: data.pkl and one record per storage."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, UnknownFormatError
from ckptool.formats import unrecognized
from ckptool.formats.contents.collector import ContentCollector
from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import Limits
from ckptool.formats.pickle import states
from ckptool.formats.pickle.global_uses import build_damaged_checkpoint, find_global_uses
from ckptool.formats.pickle.nodes import GlobalName, PersistentReference
from ckptool.formats.pickle.plain_values import escape_unprintable, quote_name
from ckptool.formats.pickle.reader import (
    ParsedPickle,
    parse_whole_pickle,
    select_dangerous,
)
from ckptool.formats.pickle.storage_ids import (
    StorageIdReader,
    check_repeated_id,
    select_byte_storages,
)
from ckptool.formats.pickle.tensor_rebuild import PickleTreeError, SavedStorage
from ckptool.formats.torch.archive_layout import find_refusal, fold_case, fold_names
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
    ZipMembers,
    find_bad_crc,
    is_crc_valid,
    is_zip,
    read_archive,
    read_member,
)
from ckptool.model import (
    Checkpoint,
    Container,
    ContainerIssue,
    IssueKind,
    Skipped,
    Span,
    StorageInfo,
)
from ckptool.phrases import join_limited


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


class ArchiveRecords:
    """Members of a torch archive, by name relative to its root folder."""

    def __init__(
        self, source: ByteSource, archive: ZipMembers, limits: Limits, storage_prefix: str = ""
    ) -> None:
        self.source = source
        self.storage_prefix = storage_prefix
        """Prefix of storage keys, unique among the archives of one checkpoint."""
        self.archive = archive
        self.limits = limits
        self.members = [member for member in archive.members if not member.name.endswith("/")]
        names = [member.name for member in self.members]
        folded_names = fold_names(names)
        self.main_pickles = [
            member
            for member, name in zip(self.members, folded_names, strict=True)
            if name.endswith("data.pkl") and name.rpartition("/")[2] == "data.pkl"
        ]
        min_depth = min((member.name.count("/") for member in self.main_pickles), default=0)
        self.main_pickles = [
            member for member in self.main_pickles if member.name.count("/") == min_depth
        ]
        self.root_folder = _find_root_folder(self.members, self.main_pickles)
        self.members_by_name = dict(zip(names, self.members, strict=True))
        """Members by their whole names, as they are written."""
        self._by_folded_name = (
            {}
            if folded_names is names
            else {
                folded_name: member
                for folded_name, member in zip(folded_names, self.members, strict=True)
                if folded_name != member.name
            }
        )
        """Members with A to Z in their names."""
        self.base_offset = source.start if isinstance(source, SourceSlice) else 0
        """Offset of the archive in its file; not 0 if it is embedded in another file."""
        if len(self.main_pickles) > 1:
            archive.record_fault(f"it contains {len(self.main_pickles)} data.pkl files")

    def get(self, name: str) -> ZipMember | None:
        """Return the member with this name in the root folder, or None; as torch's reader does.

        Upper and lower case are one, and names that differ in nothing else are a fault.
        """
        full_name = self.root_folder + name
        member = self.members_by_name.get(full_name)
        if member is None:
            folded_name = fold_case(full_name)
            member = self.members_by_name.get(folded_name) or self._by_folded_name.get(folded_name)
        return member

    def __getitem__(self, name: str) -> ZipMember:
        return self.members_by_name[self.root_folder + name]

    def items(self) -> Iterator[tuple[str, ZipMember]]:
        """Yield (name relative to the root folder, member)."""
        for name, member in self.members_by_name.items():
            if name.startswith(self.root_folder):
                yield name.removeprefix(self.root_folder), member

    def __contains__(self, name: str) -> bool:
        return self.root_folder + name in self.members_by_name

    def has_folder(self, name: str) -> bool:
        """Whether a member is in the folder `name`, which ends in a slash."""
        prefix = self.root_folder + name
        return any(full_name.startswith(prefix) for full_name in self.members_by_name)

    def list_unreferenced(self) -> list[tuple[str, ZipMember]]:
        """Return (name relative to the root folder, member) of members nothing refers to."""
        folder = self.root_folder
        return [
            (member.name.removeprefix(folder), member)
            for member in self.members
            if not member.is_referenced and member.name.startswith(folder)
        ]

    def find_load_refusal(self, main_record: str = "data.pkl") -> str:
        """Return why torch's reader refuses the archive; "" if it opens it.

        Args:
            main_record: name of the record that the archive has to have.

        Raises:
            CorruptCheckpointError: the version record is too long, or cannot be inflated.
        """
        version = self.read_text_record(".data/version") or self.read_text_record("version")
        first_name = self.archive.first_name
        return find_refusal(self.archive.members, first_name, version or "", main_record)

    def collect_contents(self, members: Iterable[tuple[str, ZipMember]]) -> dict[str, str]:
        """Return the fingerprints of (name, record); nothing without `Limits.contents`."""
        if not self.limits.contents:
            return {}
        from ckptool.formats.contents.archive_records import add_record_contents

        collector = ContentCollector()
        add_record_contents(collector, self.source, members, self.limits)
        return collector.fingerprints

    def release_referenced(self) -> None:
        """Drop referenced members: for 100,000 records they use as much memory as their tensors."""
        self.members = [member for member in self.members if not member.is_referenced]
        self.archive.members = self.members
        self.members_by_name, self._by_folded_name = {}, {}

    def prefetch_small_records(self) -> None:
        """Prefetch data.pkl and the small records."""
        small_members = [
            member for name in _SMALL_RECORDS if (member := self.get(name)) is not None
        ]
        members = [
            member
            for member in (*self.main_pickles, *small_members)
            if member.compressed_nbytes <= self.limits.pickle_bytes
        ]
        self.source.prefetch(
            (member.data_offset, member.compressed_nbytes)
            for member in members
            if member.data_offset >= 0
        )

    def read_record(self, name: str, max_nbytes: int) -> bytes | None:
        """Return the content of a small record, or None if it does not exist.

        Raises:
            CorruptCheckpointError: it is larger than `max_nbytes`, or cannot be inflated.
        """
        member = self.get(name)
        if member is None:
            return None
        member.is_referenced = True
        if member.nbytes > max_nbytes:
            raise CorruptCheckpointError(
                self.source.path, f"{quote_name(name)} has {member.nbytes} bytes"
            )
        return read_member(self.source, member, self.limits, max_nbytes)

    def read_text_record(self, name: str) -> str | None:
        """Return a record of one short line as printable text, or None if it does not exist."""
        data = self.read_record(name, _MAX_TEXT_BYTES)
        return None if data is None else escape_unprintable(data.decode("latin-1").strip())


def _find_root_folder(members: list[ZipMember], pickles: list[ZipMember]) -> str:
    """Return the root folder of the archive with a trailing slash; "" if there is none."""
    if pickles:
        return pickles[0].name[: -len("data.pkl")]
    format_records = [
        member.name for member in members if member.name.rpartition("/")[2] == "archive_format"
    ]
    return format_records[0].removesuffix("archive_format") if format_records else ""


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
        info = StorageInfo(prefix + key, member.nbytes, storage.location, span, byteorder)
        node.target = stored_by_key[key] = SavedStorage(info, storage.dtype, storage.numel)


def read_metadata(records: ArchiveRecords) -> dict[str, str]:
    """Return the small records (version, byteorder ...) as text.

    Raises:
        CorruptCheckpointError: a version, alignment or byteorder record is invalid.
    """
    metadata = {
        name: text
        for name in _SMALL_RECORDS
        if (text := records.read_text_record(name)) is not None
    }
    path = records.source.path
    for name in (".format_version", ".storage_alignment"):
        if name in metadata and not (metadata[name].isascii() and metadata[name].isdigit()):
            raise CorruptCheckpointError(path, f"its {name} record is {quote_name(metadata[name])}")
    # torch compares the bytes, blanks included.
    if records.read_record("byteorder", _MAX_TEXT_BYTES) not in {None, b"little", b"big"}:
        raise CorruptCheckpointError(
            path, f"its byteorder record is {quote_name(metadata['byteorder'])}"
        )
    return metadata


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


_MAX_TEXT_BYTES: Final = 200
_PACKAGED_SCRIPT_LOADER: Final = "torch.jit._script.unpackage_script_module"
"""What torch.package writes for a TorchScript module; its importer alone has what it needs."""
_SMALL_RECORDS: Final = (
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
)


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
