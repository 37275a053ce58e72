"""torch.save zip archive (torch >= 1.6) -> Checkpoint: data.pkl and one record per storage."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, UnknownFormatError
from ckptool.formats import pointers, tree
from ckptool.formats.collector import paused_collector
from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global, Persistent
from ckptool.formats.pickles import Pickle, dangerous, scan, unpickle_all
from ckptool.formats.plain import printable, quoted
from ckptool.formats.storages import StorageId, same_storage, storage_id
from ckptool.formats.streams import Slice
from ckptool.formats.tensorless import without_tensors
from ckptool.formats.tensors import Stored, TreeError
from ckptool.formats.uses import damaged, uses
from ckptool.formats.zips import (
    STORED,
    Archive,
    Member,
    bad_crc,
    check_crc,
    is_zip,
    read_archive,
    read_member,
)
from ckptool.model import Checkpoint, Container, GlobalUse, Skipped, Span, StorageInfo


def matches(source: Source) -> bool:
    """Whether the file starts with the zip magic."""
    return is_zip(source)


def read(source: Source, limits: Limits) -> Checkpoint:
    """Describe the archive.

    Raises:
        UnknownFormatError: it is a zip archive that torch did not write.
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    with paused_collector():
        return _read(Records(source, read_archive(source, limits), limits))


def _read(records: "Records") -> Checkpoint:
    if not records.pickles:
        return _other(records)
    records.ahead()
    if records.get("constants.pkl") or any(name.startswith("code/") for name, _ in records.items()):
        from ckptool.formats import torchscript

        return torchscript.read(records)
    return guarded(records, Container.TORCH_ZIP, lambda names: _described(records, names))


Names = list[Global]
"""Globals of all pickles read so far; appended to while reading."""


class Records:
    """Members of a torch archive, by name relative to its root folder."""

    def __init__(self, source: Source, archive: Archive, limits: Limits, label: str = "") -> None:
        self.source = source
        self.label = label
        """Prefix of storage keys, unique among the archives of one checkpoint."""
        self.archive = archive
        self.limits = limits
        self.members = [member for member in archive.members if not member.name.endswith("/")]
        self.pickles = [m for m in self.members if m.name.rpartition("/")[2] == "data.pkl"]
        shallow = min((m.name.count("/") for m in self.pickles), default=0)
        self.pickles = [m for m in self.pickles if m.name.count("/") == shallow]
        self.root = _root(self.members, self.pickles)
        self._by_name = {member.name: member for member in self.members}
        self.base = source.start if isinstance(source, Slice) else 0
        """Offset of the archive in its file; not 0 if it is embedded in another file."""
        if len(self.pickles) > 1:
            archive.blame(f"there are {len(self.pickles)} data.pkl in it")

    def get(self, name: str) -> Member | None:
        """Return the member with this name in the root folder, or None."""
        return self._by_name.get(self.root + name)

    def __getitem__(self, name: str) -> Member:
        return self._by_name[self.root + name]

    def items(self) -> Iterator[tuple[str, Member]]:
        """Yield (name relative to the root folder, member)."""
        for name, member in self._by_name.items():
            if name.startswith(self.root):
                yield name.removeprefix(self.root), member

    def release(self) -> None:
        """Drop referenced members: for 100,000 records they use as much memory as their tensors."""
        self.members = [member for member in self.members if not member.used]
        self.archive.members = self.members
        self._by_name = {}

    def ahead(self) -> None:
        """Prefetch data.pkl and the small records."""
        small = [member for name in _RECORDS if (member := self.get(name)) is not None]
        wanted = [m for m in (*self.pickles, *small) if m.packed <= self.limits.pickle_bytes]
        self.source.ahead((m.start, m.packed) for m in wanted if m.start >= 0)

    def bytes(self, name: str, most: int) -> bytes | None:
        """Return the content of a small record, or None if it does not exist.

        Raises:
            CorruptCheckpointError: it is larger than `max_nbytes`, or cannot be inflated.
        """
        member = self.get(name)
        if member is None:
            return None
        member.used = True
        if member.nbytes > most:
            raise CorruptCheckpointError(
                self.source.path, f"{quoted(name)} has {member.nbytes} bytes"
            )
        return read_member(self.source, member, self.limits, most)

    def text(self, name: str) -> str | None:
        """Return a record of one short line as printable text, or None if it does not exist."""
        data = self.bytes(name, _TEXT)
        return None if data is None else printable(data.decode("latin-1").strip())


def _root(members: list[Member], pickles: list[Member]) -> str:
    """Return the root folder of the archive with a trailing slash; "" if there is none."""
    if pickles:
        return pickles[0].name.removesuffix("data.pkl")
    marks = [m.name for m in members if m.name.rpartition("/")[2] == "archive_format"]
    return marks[0].removesuffix("archive_format") if marks else ""


