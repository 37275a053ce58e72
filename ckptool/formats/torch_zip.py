"""A file of torch.save (torch >= 1.6) -> Checkpoint: data.pkl, and storages beside it in a zip."""

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
    """Whether the file begins as a zip archive does."""
    return is_zip(source)


def read(source: Source, limits: Limits) -> Checkpoint:
    """Return what the archive holds.

    Raises:
        UnknownFormatError: it is a zip archive that torch did not write.
        CorruptCheckpointError: it contradicts itself, and nothing in it is dangerous.
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
"""Every name that the pickles so far use, filled while they are read."""


class Records:
    """The members of an archive by their names below its one folder."""

    def __init__(self, source: Source, archive: Archive, limits: Limits, label: str = "") -> None:
        self.source = source
        self.label = label
        """What tells its storages from those of other archives in one checkpoint."""
        self.archive = archive
        self.limits = limits
        self.members = [member for member in archive.members if not member.name.endswith("/")]
        self.pickles = [m for m in self.members if m.name.rpartition("/")[2] == "data.pkl"]
        shallow = min((m.name.count("/") for m in self.pickles), default=0)
        self.pickles = [m for m in self.pickles if m.name.count("/") == shallow]
        self.root = _root(self.members, self.pickles)
        self._by_name = {member.name: member for member in self.members}
        self.base = source.start if isinstance(source, Slice) else 0
        """Where the archive starts in its file: one can stand within another."""
        if len(self.pickles) > 1:
            archive.blame(f"there are {len(self.pickles)} data.pkl in it")

    def get(self, name: str) -> Member | None:
        """Return the member of this name below the folder, None if there is none."""
        return self._by_name.get(self.root + name)

    def __getitem__(self, name: str) -> Member:
        return self._by_name[self.root + name]

    def items(self) -> Iterator[tuple[str, Member]]:
        """Yield the members below the folder with their names there."""
        for name, member in self._by_name.items():
            if name.startswith(self.root):
                yield name.removeprefix(self.root), member

    def release(self) -> None:
        """Let go of what something refers to: of 100,000 records, as much as of their tensors."""
        self.members = [member for member in self.members if not member.used]
        self.archive.members = self.members
        self._by_name = {}

    def ahead(self) -> None:
        """Say that the pickle and the small records will be read."""
        small = [member for name in _RECORDS if (member := self.get(name)) is not None]
        wanted = [m for m in (*self.pickles, *small) if m.packed <= self.limits.pickle_bytes]
        self.source.ahead((m.start, m.packed) for m in wanted if m.start >= 0)

    def bytes(self, name: str, most: int) -> bytes | None:
        """Return the content of a small record, None if there is none.

        Raises:
            CorruptCheckpointError: it is too large for what it is, or its checksum is wrong.
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
        """Return a record of one short line."""
        data = self.bytes(name, _TEXT)
        return None if data is None else printable(data.decode("latin-1").strip())


def _root(members: list[Member], pickles: list[Member]) -> str:
    """Return the folder that everything lies in, with its slash."""
    if pickles:
        return pickles[0].name.removesuffix("data.pkl")
    marks = [m.name for m in members if m.name.rpartition("/")[2] == "archive_format"]
    return marks[0].removesuffix("archive_format") if marks else ""


def guarded(
    records: Records, container: Container, describe: Callable[[Names], Checkpoint]
) -> Checkpoint:
    """Return what `describe` makes of the archive; where it is broken, what is dangerous in it.

    Raises:
        CorruptCheckpointError: it is broken, and nothing in it is dangerous.
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
    """Return what data.pkl describes, after everything that is wrong with it was refused."""
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
    """Return what a member that is a pickle describes.

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
    """Give every persistent id the storage that it names.

    Raises:
        TreeError: it names none, or one of another size.
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
    """Return the small records.

    Raises:
        CorruptCheckpointError: what they say of the format makes no sense.
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
    """What there is to say of an archive besides what its pickle says."""

    skipped: tuple[Skipped, ...]
    """What of it was not looked at."""
    fault: str
    """Which record does not have its checksum; "" where none was found."""


def look_over(records: Records) -> Looked:
    """Compare the checksums, and look at what was not referred to."""
    unsummed, fault = _check_sums(records)
    return Looked((*_unread_headers(records), *unsummed, *_unreferenced(records)), fault)


def looked_over(records: Records) -> tuple[Skipped, ...]:
    """Do what `look_over` does, and say what of the archive was not looked at.

    Raises:
        CorruptCheckpointError: a record does not have its checksum.
    """
    found = look_over(records)
    if found.fault:
        raise CorruptCheckpointError(records.source.path, found.fault)
    return found.skipped


def hidden_uses(records: Records) -> Iterator[GlobalUse]:
    """Yield what is dangerous in members that are pickles although nothing refers to them."""
    for member, names in _hidden(records):
        for use in uses(dangerous(names)):
            yield replace(use, at=f"record {member.name}")


_TEXT: Final = 200
_SCANNED: Final = 1 << 20
"""Bytes of a member that are tried as a pickle, when nothing says what it is."""
_TRIED: Final = 16 << 20
"""Bytes of all of them together."""
_RECORDS: Final = (
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
)


def _other(records: Records) -> Checkpoint:
    """Read an archive without data.pkl: one of torch.export, or none of torch's."""
    from ckptool.formats import torch_export

    # One archive may hold another: that one must be a file of torch.save, so that it ends there.
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
    # With storages that nothing refers to, it is an odd checkpoint; without any, it is none.
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
        # One number for both: of 100,000 storages they take megabytes.
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
    """Compare checksums: all of them in small files, and in large ones if asked to."""
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
    """Try the members that nothing refers to as pickles; in a faulty archive, all of them."""
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
    # Text can begin like a pickle of protocol 0: only later ones say what they are.
    return scan(data, records.limits) if data[:1] == b"\x80" or data[-1:] == b"." else []
