"""Source of a draft -> SourcePickle: the object that was saved, as a graph to be pickled again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ckptool.errors import PlanError
from ckptool.formats import dcp
from ckptool.formats.files.source import open_source
from ckptool.formats.files.writer import Blob
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.graph import SetMembers, read_graph
from ckptool.formats.pickle.nodes import PersistentReference, PickleError, UnresolvedObject
from ckptool.formats.torch import tar
from ckptool.formats.torch.archive_records import ArchiveRecords, read_metadata
from ckptool.formats.torch.legacy import LegacyReader, read_embedded_storage
from ckptool.formats.torch.streams import PickleStream, SourceSlice
from ckptool.formats.zip.archive import STORED, iter_member_chunks, read_archive, read_member
from ckptool.locations import Location
from ckptool.migration.plan.draft import PlannedTensor
from ckptool.model import DTYPE_BITS, Checkpoint, Container, Span, TensorInfo

_LOAD_FROM_BYTES: Final = ("torch.storage", "_load_from_bytes")
_NODE_TYPES: Final = frozenset({dict, list, tuple, SetMembers, UnresolvedObject})

TensorNodeBuilder = Callable[[PlannedTensor], object]
"""Returns the pickle node of a tensor."""


@dataclass(frozen=True, slots=True)
class SourcePickle:
    """The saved object of a source, and the storages that it refers to."""

    root: Any = None
    """None where the object is not written again: the result is a state_dict alone."""
    protocol: int = 2
    storages: dict[str, Blob] = field(default_factory=dict)
    substitutes: dict[int, object] = field(default_factory=dict)
    """id of a node -> the node to write in its place."""
    replaced_nodes: tuple[object, ...] = ()
    """The nodes of `substitutes`: an id is unique only as long as its object lives."""


def read_source_pickle(
    checkpoint: Checkpoint, limits: Limits, build_tensor: TensorNodeBuilder
) -> SourcePickle:
    """Return the object of a torch.save file of any age, a pickle or a DCP folder; else none.

    `build_tensor` makes the nodes of tensors that no pickle has: those of a DCP folder or a tar.

    Raises:
        PlanError: its pickle cannot be written again without loss.
    """
    try:
        if checkpoint.container is Container.TORCH_ZIP:
            with open_source(checkpoint.path) as source:
                return _read_archive_object(SourceSlice(source, 0, source.nbytes), limits)
        if checkpoint.container is Container.TORCH_LEGACY:
            return _read_legacy_object(checkpoint.path, limits)
        if checkpoint.container is Container.PICKLE:
            return _read_bare_object(checkpoint.path, limits)
        if checkpoint.container is Container.TORCH_TAR:
            return _read_tar_object(checkpoint.path, limits, build_tensor)
        if checkpoint.container is Container.DCP:
            return _read_dcp_object(checkpoint.path, limits, build_tensor)
    except PickleError as error:
        raise PlanError(f"{checkpoint.path}: its pickle cannot be rewritten: {error}") from error
    return SourcePickle()


def _read_archive_object(
    file_slice: SourceSlice, limits: Limits, key_prefix: str = ""
) -> SourcePickle:
    """Return the object of a torch.save archive; `key_prefix` is put before its storages' keys."""
    records = ArchiveRecords(file_slice, read_archive(file_slice, limits), limits)
    if read_metadata(records).get("byteorder") == "big":
        raise PlanError(
            f"{file_slice.path}: is big-endian: write safetensors, then convert that to .pth"
        )
    data = read_member(file_slice, records.main_pickles[0], limits, limits.pickle_bytes)
    graph = read_graph(data, limits)
    if key_prefix:
        for node in graph.persistent_references:
            kind, storage_class, key, *fields = node.persistent_id
            node.persistent_id = (kind, storage_class, key_prefix + key, *fields)
    storages = {}
    for name, member in records.items():
        if name.startswith("data/"):
            offset = file_slice.start + member.data_offset
            is_stored = member.method == STORED
            span = Span(file_slice.path, offset, member.nbytes) if is_stored else None
            inflate = None if is_stored else _make_inflater(file_slice, name, limits)
            storages[key_prefix + name[5:]] = Blob(member.nbytes, span, inflate, member.crc or None)
    return SourcePickle(graph.root, graph.protocol, storages)


def _make_inflater(
    file_slice: SourceSlice, name: str, limits: Limits
) -> Callable[[], Iterator[bytes]]:
    path, start, nbytes = file_slice.path, file_slice.start, file_slice.nbytes

    def iter_inflated() -> Iterator[bytes]:
        with open_source(path) as source:
            reopened = SourceSlice(source, start, nbytes)
            records = ArchiveRecords(reopened, read_archive(reopened, limits), limits)
            yield from iter_member_chunks(reopened, records[name], limits)

    return iter_inflated


