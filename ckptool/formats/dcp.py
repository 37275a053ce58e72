"""torch.distributed.checkpoint directory -> Checkpoint: reads .metadata and the chunk files."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats import tree
from ckptool.formats.collector import paused_collector
from ckptool.formats.files import Source, exists, open_source
from ckptool.formats.globals import judge
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global, Opaque, Persistent
from ckptool.formats.pickles import Pickle, unpickle_all
from ckptool.formats.plain import quoted
from ckptool.formats.streams import Slice
from ckptool.formats.tensors import Tensors, TreeError, dtype_of, naturals
from ckptool.formats.torch_zip import Names, Records, main_pickle, metadata_of, resolve
from ckptool.formats.uses import named, uses
from ckptool.formats.zips import bad_crc, is_zip, read_archive
from ckptool.locations import Location, RemotePath
from ckptool.model import (
    BITS,
    Checkpoint,
    Container,
    GlobalUse,
    Part,
    Safety,
    Skipped,
    StorageInfo,
    TensorInfo,
)


def matches(directory: Location) -> bool:
    """Whether the directory has a .metadata file."""
    return exists(directory / METADATA)


def read(directory: Location, limits: Limits) -> Checkpoint:
    """Describe the checkpoint. torch itself reads .metadata with an unrestricted `pickle.load`.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
        ReadError: one of its files cannot be read.
    """
    path = directory / METADATA
    with open_source(path) as source:
        if source.nbytes > limits.pickle_bytes:
            raise CorruptCheckpointError(path, f"has {source.nbytes} bytes, more than any needs")
        pickle = unpickle_all(source.read(0, source.nbytes), limits)
        nbytes = source.nbytes
    found = list(uses(pickle.globals, None, _judge))
    try:
        with paused_collector():
            return _described(directory, limits, pickle, found, nbytes)
    except ReadError as error:
        path, reason = error.path, error.reason
    except TreeError as error:
        reason = str(error)
    return replace(named(path, Container.DCP, nbytes, found, reason), path=directory)


METADATA: Final = ".metadata"
_OWN: Final = frozenset(
    {
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    }
    | {
        ("torch.distributed.checkpoint.filesystem", name)
        for name in ("_StorageInfo", "_StoragePrefix")
    }
    | {("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")}
)
"""Classes of plain records that .metadata is pickled from: (module, name)."""


def _judge(name: Global) -> Safety:
    own = (name.module, name.name) in _OWN and not name.computed
    return Safety.SAFE if own else judge(name)


class _Item(Struct, frozen=True):
    """One chunk of a tensor or one pickled object, with its byte range in a file."""

    key: str
    offsets: tuple[int, ...] | None
    file: str
    offset: int
    nbytes: int
    plain: bool
    """Whether the bytes are as torch.save wrote them, without transforms (compression)."""


def _described(
    directory: Location, limits: Limits, pickle: Pickle, found: list[GlobalUse], nbytes: int
) -> Checkpoint:
    if pickle.fault:
        raise TreeError(pickle.fault)
    metadata = _fields(pickle.root, "Metadata")
    keys = _dict(metadata.get("state_dict_metadata"), "its list of keys")
    items = list(_items(_dict(metadata.get("storage_data"), "its list of places")))
    files = _Files(directory, limits, items, found)
    files.read()
    leaves = {key: _leaf(key, entry, files, limits) for key, entry in keys.items()}
    _check_used(items, keys)
    grown = tree.describe(_nested(leaves, metadata.get("planner_data")), limits)
    if grown.empty and all(use.safety is not Safety.DANGEROUS for use in found):
        raise TreeError("holds no tensors")
    return Checkpoint(
        directory,
        Container.DCP,
        nbytes + files.nbytes,
        tuple(grown.states),
        tuple(grown.entries),
        tuple(found),
        skipped=(*files.skipped, *grown.skipped),
        files=tuple(directory / name for name in files.names),
    )


def _items(places: dict[Any, Any]) -> Iterator[_Item]:
    """Yield the location of each chunk and each object.

    Raises:
        PickleTreeError: an entry of storage_data is invalid or leaves the directory.
    """
    for index, where in places.items():
        name, info = _fields(index, "MetadataIndex"), _fields(where, "_StorageInfo")
        key, file = name.get("fqn"), info.get("relative_path")
        if type(key) is not str or type(file) is not str:
            raise TreeError("a chunk without a key or a file")
        if "/" in file or "\\" in file or "\0" in file or file in {"", ".", ".."}:
            raise TreeError(f"{quoted(key)} lies in {quoted(file)}: that leaves the directory")
        at, place = name.get("offset"), (info.get("offset"), info.get("length"))
        if not naturals(place) or not (at is None or naturals(at)):
            raise TreeError(f"{quoted(key)} lies where nothing can lie")
        yield _Item(key, at, file, place[0], place[1], not info.get("transform_descriptors"))


class _Files:
    """Reads the .distcp files: chunks as tensors, pickled objects as node trees."""

    def __init__(
        self, directory: Location, limits: Limits, items: list[_Item], found: list[GlobalUse]
    ) -> None:
        self.names = sorted({item.file for item in items})
        self.nbytes = 0
        self.skipped: list[Skipped] = []
        self.content: dict[tuple[str, tuple[int, ...] | None], tuple[_Item, object]] = {}
        """(key, offsets) -> node tree of the embedded torch.save file, or _UNREAD."""
        self._directory = directory
        self._limits = limits
        self._items = sorted(items, key=attrgetter("file", "offset"))
        self._found = found

    def read(self) -> None:
        """Read every item, opening each file once.

        Raises:
            CorruptCheckpointError: an item exceeds its file.
            ReadError: a file is missing or not a regular file.
            PickleTreeError: items overlap, or one has two locations.
        """
        remote = isinstance(self._directory, RemotePath)
        self.nbytes = sum(self._sizes())
        small = self.nbytes <= self._limits.checked_bytes and not remote
        checked = self._limits.deep or small
        if not checked:
            what = "are remote and" if remote else "have"
            reason = f"the files {what} {self.nbytes} bytes; --deep compares them"
            self.skipped.append(Skipped("checksums of the storages", reason))
        for name, items in groupby(self._items, key=attrgetter("file")):
            here = list(items)
            with open_source(self._directory / name) as source:
                source.ahead(at for item in here for at in _ends(item))
                reached = 0
                for item in here:
                    if item.nbytes and item.offset < reached:
                        raise TreeError(
                            f"{quoted(item.key)} overlaps another key in {quoted(name)}"
                        )
                    reached = item.offset + item.nbytes
                    self._add(source, item, checked=checked)
        unread = [item.key for item, tree_ in self.content.values() if tree_ is _UNREAD]
        if unread:
            reason = f"{len(unread)} are compressed, or no files of torch.save"
            self.skipped.append(Skipped("content of the chunks", reason))

    def _sizes(self) -> list[int]:
        if isinstance(self._directory, RemotePath):
            from ckptool.formats.remote import together

            return together(self._size, self.names)
        return list(map(self._size, self.names))

    def _size(self, name: str) -> int:
        with open_source(self._directory / name) as source:
            return source.nbytes

    def _add(self, source: Source, item: _Item, *, checked: bool) -> None:
        if item.offset + item.nbytes > source.nbytes:
            reason = f"{quoted(item.key)} ends at byte {item.offset + item.nbytes}"
            raise CorruptCheckpointError(source.path, f"{reason} of {source.nbytes}")
        if (item.key, item.offsets) in self.content:
            raise TreeError(f"{quoted(item.key)} has two places for one chunk")
        part = Slice(source, item.offset, item.nbytes)
        plain = item.plain and is_zip(part)
        content = self._tree(part, item, checked=checked) if plain else _UNREAD
        self.content[item.key, item.offsets] = (item, content)

    def _tree(self, part: Slice, item: _Item, *, checked: bool) -> object:
        """Return the root node of a torch.save zip archive embedded in a .distcp file."""
        label = f"{item.file}:{item.offset}:"
        records = Records(part, read_archive(part, self._limits), self._limits, label)
        names: Names = []
        try:
            if not records.pickles:
                raise TreeError(f"{quoted(item.key)} is a zip archive without data.pkl")
            pickle = main_pickle(records, names)
            byteorder = metadata_of(records).get("byteorder", "little")
            resolve(pickle.persistent, records, byteorder)
            summed = (m for m in records.members if m.crc) if checked else ()
            if bad_crc(part, summed, self._limits) is not None:
                raise TreeError(f"{quoted(item.key)} does not match its checksum")
        finally:
            self._found += (replace(use, at=item.key) for use in uses(names))
        return pickle.root


_UNREAD: Final = object()
_HEAD: Final = 2 << 10
_TAIL: Final = 2 << 10
"""Bytes torch.save writes around a tensor: pickle before it, zip directory after it."""


def _ends(item: _Item) -> Iterator[tuple[int, int]]:
    yield item.offset, min(_HEAD, item.nbytes)
    tail = min(_TAIL, item.nbytes)
    yield item.offset + item.nbytes - tail, tail


def _leaf(key: object, entry: object, files: _Files, limits: Limits) -> object:
    """Return the node of one key: a resolved tensor reference, or the pickled object."""
    if type(key) is not str:
        raise TreeError("a key that is no string")
    if type(entry) is Opaque and entry.name[1] == "BytesStorageMetadata":
        if (key, None) not in files.content:
            raise TreeError(f"{quoted(key)} has no place")
        content = files.content[key, None][1]
        return Persistent(None) if content is _UNREAD else content
    fields = _fields(entry, "TensorStorageMetadata")
    node = Persistent(None)
    node.resolved = _Chunked(key, fields, files, limits).tensor()
    return node


class _Chunked:
    """TensorStorageMetadata of one key and its chunks -> TensorInfo."""

    def __init__(self, key: str, fields: dict[Any, Any], files: _Files, limits: Limits) -> None:
        self._key = key
        self._files = files
        self._tensors = Tensors(limits)
        self._size = self._tensors.shape(key, fields.get("size"))
        self._chunks = fields.get("chunks")
        properties = fields.get("properties")
        state = properties.state if type(properties) is Opaque else None
        if type(state) is not tuple or len(state) < 3:
            raise TreeError(f"{quoted(key)} has no properties")
        self._dtype = dtype_of(state[0])
        self._grad = state[2] is True

    def tensor(self) -> TensorInfo:
        """Return the tensor: strided if one chunk is all of it, else with layout "chunked"."""
        if not isinstance(self._chunks, list):
            raise TreeError(f"{quoted(self._key)} has no list of chunks")
        parts = [self._part(chunk) for chunk in self._chunks]
        _check_cover(self._key, self._size, parts)
        if len(parts) == 1:
            return replace(parts[0].tensor, requires_grad=self._grad)
        return TensorInfo(
            self._key,
            self._size,
            self._dtype,
            _contiguous(self._size),
            0,
            None,
            layout="chunked",
            requires_grad=self._grad,
            parts=tuple(sorted(parts, key=attrgetter("offsets"))),
        )

    def _part(self, chunk: object) -> Part:
        fields = _fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = fields.get("offsets"), fields.get("sizes")
        if not naturals(offsets) or not naturals(sizes):
            raise TreeError(f"{quoted(self._key)} has a chunk without a place")
        if (self._key, offsets) not in self._files.content:
            raise TreeError(f"{quoted(self._key)} has no data for its chunk at {list(offsets)}")
        item, content = self._files.content[self._key, offsets]
        tensor = self._unread(item, sizes)
        if content is not _UNREAD:
            tensor = self._tensors.need(content, self._key, 0)
        if (tensor.shape, tensor.dtype) != (sizes, self._dtype):
            has = f"{tensor.dtype} {list(tensor.shape)}"
            says = f"{self._dtype} {list(sizes)}"
            raise TreeError(f"{quoted(self._key)} has a chunk of {has} where {says} should be")
        return Part("", offsets, tensor)

    def _unread(self, item: _Item, sizes: tuple[int, ...]) -> TensorInfo:
        nbytes = prod(sizes) * BITS[self._dtype] // 8
        info = StorageInfo(f"{item.file}:{item.offset}", nbytes)
        return TensorInfo(self._key, sizes, self._dtype, _contiguous(sizes), 0, info)


def _check_cover(key: str, size: tuple[int, ...], parts: Sequence[Part]) -> None:
    """Raise PickleTreeError if chunks leave a gap, overlap, or exceed the tensor."""
    for part in parts:
        shape = part.tensor.shape
        if len(shape) != len(size) or len(part.offsets) != len(size):
            raise TreeError(f"{quoted(key)} has a chunk of another number of dimensions")
        ends = (at + n for at, n in zip(part.offsets, shape, strict=True))
        if any(end > n for end, n in zip(ends, size, strict=True)):
            raise TreeError(f"{quoted(key)} has a chunk that reaches beyond it")
    volume = sum(prod(part.tensor.shape) for part in parts)
    if volume != prod(size):
        raise TreeError(f"{quoted(key)} has {prod(size)} elements and its chunks have {volume}")
    _check_overlap(key, [part for part in parts if part.tensor.numel])


def _check_overlap(key: str, parts: list[Part]) -> None:
    """Raise PickleTreeError if two chunks overlap.

    Chunks whose sizes add up to the tensor cover it if and only if they are disjoint.
    """
    if len(parts) < 2:
        return
    rank = range(len(parts[0].offsets))
    # Sweep along the axis with the most distinct offsets: fewest chunks share a position there.
    cut = max(rank, key=lambda d: len({part.offsets[d] for part in parts}), default=0)
    parts = sorted(parts, key=lambda part: part.offsets[cut : cut + 1])
    for index, part in enumerate(parts):
        end = part.offsets[cut] + part.tensor.shape[cut] if rank else 1
        for other in parts[index + 1 :]:
            if rank and other.offsets[cut] >= end:
                break
            if _meet(part, other):
                raise TreeError(f"{quoted(key)} has chunks that overlap")


def _meet(one: Part, other: Part) -> bool:
    return all(
        a < b + m and b < a + n
        for a, n, b, m in zip(
            one.offsets, one.tensor.shape, other.offsets, other.tensor.shape, strict=True
        )
    )


def _check_used(items: list[_Item], keys: dict[Any, Any]) -> None:
    for item in items:
        if item.key not in keys:
            raise TreeError(f"{quoted(item.key)} has a place and is not in the list of keys")


class _Folder(dict[Any, Any]):
    """Container made from planner paths, distinct from dicts that were pickled."""


def _nested(leaves: dict[str, object], paths: object) -> object:
    """Rebuild the nested state_dict from planner_data, which maps each key to its path."""
    known = paths if isinstance(paths, dict) else {}
    root = _Folder()
    for key, node in leaves.items():
        path = known.get(key, (key,))
        if type(path) is not tuple or not 0 < len(path) <= _STEPS:
            raise TreeError(f"{quoted(key)} has a path that is none")
        if not all(type(step) in {str, int} for step in path):
            raise TreeError(f"{quoted(key)} has a path that is none")
        folder = root
        for step in path[:-1]:
            folder = folder.setdefault(step, _Folder())
            if type(folder) is not _Folder:
                raise TreeError(f"{quoted(key)} lies within another key")
        if folder.setdefault(path[-1], node) is not node:
            raise TreeError(f"{quoted(key)} lies where another key lies")
    return _listed(root)


_STEPS: Final = 64


def _listed(node: object) -> object:
    """Convert nested containers with keys 0..n-1 to lists, the others to dicts."""
    if type(node) is not _Folder:
        return node
    made = {step: _listed(child) for step, child in node.items()}
    steps = list(range(len(made)))
    if made and all(type(step) is int for step in made) and sorted(made) == steps:
        return [made[step] for step in steps]
    return made


def _fields(node: object, name: str) -> dict[Any, Any]:
    """Return the fields of a DCP metadata object of class `class_name`.

    Raises:
        PickleTreeError: the node is something else.
    """
    if type(node) is Opaque and node.name[1] == name and isinstance(node.state, dict):
        return node.state
    raise TreeError(f"something that is no {name} stands where one belongs")


def _dict(node: object, what: str) -> dict[Any, Any]:
    if not isinstance(node, dict):
        raise TreeError(f"{what} is missing")
    return node


def _contiguous(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(size[index + 1 :]) for index in range(len(size)))
