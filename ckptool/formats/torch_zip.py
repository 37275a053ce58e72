"""A file of torch.save (torch >= 1.6) -> Checkpoint: data.pkl, and storages beside it in a zip."""

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, UnknownFormatError
from ckptool.formats import tree
from ckptool.formats.collector import paused_collector
from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global, Persistent
from ckptool.formats.pickles import Pickle, dangerous, scan, unpickle_all
from ckptool.formats.plain import printable, quoted
from ckptool.formats.storages import StorageId, same_storage, storage_id
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
        return _read(source, Records(source, read_archive(source, limits), limits), limits)


def _read(source: Source, records: "Records", limits: Limits) -> Checkpoint:
    if not records.pickles:
        return _other(source, records, limits)
    if "constants.pkl" in records.by_name or any(n.startswith("code/") for n in records.by_name):
        from ckptool.formats import torchscript

        return torchscript.read_records(source, records, limits)
    return describe_records(source, records, limits, Container.TORCH_ZIP)


class Records:
    """The members of an archive by their names below its one folder."""

    def __init__(self, source: Source, archive: Archive, limits: Limits) -> None:
        self.source = source
        self.archive = archive
        self.limits = limits
        self.members = [member for member in archive.members if not member.name.endswith("/")]
        self.pickles = [m for m in self.members if m.name.rpartition("/")[2] == "data.pkl"]
        shallow = min((m.name.count("/") for m in self.pickles), default=0)
        self.pickles = [m for m in self.pickles if m.name.count("/") == shallow]
        self.root = self.pickles[0].name.removesuffix("data.pkl") if self.pickles else ""
        self.by_name = {
            member.name.removeprefix(self.root): member
            for member in self.members
            if member.name.startswith(self.root)
        }
        self.used: set[str] = set()
        """Names of the members that something refers to."""
        if len(self.pickles) > 1:
            archive.blame(f"there are {len(self.pickles)} data.pkl in it")

    def bytes(self, name: str, most: int) -> bytes | None:
        """Return the content of a small record, None if there is none.

        Raises:
            CorruptCheckpointError: it is too large for what it is, or its checksum is wrong.
        """
        member = self.by_name.get(name)
        if member is None:
            return None
        self.used.add(member.name)
        if member.nbytes > most:
            raise CorruptCheckpointError(
                self.source.path, f"{quoted(name)} has {member.nbytes} bytes"
            )
        return read_member(self.source, member, self.limits, most)

    def text(self, name: str) -> str | None:
        """Return a record of one short line."""
        data = self.bytes(name, _TEXT)
        return None if data is None else printable(data.decode("latin-1").strip())


def describe_records(
    source: Source, records: Records, limits: Limits, container: Container
) -> Checkpoint:
    """Return the checkpoint that data.pkl and its storages are."""
    names: list[Global] = []
    try:
        return _described(source, records, limits, container, names)
    except CorruptCheckpointError as error:
        found = [*names, *_all_names(records, limits)]
        return damaged(source.path, container, source.nbytes, found, error.reason)
    except TreeError as error:
        found = [*names, *_all_names(records, limits)]
        return damaged(source.path, container, source.nbytes, found, str(error))


_TEXT: Final = 200
_SCANNED: Final = 1 << 20
"""Bytes of a member that are tried as a pickle, when nothing says what it is."""
_TRIED: Final = 2_000
"""Members that are tried."""
_RECORDS: Final = ("version", "byteorder", ".format_version", ".storage_alignment")
_ID: Final = ".data/serialization_id"


def _other(source: Source, records: Records, limits: Limits) -> Checkpoint:
    """An archive without data.pkl: one of torch.export, or none of torch's."""
    from ckptool.formats import torch_export

    if torch_export.claims(records):
        return torch_export.read_records(source, records, limits)
    reason = "a zip archive without data.pkl: torch.save did not write it"
    if records.archive.fault:
        reason = records.archive.fault
    found = dangerous(_all_names(records, limits))
    if found or records.archive.fault:
        return damaged(source.path, Container.TORCH_ZIP, source.nbytes, found, reason)
    raise UnknownFormatError(source.path, reason)


def _described(
    source: Source, records: Records, limits: Limits, container: Container, names: list[Global]
) -> Checkpoint:
    path, main = source.path, records.pickles[0]
    records.used.add(main.name)
    pickle = unpickle_member(records, main, limits)
    names += pickle.globals
    if records.archive.fault:
        raise CorruptCheckpointError(path, records.archive.fault)
    metadata = _metadata(records)
    if main.crc and not check_crc(source, main, limits):
        raise CorruptCheckpointError(path, f"{quoted(main.name)} does not match its checksum")
    if pickle.fault:
        raise CorruptCheckpointError(path, f"{quoted(main.name)}: {pickle.fault}")
    resolve(pickle.persistent, records, metadata.get("byteorder", "little"))
    grown = tree.describe(pickle.root, limits)
    return Checkpoint(
        path,
        container,
        source.nbytes,
        tuple(grown.states),
        tuple(grown.entries),
        (*uses(names, pickle.root), *_hidden_uses(records, limits)),
        metadata,
        skipped=(*check_sums(records, limits), *_unreferenced(records), *grown.skipped),
    )


