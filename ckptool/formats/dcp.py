"""torch.distributed.checkpoint directory -> Checkpoint: reads .metadata and the chunk files."""

from collections.abc import Callable, Iterator
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import Any, Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats.dcp_chunks import check_chunks_cover
from ckptool.formats.dcp_metadata import (
    StoredItem,
    make_classifier,
    read_fields,
    read_metadata,
)
from ckptool.formats.dcp_nesting import nest_by_path
from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.files.source import ByteSource, open_source, path_exists
from ckptool.formats.limits import Limits
from ckptool.formats.pickle import states
from ckptool.formats.pickle.global_uses import damaged_with_uses, find_global_uses
from ckptool.formats.pickle.nodes import (
    PersistentReference,
    PickleTreeError,
    UnresolvedObject,
)
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.reader import ParsedPickle, parse_whole_pickle
from ckptool.formats.pickle.tensors.argument_checks import is_size_or_stride, read_dtype
from ckptool.formats.pickle.tensors.rebuild_functions import create_tensor_reader
from ckptool.formats.torch.nested_files import read_nested_file
from ckptool.formats.torch.streams import SourceSlice
from ckptool.locations import Location, RemotePath
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Container,
    GlobalUse,
    Safety,
    Skipped,
    Span,
    StorageInfo,
    TensorComponent,
    TensorInfo,
    contiguous_stride,
)


def matches(directory: Location) -> bool:
    """Whether the directory has a .metadata file."""
    return path_exists(directory / METADATA_NAME)


def read(directory: Location, limits: Limits) -> Checkpoint:
    """Describe the checkpoint. torch itself reads .metadata with an unrestricted `pickle.load`.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
        ReadError: one of its files cannot be read.
    """
    path = directory / METADATA_NAME
    with open_source(path) as source:
        if source.nbytes > limits.pickle_bytes:
            raise CorruptCheckpointError(path, f"has {source.nbytes} bytes, more than any can need")
        pickle = parse_whole_pickle(source.read(0, source.nbytes), limits)
        nbytes = source.nbytes
    metadata_uses = list(find_global_uses(pickle.globals, None, make_classifier(pickle)))
    try:
        with pause_gc():
            return _describe_directory(directory, limits, pickle, metadata_uses, nbytes)
    except ReadError as error:
        path, reason = error.path, error.reason
    except PickleTreeError as error:
        reason = str(error)
    return replace(
        damaged_with_uses(path, Container.DCP, nbytes, metadata_uses, reason), path=directory
    )


def read_object(
    directory: Location, limits: Limits, build_leaf: Callable[[TensorInfo | Span], object]
) -> object:
    """Return the nested dicts and lists that were saved, as `dcp_to_torch_save` makes them.

    `build_leaf` gets each tensor, and the byte span of each pickled object: a file of torch.save.
    The checkpoint must have been described before: it is not checked again.
    """
    with open_source(directory / METADATA_NAME) as source:
        pickle = parse_whole_pickle(source.read(0, source.nbytes), limits)
    metadata, keys, items = read_metadata(pickle)
    data_files = _DataFiles(directory, limits, items, [])
    data_files.read_all()
    spans = {
        item.key: Span(directory / item.file_name, item.offset, item.nbytes)
        for item in items
        if item.offsets is None
    }
    leaves: dict[str, object] = {}
    for key, entry in keys.items():
        node: Any = _build_leaf(key, entry, data_files, limits)
        is_tensor = type(node) is PersistentReference and type(node.target) is TensorInfo
        leaves[key] = build_leaf(node.target if is_tensor else spans[key])
    return nest_by_path(leaves, metadata.get("planner_data"))


METADATA_NAME: Final = ".metadata"


def _describe_directory(
    directory: Location,
    limits: Limits,
    pickle: ParsedPickle,
    metadata_uses: list[GlobalUse],
    nbytes: int,
) -> Checkpoint:
    metadata, keys, items = read_metadata(pickle)
    _check_items_used(items, keys)
    data_files = _DataFiles(directory, limits, items, metadata_uses)
    data_files.read_all()
    leaves = {key: _build_leaf(key, entry, data_files, limits) for key, entry in keys.items()}
    state_tree = states.describe_tree(nest_by_path(leaves, metadata.get("planner_data")), limits)
    if state_tree.is_empty and all(use.safety is not Safety.DANGEROUS for use in metadata_uses):
        raise PickleTreeError("contains no tensors")
    return Checkpoint(
        directory,
        Container.DCP,
        nbytes + data_files.nbytes,
        tuple(state_tree.states),
        tuple(state_tree.entries),
        tuple(metadata_uses),
        skipped=(*data_files.skipped, *state_tree.skipped),
        unread=(*data_files.unread, *pickle.list_unread()),
        files=tuple(directory / name for name in data_files.file_names),
        opaque=tuple(state_tree.opaque),
        contents=state_tree.contents,
    )


