"""torch.save file before 1.6, or bare pickle -> Checkpoint: pickles, then raw storages."""

from collections.abc import Callable, Sequence
from typing import Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats import tree
from ckptool.formats.collector import paused_collector
from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global, Persistent
from ckptool.formats.pickles import Pickle, dangerous, unpickle
from ckptool.formats.plain import quoted
from ckptool.formats.storages import StorageId, same_storage, storage_id
from ckptool.formats.streams import Slice, Stream
from ckptool.formats.tensorless import without_tensors
from ckptool.formats.tensors import Stored, TreeError
from ckptool.formats.uses import damaged, uses
from ckptool.model import Checkpoint, Container, Skipped, Span, StorageInfo


def matches(source: Source) -> bool:
    """Whether the file begins with a pickle."""
    head = source.head(_HEAD)
    if len(head) > 1 and head[0] == 0x80:
        return head[1] <= 5
    # Protocols 0 and 1 have no magic: accept what parses, or imports a valid name before failing.
    found = unpickle(head, Limits()) if head[:1] in _FIRST else Pickle(fault="no opcode")
    return not found.fault or any(_is_name(name) for name in found.globals)


def read(source: Source, limits: Limits) -> Checkpoint:
    """Describe the file.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    stream = Stream(source, limits)
    container = Container.PICKLE
    try:
        with paused_collector():
            first = stream.pickle("its first pickle")
            if first.root == MAGIC and type(first.root) is int:
                container = Container.TORCH_LEGACY
                return _legacy(stream, limits)
            return _bare(stream, first, limits)
    except CorruptCheckpointError as error:
        return damaged(source.path, container, source.nbytes, stream.names, error.reason)
    except TreeError as error:
        return damaged(source.path, container, source.nbytes, stream.names, str(error))


MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
_HEAD: Final = 1 << 16
_NUMBER: Final = 8
"""Bytes of the element count before each storage."""
_ENDS: Final = 4
"""In remote files, element counts are read of this many storages at each end."""
_FIRST: Final = frozenset(bytes([opcode]) for opcode in b"(]}cdlgIJKLMSTUVXFGN)i")


def _is_name(name: Global) -> bool:
    parts = f"{name.module}.{name.name}".split(".")
    return all(part.isidentifier() for part in parts)


def _legacy(stream: Stream, limits: Limits) -> Checkpoint:
    """Describe a legacy file whose magic number has been read."""
    source = stream.source
    held = Held(stream)
    root = held.read()
    if stream.pos != source.nbytes:
        stream.names += dangerous(stream.rest())
        left = source.nbytes - stream.pos
        raise CorruptCheckpointError(source.path, f"{left} bytes follow the last storage")
    grown = tree.describe(root.root, limits)
    if grown.empty and not dangerous(stream.names):
        raise CorruptCheckpointError(source.path, without_tensors(root.root))
    return _checkpoint(stream, Container.TORCH_LEGACY, root, grown)


class Held:
    """Reads the object and the storages of a legacy file, after its magic number."""

    def __init__(self, stream: Stream, base: int = 0) -> None:
        self._stream = stream
        self._base = base
        """Offset of the legacy file in the file that embeds it; 0 if it stands alone."""

    def read(self) -> Pickle:
        """Return the object's pickle with resolved storages; the stream is past the last storage.

        Raises:
            CorruptCheckpointError: the file is inconsistent.
            PickleTreeError: a storage id or a storage is.
        """
        stream, path = self._stream, self._stream.source.path
        protocol = stream.pickle("its protocol version").root
        if protocol != _PROTOCOL or type(protocol) is not int:
            raise CorruptCheckpointError(path, "its protocol version is not 1001")
        system = stream.pickle("its system information").root
        if not isinstance(system, dict):
            raise CorruptCheckpointError(path, "its system information is no dict")
        root = stream.pickle("its object")
        keys = stream.pickle("its list of storages").root
        if not isinstance(keys, list) or not all(type(key) is str for key in keys):
            raise CorruptCheckpointError(path, "its list of storages is no list of keys")
        self._resolve(root.persistent, keys)
        return root

    def _resolve(self, nodes: Sequence[Persistent], keys: list[str]) -> None:
        wanted = [(node, storage_id(node, fields=6)) for node in nodes if not _is_class(node)]
        first: dict[str, StorageId] = {}
        for _, storage in wanted:
            first.setdefault(storage.key, storage)
        _check_keys(first, keys)
        checked = self._checked([first[key] for key in keys])
        stored = {key: self._place(first[key], checked=key in checked) for key in keys}
        for node, storage in wanted:
            node.resolved = _view(same_storage(stored[storage.key], storage), storage)

    def _checked(self, storages: Sequence[StorageId]) -> set[str]:
        """Return the keys of the storages whose element counts are read; in remote files, a few.

        A wrong count elsewhere shifts the last ones, or the end of the file.
        """
        stream, starts = self._stream, list[int]()
        pos = stream.pos
        for storage in storages:
            starts.append(pos)
            pos += _NUMBER + storage.nbytes
        few = storages
        if stream.source.remote and not stream.limits.deep and len(storages) > 2 * _ENDS:
            few = [*storages[:_ENDS], *storages[-_ENDS:]]
            reason = (
                f"{len(storages) - len(few)} of {len(storages)} were taken from the pickle, with "
                "which the file's length agrees; --deep reads them"
            )
            stream.skipped.append(Skipped("sizes before the storages", reason))
        keys = {storage.key for storage in few}
        places = zip(storages, starts, strict=True)
        stream.source.ahead((at, _NUMBER) for storage, at in places if storage.key in keys)
        return keys

    def _place(self, wanted: StorageId, *, checked: bool) -> Stored:
        """Return the storage at the stream position: check its element count, skip its bytes."""
        stream, count = self._stream, wanted.numel
        if checked:
            count = stream.number()
        else:
            stream.skip(_NUMBER)
        if count != wanted.numel:
            name = quoted(wanted.key)
            raise TreeError(f"storage {name} has {count} elements and should have {wanted.numel}")
        start = stream.pos
        stream.skip(wanted.nbytes)
        span = Span(stream.source.path, self._base + start, wanted.nbytes)
        # torch writes and reads this format in little-endian order, whatever the machine.
        info = StorageInfo(wanted.key, wanted.nbytes, wanted.location, span)
        return Stored(info, wanted.dtype, wanted.numel)


def _check_keys(wanted: dict[str, StorageId], keys: list[str]) -> None:
    """Raise PickleTreeError unless used and listed storage keys are the same.

    torch leaves a storage that is not in the list uninitialised: it exposes process memory.
    """
    listed = set(keys)
    for key in wanted:
        if key not in listed:
            raise TreeError(f"storage {quoted(key)} is used and is not in the list of storages")
    for key in listed:
        if key not in wanted:
            raise TreeError(f"storage {quoted(key)} is in the list of storages and is not used")
    if len(listed) != len(keys):
        raise TreeError("a storage is twice in the list of storages")


def _is_class(node: Persistent) -> bool:
    """Whether the id is ("module", class, file, source): source code of a pickled module."""
    return type(node.id) is tuple and node.id[:1] == ("module",)


def _view(stored: Stored, wanted: StorageId) -> Stored:
    """Return the storage slice that the id's view names; torch before 0.4 saved slices so."""
    if wanted.view is None:
        return stored
    view = wanted.view
    if type(view) is not tuple or len(view) != 3:
        raise TreeError(f"storage {quoted(wanted.key)} has a view that is none")
    _, offset, numel = view
    if not all(type(n) is int and n >= 0 for n in (offset, numel)):
        raise TreeError(f"storage {quoted(wanted.key)} has a view that is none")
    if offset + numel > stored.numel:
        raise TreeError(f"storage {quoted(wanted.key)} has a view beyond its end")
    return Stored(stored.info, stored.dtype, numel, offset)


