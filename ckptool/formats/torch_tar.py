"""tar checkpoint of torch before 0.1.10 -> Checkpoint: storages, tensors, then a pickle."""

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from ckptool.errors import CorruptCheckpointError
from ckptool.formats import tree
from ckptool.formats.collector import paused_collector
from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global
from ckptool.formats.pickles import dangerous, unpickle_all
from ckptool.formats.plain import quoted
from ckptool.formats.storages import storage_dtype
from ckptool.formats.streams import Stream
from ckptool.formats.tensors import Stored, Tensors, TreeError
from ckptool.formats.uses import damaged, uses
from ckptool.model import BITS, Checkpoint, Container, Span, StorageInfo, TensorInfo


def matches(source: Source) -> bool:
    """Whether the file begins with a tar header."""
    return source.head(_BLOCK)[257:262] == b"ustar"


def read(source: Source, limits: Limits) -> Checkpoint:
    """Describe the archive.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    names: list[Global] = []
    members: list[_Member] = []
    try:
        with paused_collector():
            members.extend(_members(source))
            return _Reader(source, limits, members, names).read()
    except CorruptCheckpointError as error:
        reason = error.reason
    except TreeError as error:
        reason = str(error)
    names += _scanned(source, members, limits)
    return damaged(source.path, Container.TORCH_TAR, source.nbytes, names, reason)


_BLOCK: Final = 512
_MEMBERS: Final = 64
_NEEDED: Final = ("storages", "tensors", "pickle")
_TIMES: Final = re.compile(rb"(?:\d+ (?:mtime|atime|ctime)=[\d.]+\n)*")
"""Allowed records of an extended header: times only, none that renames a member."""


class _Member(Struct, frozen=True):
    name: str
    start: int
    nbytes: int


def _members(source: Source) -> Iterator[_Member]:
    """Yield the members.

    Raises:
        CorruptCheckpointError: a member is not a regular file, or there are too many.
    """
    pos = 0
    for _ in range(_MEMBERS):
        header = source.read(pos, _BLOCK)
        pos += _BLOCK
        if header == bytes(_BLOCK):
            _check_end(source, pos)
            return
        name, nbytes, kind = _header(source, header)
        if kind in {b"0", b"\0"}:
            yield _Member(name, pos, nbytes)
        elif kind != b"x" or not _TIMES.fullmatch(source.read(pos, min(nbytes, _BLOCK))):
            raise CorruptCheckpointError(source.path, f"{quoted(name)} is no plain file")
        pos += (nbytes + _BLOCK - 1) // _BLOCK * _BLOCK
    raise CorruptCheckpointError(source.path, f"a tar archive of more than {_MEMBERS} members")


def _header(source: Source, header: bytes) -> tuple[str, int, bytes]:
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    stored, nbytes = _octal(header[148:156]), _octal(header[124:136])
    if stored != checksum or nbytes is None or header[257:262] != b"ustar":
        raise CorruptCheckpointError(source.path, "a tar header that is none")
    name = header[:100].partition(b"\0")[0].decode("latin-1")
    if header[345:500].strip(b"\0"):
        raise CorruptCheckpointError(source.path, f"{quoted(name)} lies in a folder")
    return name, nbytes, header[156:157]


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def _check_end(source: Source, pos: int) -> None:
    left = source.nbytes - pos
    if left > 1 << 20 or source.read(pos, left).strip(b"\0"):
        raise CorruptCheckpointError(source.path, f"{left} bytes follow the end of the tar archive")


class _Reader:
    """Reads the members storages, tensors and pickle; each refers to the previous one."""

    def __init__(
        self, source: Source, limits: Limits, members: list[_Member], names: list[Global]
    ) -> None:
        self._source = source
        self._limits = limits
        self._members = {member.name: member for member in members}
        self._names = names
        self._objects: dict[int, Stored | TensorInfo] = {}
        """Storages and tensors by the number that refers to them in the pickles."""
        for name in self._members:
            if "/" in name or name in {"", ".", ".."}:
                raise self._wrong(f"a member is named {quoted(name)}: it leaves the archive")
        if len(self._members) != len(members):
            raise self._wrong("a member stands twice in it")
        for name in _NEEDED:
            if name not in self._members:
                raise self._wrong(f"a tar archive without {quoted(name)}: torch did not write it")

    def read(self) -> Checkpoint:
        self._read_storages(self._stream("storages"))
        self._read_tensors(self._stream("tensors"))
        main = self._members["pickle"]
        if main.nbytes > self._limits.pickle_bytes:
            raise self._wrong(f"'pickle' has {main.nbytes} bytes, more than any pickle needs")
        pickle = unpickle_all(self._source.read(main.start, main.nbytes), self._limits)
        self._names += pickle.globals
        if pickle.fault:
            raise self._wrong(f"'pickle': {pickle.fault}")
        for node in pickle.persistent:
            node.resolved = self._object(node.id)
        return self._described(pickle.root)

    def _described(self, root: object) -> Checkpoint:
        grown = tree.describe(root, self._limits)
        others = [m for name, m in self._members.items() if name not in _NEEDED]
        self._names += dangerous(_scanned(self._source, others, self._limits))
        if grown.empty and not dangerous(self._names):
            raise self._wrong("holds no tensors")
        return Checkpoint(
            self._source.path,
            Container.TORCH_TAR,
            self._source.nbytes,
            tuple(grown.states),
            tuple(grown.entries),
            uses(self._names, root),
            skipped=tuple(grown.skipped),
        )

    def _read_storages(self, stream: Stream) -> None:
        """Read the count, then for each storage: pickled (key, location, class), numel, bytes."""
        for _ in range(self._count(stream)):
            key, location, cls = self._triple(stream)
            dtype = storage_dtype(cls, str(key))
            count = stream.number()
            start, nbytes = stream.pos, count * BITS[dtype] // 8
            stream.skip(nbytes)
            device = location if type(location) is str and location.isascii() else "cpu"
            span = Span(self._source.path, start, nbytes)
            self._add(key, Stored(StorageInfo(str(key), nbytes, device, span), dtype, count))
        views = self._pickle(stream)
        if not isinstance(views, list):
            raise self._wrong("its list of views is no list")
        for view in views:
            self._add_view(view)
        self._finish(stream)

    def _add_view(self, view: Any) -> None:
        if type(view) is not tuple or len(view) != 4 or not all(type(n) is int for n in view):
            raise self._wrong("a view of a storage that is none")
        key, root, offset, numel = view
        stored = self._objects.get(root)
        if type(stored) is not Stored or min(offset, numel) < 0 or offset + numel > stored.numel:
            raise self._wrong("a view of a storage that reaches beyond it")
        self._add(key, Stored(stored.info, stored.dtype, numel, stored.start + offset))

    def _read_tensors(self, stream: Stream) -> None:
        """Read the count, then for each tensor: pickled (key, storage, class), sizes, strides."""
        tensors = Tensors(self._limits)
        for _ in range(self._count(stream)):
            key, storage, _ = self._triple(stream)
            stored = self._objects.get(storage) if type(storage) is int else None
            if type(stored) is not Stored:
                raise self._wrong("a tensor without its storage")
            rank = int.from_bytes(stream.raw(8)[:4], "little", signed=True)
            if not 0 <= rank <= self._limits.rank:
                raise self._wrong(f"a tensor of {rank} dimensions")
            size = tuple(stream.number() for _ in range(rank))
            stride = tuple(stream.number() for _ in range(rank))
            view = (stream.number(), size, stride)
            self._add(key, tensors.strided(str(key), stored, stored.dtype, view))
        self._finish(stream)

    def _stream(self, name: str) -> Stream:
        member = self._members[name]
        if member.start + member.nbytes > self._source.nbytes:
            raise self._wrong(f"{quoted(name)} is cut short")
        return Stream(self._source, self._limits, member.start, member.start + member.nbytes)

    def _pickle(self, stream: Stream) -> object:
        try:
            return stream.pickle("a record").root
        finally:
            self._names += stream.names
            stream.names = []

    def _count(self, stream: Stream) -> int:
        count = self._pickle(stream)
        if type(count) is not int or not 0 <= count <= stream.end - stream.pos:
            raise self._wrong("a number of records that cannot be")
        return count

    def _triple(self, stream: Stream) -> tuple[Any, Any, Any]:
        record = self._pickle(stream)
        if type(record) is not tuple or len(record) != 3:
            raise self._wrong("a record that is no triple")
        return record

    def _add(self, key: object, value: Stored | TensorInfo) -> None:
        if type(key) is not int or key in self._objects:
            raise self._wrong("two records of one number, or a record without a number")
        self._objects[key] = value

    def _object(self, id_: object) -> Stored | TensorInfo | None:
        """Return the storage or tensor of a persistent id; None for a tuple (it names a class)."""
        if type(id_) is tuple:
            return None
        number = int(id_) if type(id_) is str and id_.isdecimal() and len(id_) < 20 else id_
        if type(number) is not int or number not in self._objects:
            raise self._wrong("the pickle refers to a tensor that is not there")
        return self._objects[number]

    def _finish(self, stream: Stream) -> None:
        if stream.pos != stream.end:
            raise self._wrong(f"{stream.end - stream.pos} bytes follow the last record")

    def _wrong(self, reason: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(self._source.path, reason)


def _scanned(source: Source, members: list[_Member], limits: Limits) -> list[Global]:
    """Return the globals of pickles at the start of each member."""
    found: list[Global] = []
    for member in members:
        end = min(member.start + member.nbytes, source.nbytes)
        if member.start < end:
            found += Stream(source, limits, member.start, end).rest()
    return found