class _DataFiles:
    """Reads the .distcp files: chunks as tensors, pickled objects as node trees."""

    def __init__(
        self,
        directory: Location,
        limits: Limits,
        items: list[StoredItem],
        global_uses: list[GlobalUse],
    ) -> None:
        self.file_names = sorted({item.file_name for item in items})
        self.nbytes = 0
        self.skipped: list[Skipped] = []
        self.unread: list[Skipped] = []
        self.content: dict[tuple[str, tuple[int, ...] | None], tuple[StoredItem, object]] = {}
        """(key, offsets) -> node tree of the embedded torch.save file, or _UNREAD."""
        self._directory = directory
        self._limits = limits
        self._items = sorted(items, key=attrgetter("file_name", "offset"))
        self._global_uses = global_uses

    def read_all(self) -> None:
        """Read every item, opening each file once.

        Raises:
            CorruptCheckpointError: an item exceeds its file.
            ReadError: a file is missing or not a regular file.
            PickleTreeError: items overlap, or one has two locations.
        """
        remote = isinstance(self._directory, RemotePath)
        self.nbytes = sum(self._read_sizes())
        is_small = self.nbytes <= self._limits.checked_bytes and not remote
        verify_checksums = self._limits.deep or is_small
        if not verify_checksums:
            description = "are remote and" if remote else "have"
            reason = f"the files {description} {self.nbytes} bytes; --deep compares them"
            self.skipped.append(Skipped("checksums of the storages", reason))
        for name, items in groupby(self._items, key=attrgetter("file_name")):
            file_items = list(items)
            with open_source(self._directory / name) as source:
                source.prefetch(
                    byte_range for item in file_items for byte_range in _iter_end_ranges(item)
                )
                previous_end = 0
                for item in file_items:
                    if item.nbytes and item.offset < previous_end:
                        raise PickleTreeError(
                            f"{quote_name(item.key)} overlaps another key in {quote_name(name)}"
                        )
                    previous_end = item.offset + item.nbytes
                    self._add_item(source, item, verify_checksums=verify_checksums)

    def _read_sizes(self) -> list[int]:
        if isinstance(self._directory, RemotePath):
            from ckptool.formats.files.remote import map_concurrently

            return map_concurrently(self._read_size, self.file_names)
        return list(map(self._read_size, self.file_names))

    def _read_size(self, name: str) -> int:
        with open_source(self._directory / name) as source:
            return source.nbytes

    def _add_item(self, source: ByteSource, item: StoredItem, *, verify_checksums: bool) -> None:
        if item.offset + item.nbytes > source.nbytes:
            reason = f"{quote_name(item.key)} ends at byte {item.offset + item.nbytes}"
            raise CorruptCheckpointError(source.path, f"{reason} of {source.nbytes}")
        if (item.key, item.offsets) in self.content:
            raise PickleTreeError(f"{quote_name(item.key)} has two locations for one chunk")
        if not item.is_uncompressed:
            self.unread.append(Skipped(f"`{item.key}`", "its bytes are transformed (compressed)"))
            self.content[item.key, item.offsets] = (item, _UNREAD)
            return
        # torch.load would be given these bytes, with weights_only=False where they are no tensor.
        nested_file = read_nested_file(
            SourceSlice(source, item.offset, item.nbytes),
            self._limits,
            item.key,
            storage_prefix=f"{item.file_name}:{item.offset}:",
            verify_checksums=verify_checksums,
        )
        self._global_uses += nested_file.uses
        self.unread += nested_file.unread
        root = _UNREAD if nested_file.is_broken else nested_file.root
        self.content[item.key, item.offsets] = (item, root)


_UNREAD: Final = object()
_HEAD_BYTES: Final = 2 << 10
_TAIL_BYTES: Final = 2 << 10
"""Bytes torch.save writes around a tensor: pickle before it, zip directory after it."""