def _bare(stream: Stream, pickle: Pickle, limits: Limits) -> Checkpoint:
    """Describe a bare pickle, whose tensors embed whole torch.save files as byte strings."""
    source = stream.source
    if stream.pos != source.nbytes:
        left = source.nbytes - stream.pos
        stream.names += stream.rest()
        wrong = f", and {quoted(str(pickle.root))} is not torch's magic number"
        what = wrong if type(pickle.root) is int and pickle.root.bit_length() < 256 else ""
        raise CorruptCheckpointError(source.path, f"{left} bytes follow its first pickle{what}")
    if pickle.persistent:
        raise CorruptCheckpointError(
            source.path, "its pickle refers to storages that are not there"
        )
    grown = tree.describe(pickle.root, limits, _embedded(stream, pickle, limits))
    if grown.empty and not dangerous(stream.names):
        raise CorruptCheckpointError(source.path, f"a pickle that {without_tensors(pickle.root)}")
    return _checkpoint(stream, Container.PICKLE, pickle, grown)


def _embedded(stream: Stream, pickle: Pickle, limits: Limits) -> Callable[[bytes], Stored]:
    """Return a function from byte string to storage, for `torch.storage._load_from_bytes`."""
    known: dict[int, Stored] = {}

    def find(blob: bytes) -> Stored:
        if id(blob) not in known:
            start = stream.start_of(pickle, blob)
            if start < 0:
                raise TreeError("a storage within the pickle is no file of torch.save")
            known[id(blob)] = _inner(Slice(stream.source, start, len(blob)), limits, len(known))
        return known[id(blob)]

    return find


def _inner(part: Slice, limits: Limits, index: int) -> Stored:
    stream = Stream(part, limits)
    if stream.pickle("a storage within the pickle").root != MAGIC:
        raise TreeError("a storage within the pickle is no legacy file of torch.save")
    root = Held(stream, part.start).read().root
    if type(root) is not Persistent or type(root.resolved) is not Stored:
        raise TreeError("a storage within the pickle is something else")
    # Each was saved separately with an address as key: two keys can be equal.
    stored = root.resolved
    info = stored.info
    named = StorageInfo(f"{index}", info.nbytes, info.device, info.span)
    return Stored(named, stored.dtype, stored.numel)


def _checkpoint(
    stream: Stream, container: Container, pickle: Pickle, grown: tree.Tree
) -> Checkpoint:
    return Checkpoint(
        stream.source.path,
        container,
        stream.source.nbytes,
        tuple(grown.states),
        tuple(grown.entries),
        uses(stream.names, pickle.root),
        skipped=(*stream.skipped, *grown.skipped),
    )