def _read_legacy_object(path: Location, limits: Limits) -> SourcePickle:
    """Return the object of a file from before torch 1.6, its references as today's files have them.

    A reference of today has no view of a storage, and no source code of a module's class.
    """
    with open_source(path) as source:
        stream = PickleStream(source, limits)
        stream.read_pickle("its first pickle")
        reader = LegacyReader(stream)
        described_references = reader.read().persistent_references
        graph = read_graph(source.read(*reader.object_range), limits)
    storages = {}
    for node, described_node in zip(graph.persistent_references, described_references, strict=True):
        if node.persistent_id[0] == "module":
            node.target = node.persistent_id[1]
        else:
            node.persistent_id, blob = _convert_legacy_id(node.persistent_id, described_node)
            storages[node.persistent_id[2]] = blob
    return SourcePickle(graph.root, graph.protocol, storages)


def _read_bare_object(path: Location, limits: Limits) -> SourcePickle:
    """Return the object of pickle.dump, whose storages are files of torch.save in byte strings."""
    storages: dict[str, Blob] = {}
    substitutes: dict[int, object] = {}
    replaced_nodes: list[object] = []
    with open_source(path) as source:
        graph = read_graph(source.read(0, source.nbytes), limits)
        for node in _iter_embedded_storages(graph.root):
            offset = graph.blob_offsets.get(id(node.args[0]), -1)
            if offset < 0:
                raise PickleError("a storage inside it is not a torch.save file")
            blob_slice = SourceSlice(source, offset, len(node.args[0]))
            reference = read_embedded_storage(blob_slice, limits)
            (kind, storage_class, _, *fields), blob = _convert_legacy_id(
                reference.persistent_id, reference
            )
            key = f"{len(storages)}"
            storages[key] = blob
            substitutes[id(node)] = PersistentReference((kind, storage_class, key, *fields))
            replaced_nodes.append(node)
    return SourcePickle(graph.root, 2, storages, substitutes, tuple(replaced_nodes))


def _iter_embedded_storages(root: object) -> Iterator[UnresolvedObject]:
    """Yield each call of torch.storage._load_from_bytes in a graph once."""
    todo, visited_ids = [root], set[int]()
    while todo:
        node = todo.pop()
        if type(node) not in _NODE_TYPES or id(node) in visited_ids:
            continue
        visited_ids.add(id(node))
        if isinstance(node, UnresolvedObject):
            if node.callee_name == _LOAD_FROM_BYTES and len(node.args) == 1:
                yield node
                continue
            todo += [node.func, *node.args, node.kwargs, node.state, node.items, node.pairs]
        elif isinstance(node, dict):
            todo += [*node.keys(), *node.values()]
        elif isinstance(node, list | tuple):
            todo += node


def _read_tar_object(
    path: Location, limits: Limits, build_tensor: TensorNodeBuilder
) -> SourcePickle:
    """Return the object of a tar of torch before 0.1.10: its references are the tensors."""
    with open_source(path) as source:
        data, described_pickle = tar.read_object(source, limits)
    graph = read_graph(data, limits)
    nodes, described_nodes = graph.persistent_references, described_pickle.persistent_references
    substitutes: dict[int, object] = {}
    for node, described_node in zip(nodes, described_nodes, strict=True):
        if not isinstance(described_node.target, TensorInfo):
            raise PickleError("it refers to something other than tensors")
        substitutes[id(node)] = build_tensor(PlannedTensor(described_node.target))
    return SourcePickle(graph.root, 2, substitutes=substitutes, replaced_nodes=tuple(nodes))


def _convert_legacy_id(
    legacy_id: tuple[Any, ...], described_node: PersistentReference
) -> tuple[tuple[Any, ...], Blob]:
    """Return the id without a view, and the bytes; a view becomes a storage of its own."""
    kind, storage_class, key, location, numel, view = legacy_id
    storage = described_node.target
    if view is None:
        return (kind, storage_class, key, location, numel), Blob(
            storage.info.nbytes, storage.info.span
        )
    element_bits = DTYPE_BITS[storage.dtype]
    start, nbytes = storage.start * element_bits // 8, storage.numel * element_bits // 8
    span = Span(storage.info.span.path, storage.info.span.offset + start, nbytes)
    view_key = f"{key}_{start}_{nbytes}"
    return (kind, storage_class, view_key, location, storage.numel), Blob(nbytes, span)


def _read_dcp_object(
    directory: Location, limits: Limits, build_tensor: TensorNodeBuilder
) -> SourcePickle:
    storages: dict[str, Blob] = {}

    def build_leaf(leaf: TensorInfo | Span) -> object:
        if isinstance(leaf, TensorInfo):
            return build_tensor(PlannedTensor(leaf))
        with open_source(leaf.path) as source:
            file_slice = SourceSlice(source, leaf.offset, leaf.nbytes)
            saved = _read_archive_object(file_slice, limits, f"{leaf.path.name}_{leaf.offset}_")
        storages.update(saved.storages)
        return saved.root

    root = dcp.read_object(directory, limits, build_leaf)
    return SourcePickle(root, storages=storages)