def guarded(
    records: Records, container: Container, describe: Callable[[Names], Checkpoint]
) -> Checkpoint:
    """Return `describe(names)`; if the archive is damaged, a Checkpoint of its dangerous globals.

    Raises:
        CorruptCheckpointError: it is damaged, and holds no dangerous globals.
    """
    names: Names = []
    source = records.source
    try:
        return describe(names)
    except CorruptCheckpointError as error:
        reason = error.reason
    except TreeError as error:
        reason = str(error)
    names += [name for _, found in _hidden(records) for name in found]
    return damaged(source.path, container, source.nbytes, names, reason)


def main_pickle(records: Records, names: Names) -> Pickle:
    """Parse data.pkl.

    Raises:
        CorruptCheckpointError: the archive or the pickle is damaged.
    """
    path, main = records.source.path, records.pickles[0]
    try:
        pickle = unpickle_member(records, main)
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(path, records.archive.fault or error.reason) from error
    names += pickle.globals
    if records.archive.fault:
        raise CorruptCheckpointError(path, records.archive.fault)
    if main.crc and not check_crc(records.source, main, records.limits):
        raise CorruptCheckpointError(path, f"{quoted(main.name)} does not match its checksum")
    if pickle.fault:
        raise CorruptCheckpointError(path, f"{quoted(main.name)}: {pickle.fault}")
    return pickle


def unpickle_member(records: Records, member: Member) -> Pickle:
    """Parse a pickle member.

    Raises:
        CorruptCheckpointError: it is too large, or cannot be inflated.
    """
    member.used = True
    if member.nbytes > records.limits.pickle_bytes or member.start < 0:
        reason = f"{quoted(member.name)} has {member.nbytes} bytes, more than any pickle needs"
        raise CorruptCheckpointError(records.source.path, reason)
    data = read_member(records.source, member, records.limits, member.nbytes)
    return unpickle_all(data, records.limits)


def resolve(
    nodes: Iterable[Persistent], records: Records, byteorder: str, folder: str = "data/"
) -> None:
    """Resolve every persistent id to its storage record.

    Raises:
        PickleTreeError: the record is missing or has another size.
    """
    known: dict[str, Stored] = {}
    for node in nodes:
        wanted = storage_id(node)
        stored = known.get(wanted.key)
        if stored is None:
            node.resolved = known[wanted.key] = _stored(wanted, records, byteorder, folder)
        else:
            node.resolved = same_storage(stored, wanted)


def metadata_of(records: Records) -> dict[str, str]:
    """Return the small records (version, byteorder ...) as text.

    Raises:
        CorruptCheckpointError: a version, alignment or byteorder record is invalid.
    """
    found = {name: text for name in _RECORDS if (text := records.text(name)) is not None}
    path = records.source.path
    for name in ("version", ".format_version", ".storage_alignment"):
        if name in found and not (found[name].isascii() and found[name].isdigit()):
            raise CorruptCheckpointError(path, f"its {name} record is {quoted(found[name])}")
    if found.get("byteorder", "little") not in {"little", "big"}:
        raise CorruptCheckpointError(path, f"its byteorder record is {quoted(found['byteorder'])}")
    return found


class Looked(Struct, frozen=True):
    """Result of the checksum and record checks of an archive."""

    skipped: tuple[Skipped, ...]
    """Checks that were omitted."""
    fault: str
    """First record with a wrong checksum, as a message; "" if there is none."""


def look_over(records: Records) -> Looked:
    """Compare checksums and list unreferenced records, without raising."""
    unsummed, fault = _check_sums(records)
    return Looked((*_unread_headers(records), *unsummed, *_unreferenced(records)), fault)


def looked_over(records: Records) -> tuple[Skipped, ...]:
    """Raise on a wrong checksum; else return the checks that `assess_integrity` omitted.

    Raises:
        CorruptCheckpointError: a record does not match its checksum.
    """
    found = look_over(records)
    if found.fault:
        raise CorruptCheckpointError(records.source.path, found.fault)
    return found.skipped


def hidden_uses(records: Records) -> Iterator[GlobalUse]:
    """Yield the dangerous globals of unreferenced members that are pickles."""
    for member, names in _hidden(records):
        for use in uses(dangerous(names)):
            yield replace(use, at=f"record {member.name}")


_TEXT: Final = 200
_SCANNED: Final = 1 << 20
"""Bytes of an unreferenced member that are scanned as a pickle."""
_TRIED: Final = 16 << 20
"""Bytes scanned of all unreferenced members in total."""
_RECORDS: Final = (
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
)


