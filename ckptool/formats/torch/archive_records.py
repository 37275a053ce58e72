"""Members of a zip archive of torch -> its records by name, as torch's reader finds them."""

from collections.abc import Iterable, Iterator
from typing import Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.contents.collector import ContentCollector
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.plain_values import escape_unprintable, quote_name
from ckptool.formats.torch.archive_layout import find_refusal, fold_case, fold_names
from ckptool.formats.torch.streams import SourceSlice
from ckptool.formats.zip.archive import ZipMember, ZipMembers, read_member
from ckptool.model import Content


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
        if archive.has_plain_names:
            self.members, names = archive.members, archive.names
            folded_names = names
        else:
            self.members = [member for member in archive.members if not member.name.endswith("/")]
            names = [member.name for member in self.members]
            folded_names = fold_names(names)
        self._joined_names = "\n".join(names)
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
        return self.may_have(prefix) and any(
            full_name.startswith(prefix) for full_name in self.members_by_name
        )

    def may_have(self, text: str) -> bool:
        """Whether `text` is in a name, or in two that follow each other: a fast search in all."""
        return text in self._joined_names

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
        return find_refusal(self.archive, version or "", main_record)

    def collect_contents(self, members: Iterable[tuple[str, ZipMember]]) -> dict[str, Content]:
        """Return the fingerprints of (name, record); nothing without `Limits.contents`."""
        if not self.limits.contents:
            return {}
        from ckptool.formats.contents.archive_records import add_record_contents

        collector = ContentCollector()
        add_record_contents(collector, self.source, members, self.limits)
        return collector.contents

    def release_referenced(self) -> None:
        """Drop referenced members: for 100,000 records they use as much memory as their tensors."""
        self.members = [member for member in self.members if not member.is_referenced]
        self.archive.members, self.archive.names = self.members, []
        self.members_by_name, self._by_folded_name, self._joined_names = {}, {}, ""

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


_MAX_TEXT_BYTES: Final = 200


_SMALL_RECORDS: Final = (
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
)