def _iter_end_ranges(item: StoredItem) -> Iterator[tuple[int, int]]:
    yield item.offset, min(_HEAD_BYTES, item.nbytes)
    tail_nbytes = min(_TAIL_BYTES, item.nbytes)
    yield item.offset + item.nbytes - tail_nbytes, tail_nbytes


def _build_leaf(key: object, entry: object, data_files: _DataFiles, limits: Limits) -> object:
    """Return the node of one key: a resolved tensor reference, or the pickled object."""
    if type(key) is not str:
        raise PickleTreeError("a key that is not a string")
    if type(entry) is UnresolvedObject and entry.callee_name[1] == "BytesStorageMetadata":
        if (key, None) not in data_files.content:
            raise PickleTreeError(f"{quote_name(key)} has no location")
        content = data_files.content[key, None][1]
        return PersistentReference(None) if content is _UNREAD else content
    fields = read_fields(entry, "TensorStorageMetadata")
    node = PersistentReference(None)
    node.target = _ChunkedTensor(key, fields, data_files, limits).build_tensor()
    return node


class _ChunkedTensor:
    """TensorStorageMetadata of one key and its chunks -> TensorInfo."""

    def __init__(
        self, key: str, fields: dict[Any, Any], data_files: _DataFiles, limits: Limits
    ) -> None:
        self._key = key
        self._data_files = data_files
        self._tensors = create_tensor_reader(limits)
        self._shape = self._tensors.check_shape(key, fields.get("size"))
        self._chunks = fields.get("chunks")
        properties = fields.get("properties")
        state = properties.state if type(properties) is UnresolvedObject else None
        if type(state) is not tuple or len(state) < 3:
            raise PickleTreeError(f"{quote_name(key)} has no properties")
        self._dtype = read_dtype(state[0])
        self._requires_grad = state[2] is True

    def build_tensor(self) -> TensorInfo:
        """Return the tensor: strided if one chunk is all of it, else with layout "chunked".

        Raises:
            PickleTreeError: its chunks are invalid, or do not cover it.
        """
        if not isinstance(self._chunks, list):
            raise PickleTreeError(f"{quote_name(self._key)} has no list of chunks")
        components = [self._build_component(chunk) for chunk in self._chunks]
        check_chunks_cover(self._key, self._shape, components)
        if len(components) == 1:
            return replace(components[0].tensor, requires_grad=self._requires_grad)
        return TensorInfo(
            self._key,
            self._shape,
            self._dtype,
            contiguous_stride(self._shape),
            0,
            None,
            layout="chunked",
            requires_grad=self._requires_grad,
            parts=tuple(sorted(components, key=attrgetter("offsets"))),
        )

    def _build_component(self, chunk: object) -> TensorComponent:
        fields = read_fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = fields.get("offsets"), fields.get("sizes")
        if not is_size_or_stride(offsets) or not is_size_or_stride(sizes):
            raise PickleTreeError(f"{quote_name(self._key)} has a chunk without a location")
        offsets, sizes = tuple(offsets), tuple(sizes)  # of torch.Size
        if (self._key, offsets) not in self._data_files.content:
            raise PickleTreeError(
                f"{quote_name(self._key)} has no data for its chunk at {list(offsets)}"
            )
        item, content = self._data_files.content[self._key, offsets]
        tensor = self._describe_unread_chunk(item, sizes)
        if content is not _UNREAD:
            tensor = self._tensors.require_tensor(content, self._key, 0)
        if (tensor.shape, tensor.dtype) != (sizes, self._dtype):
            actual = f"{tensor.dtype} {list(tensor.shape)}"
            expected = f"{self._dtype} {list(sizes)}"
            raise PickleTreeError(
                f"{quote_name(self._key)} has a chunk of {actual} instead of {expected}"
            )
        return TensorComponent("", offsets, tensor)

    def _describe_unread_chunk(self, item: StoredItem, sizes: tuple[int, ...]) -> TensorInfo:
        nbytes = prod(sizes) * DTYPE_BITS[self._dtype] // 8
        info = StorageInfo(f"{item.file_name}:{item.offset}", nbytes)
        return TensorInfo(self._key, sizes, self._dtype, contiguous_stride(sizes), 0, info)


def _check_items_used(items: list[StoredItem], keys: dict[Any, Any]) -> None:
    for item in items:
        if item.key not in keys:
            raise PickleTreeError(
                f"{quote_name(item.key)} has a location but is not in the list of keys"
            )