def unpickle_member(records: Records, member: Member, limits: Limits) -> Pickle:
    """Return what a member that is a pickle describes.

    Raises:
        CorruptCheckpointError: it is too large, or cannot be inflated.
    """
    if member.nbytes > limits.pickle_bytes or member.start < 0:
        reason = f"{quoted(member.name)} has {member.nbytes} bytes"
        raise CorruptCheckpointError(records.source.path, f"{reason}, more than any pickle needs")
    data = read_member(records.source, member, limits, limits.pickle_bytes)
    return unpickle_all(data, limits)


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
            stored = known[wanted.key] = _stored(wanted, records, byteorder, folder)
        node.resolved = same_storage(stored, wanted)


def _stored(wanted: StorageId, records: Records, byteorder: str, folder: str) -> Stored:
    member = records.by_name.get(folder + wanted.key)
    if member is None:
        raise TreeError(f"storage {quoted(wanted.key)} is missing from the archive")
    if member.nbytes != wanted.nbytes:
        name, has = quoted(wanted.key), member.nbytes
        raise TreeError(f"storage {name} should have {wanted.nbytes} bytes and has {has}")
    records.used.add(member.name)
    span = None
    if member.method == STORED:
        span = Span(records.source.path, member.start, member.nbytes)
    info = StorageInfo(wanted.key, member.nbytes, wanted.location, span, byteorder)
    return Stored(info, wanted.dtype, wanted.numel)


def _metadata(records: Records) -> dict[str, str]:
    """Return the small records; what they say of the format must make sense."""
    found = {name: text for name in (*_RECORDS, _ID) if (text := records.text(name)) is not None}
    path = records.source.path
    for name in ("version", ".format_version", ".storage_alignment"):
        if name in found and not (found[name].isascii() and found[name].isdigit()):
            raise CorruptCheckpointError(path, f"its {name} record is {quoted(found[name])}")
    if found.get("byteorder", "little") not in {"little", "big"}:
        raise CorruptCheckpointError(path, f"its byteorder record is {quoted(found['byteorder'])}")
    return found


def check_sums(records: Records, limits: Limits) -> list[Skipped]:
    """Compare checksums: all of them in small files, and in large ones if asked to.

    Raises:
        CorruptCheckpointError: a record does not have its checksum.
    """
    source, skipped = records.source, []
    filled = [member for member in records.members if member.nbytes]
    if source.nbytes > limits.checked_bytes and not limits.deep:
        reason = f"the file has {source.nbytes} bytes; --deep compares them"
        return [Skipped("checksums of the storages", reason)]
    bad = bad_crc(source, (member for member in filled if member.crc), limits)
    if bad is not None:
        reason = f"{quoted(bad.name)} does not match its checksum: its bytes have changed"
        raise CorruptCheckpointError(source.path, reason)
    without = sum(not member.crc for member in filled)
    if without:
        reason = f"{without} of {len(filled)} records were written without one"
        skipped.append(Skipped("checksums", reason))
    return skipped


def _unreferenced(records: Records) -> list[Skipped]:
    left = [
        m.name.removeprefix(records.root) for m in records.members if m.name not in records.used
    ]
    if not left:
        return []
    names = ", ".join(printable(name) for name in left[:4]) + (", ..." if len(left) > 4 else "")
    return [Skipped("records", f"nothing refers to {names}")]


def _hidden_uses(records: Records, limits: Limits) -> Iterator[GlobalUse]:
    """Yield what is dangerous in members that are pickles although nothing refers to them."""
    for member, names in _hidden(records, limits):
        for use in uses(dangerous(names)):
            yield replace(use, at=f"record {member.name}")


def _hidden(records: Records, limits: Limits) -> Iterator[tuple[Member, list[Global]]]:
    """Try the members that nothing refers to as pickles; in a faulty archive, all of them."""
    tried: set[int] = set()
    known = set() if records.archive.fault else records.used
    for member in records.members:
        if member.name in known or member.start < 0 or member.start in tried:
            continue
        if len(tried) > _TRIED:
            return
        tried.add(member.start)
        yield member, _tried(records, member, limits)


def _tried(records: Records, member: Member, limits: Limits) -> list[Global]:
    try:
        data = read_member(records.source, member, limits, _SCANNED)
    except CorruptCheckpointError:
        return []
    # Text can begin like a pickle of protocol 0: only later ones say what they are.
    return scan(data, limits) if data[:1] == b"\x80" or data[-1:] == b"." else []


def _all_names(records: Records, limits: Limits) -> list[Global]:
    return [name for _, names in _hidden(records, limits) for name in names]