def _other(records: Records) -> Checkpoint:
    """Describe an archive without data.pkl: torch.export's, or raise for foreign ones."""
    from ckptool.formats import torch_export

    # An embedded archive must be of torch.save: this bounds the recursion.
    if torch_export.claims(records) and not isinstance(records.source, Slice):
        return torch_export.read(records)
    reason = pointers.archive(name for name, _ in records.items())

    def refuse(_names: Names) -> Checkpoint:
        raise CorruptCheckpointError(records.source.path, records.archive.fault or reason)

    try:
        return guarded(records, Container.TORCH_ZIP, refuse)
    except CorruptCheckpointError as error:
        if records.archive.fault or isinstance(records.source, Slice):
            raise
        raise UnknownFormatError(error.path, error.reason) from None


def _described(records: Records, names: Names) -> Checkpoint:
    pickle = main_pickle(records, names)
    metadata = metadata_of(records)
    resolve(pickle.persistent, records, metadata.get("byteorder", "little"))
    # With unreferenced storages it is an unusual checkpoint; without storages it is none.
    stored = any(name.startswith("data/") for name, _ in records.items())
    looked = look_over(records)
    records.release()
    grown = tree.describe(pickle.root, records.limits)
    if grown.empty and not stored and not dangerous(names):
        raise CorruptCheckpointError(records.source.path, without_tensors(pickle.root))
    if looked.fault:
        raise CorruptCheckpointError(records.source.path, looked.fault)
    return Checkpoint(
        records.source.path,
        Container.TORCH_ZIP,
        records.source.nbytes,
        tuple(grown.states),
        tuple(grown.entries),
        (*uses(names, pickle.root), *hidden_uses(records)),
        metadata,
        skipped=(*looked.skipped, *grown.skipped),
    )


def _stored(wanted: StorageId, records: Records, byteorder: str, folder: str) -> Stored:
    member = records.get(folder + wanted.key)
    if member is None:
        raise TreeError(f"storage {quoted(wanted.key)} is missing from the archive")
    if member.nbytes != wanted.nbytes:
        name, has = quoted(wanted.key), member.nbytes
        raise TreeError(f"storage {name} should have {wanted.nbytes} bytes and has {has}")
    member.used = True
    span = None
    if member.method == STORED:
        # Share the int object: for 100,000 storages separate ones take megabytes.
        start = records.base + member.start if records.base else member.start
        span = Span(records.source.path, start, member.nbytes)
    key = records.label + (wanted.key if folder == "data/" else folder + wanted.key)
    info = StorageInfo(key, member.nbytes, wanted.location, span, byteorder)
    return Stored(info, wanted.dtype, wanted.numel)


def _unread_headers(records: Records) -> list[Skipped]:
    count = records.archive.assumed
    if not count:
        return []
    reason = (
        f"{count} lie far apart; the archive's directory tells where they end; --deep reads them"
    )
    return [Skipped("headers before the records", reason)]


def _check_sums(records: Records) -> tuple[list[Skipped], str]:
    """Compare all checksums in small local files, or with `limits.deep`.

    Returns the omitted checks and the first mismatch as a message ("" if there is none).
    """
    source, limits = records.source, records.limits
    if not limits.deep and (source.remote or source.nbytes > limits.checked_bytes):
        reason = f"the file has {source.nbytes} bytes; --deep compares them"
        if source.remote:
            reason = f"the file is remote; --deep downloads {source.nbytes} bytes to compare them"
        return [Skipped("checksums of the storages", reason)], ""
    filled = [member for member in records.members if member.nbytes]
    bad = bad_crc(source, (member for member in filled if member.crc), limits)
    if bad is not None:
        return [], f"{quoted(bad.name)} does not match its checksum: its bytes have changed"
    without = sum(not member.crc for member in filled)
    if not without:
        return [], ""
    reason = f"{without} of {len(filled)} records were written without one"
    return [Skipped("checksums", reason)], ""


def _unreferenced(records: Records) -> list[Skipped]:
    left = [m.name.removeprefix(records.root) for m in records.members if not m.used]
    if not left:
        return []
    names = ", ".join(printable(name) for name in left[:4]) + (", ..." if len(left) > 4 else "")
    return [Skipped("records", f"nothing refers to {names}")]


def _hidden(records: Records) -> Iterator[tuple[Member, list[Global]]]:
    """Scan unreferenced members as pickles; in a damaged archive, all members."""
    tried: set[int] = set()
    left = _TRIED
    faulty = bool(records.archive.fault)
    for member in records.members:
        known = member.used and not faulty
        if known or member.start < 0 or member.start in tried or left <= 0:
            continue
        tried.add(member.start)
        left -= min(member.nbytes, _SCANNED)
        yield member, _tried(records, member)


def _tried(records: Records, member: Member) -> list[Global]:
    try:
        data = read_member(records.source, member, records.limits, _SCANNED)
    except CorruptCheckpointError:
        return []
    # Text can look like a pickle of protocol 0; later protocols have a magic byte.
    return scan(data, records.limits) if data[:1] == b"\x80" or data[-1:] == b"." else []
