"""Draft -> TorchFile: the pickle and the storages that torch.save would write.

What torch.save or DCP wrote is written again with the state_dict replaced: an epoch, an optimizer
or an object of an unknown class stay.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any, Final

from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.formats.files.writer import Blob
from ckptool.formats.limits import Limits
from ckptool.formats.pickle import writer
from ckptool.formats.pickle.graph import NewObjClass
from ckptool.formats.pickle.nodes import (
    GlobalName,
    PersistentReference,
    PickleError,
    UnresolvedObject,
)
from ckptool.formats.pickle.reader import parse_pickle, select_unsafe
from ckptool.formats.pickle.storage_ids import STORAGE_DTYPES
from ckptool.formats.torch.zip_writer import ZipRecord
from ckptool.migration.plan.conversion import ConversionScope, TreeChange
from ckptool.migration.plan.draft import READABLE_LAYOUTS, Draft, PlannedTensor, create_draft
from ckptool.migration.write.graph_keys import iter_named_pairs
from ckptool.migration.write.plain_nodes import names_dangerous
from ckptool.migration.write.plain_tree import PlainTree, build_plain_tree
from ckptool.migration.write.source_pickle import SourcePickle, read_source_pickle
from ckptool.migration.write.tensor_bytes import build_blob
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Container,
    TensorInfo,
    contiguous_stride,
    join_key,
)
from ckptool.phrases import MAX_NAMED, join_limited, quote_code
from ckptool.values.elements import unreadable_reason

_ORDERED_DICT: Final = GlobalName("collections", "OrderedDict")
_REBUILD_TENSOR_V2: Final = GlobalName("torch._utils", "_rebuild_tensor_v2")
_REBUILD_TENSOR_V3: Final = GlobalName("torch._utils", "_rebuild_tensor_v3")
_REBUILD_META_TENSOR: Final = GlobalName("torch._utils", "_rebuild_meta_tensor_no_storage")
_STORAGE_CLASSES: Final = {
    dtype: GlobalName("torch", name)
    for name, dtype in STORAGE_DTYPES.items()
    if not name.endswith("UntypedStorage")
}
_UNTYPED_STORAGE: Final = GlobalName("torch.storage", "UntypedStorage")
_STORAGE, _CPU = "storage", "cpu"


@dataclass(frozen=True, slots=True)
class TorchFile:
    """Content of a torch.save zip file."""

    pickle: bytes
    storages: tuple[ZipRecord, ...]
    changes: tuple[TreeChange, ...] = ()
    """Values of the source around the state that the file lacks, or has in another form."""

    def list_refused_globals(self, limits: Limits) -> tuple[str, ...]:
        """Return the globals of the pickle that `torch.load(weights_only=True)` refuses."""
        names = select_unsafe(parse_pickle(self.pickle, limits).globals)
        return tuple(dict.fromkeys(name.qualified_name for name in names))


def build_torch_file(
    draft: Draft,
    limits: Limits,
    *,
    has_changes: bool,
    conversion: ConversionScope | None = None,
    stripped_places: Collection[str] = (),
) -> TorchFile:
    """Return the pickle and the storages of the result.

    Without `has_changes`, the pickle of a torch.save archive is kept as it is. Of a conversion it
    holds plain data only; a migration leaves out what names something dangerous.

    Raises:
        PlanError: the source's objects cannot be pickled again around the new state_dict.
    """
    builder = _TensorNodeBuilder()
    source = _read_source(draft, limits, builder, is_conversion=conversion is not None)
    builder.reserved_keys = source.storages.keys()
    root = source.root
    is_kept = conversion is not None and root is not None and _is_unchanged(draft)
    if not is_kept and (has_changes or draft.checkpoint.container is not Container.TORCH_ZIP):
        root = _replace_state_dict(root, draft, builder)
    tree = _clean_tree(root, draft, builder, source, conversion, stripped_places)
    try:
        data, persistent = writer.write_pickle(tree.root, source.protocol, source.substitutes)
    except PickleError as error:
        raise PlanError(f"{draft.checkpoint.path}: cannot be rewritten: {error}") from error
    keys = dict.fromkeys(
        str(node.persistent_id[2]) for node in persistent if type(node.persistent_id) is tuple
    )
    records = [ZipRecord(key, builder.blobs.get(key) or source.storages[key]) for key in keys]
    modules = _describe_replaced_modules(draft) if conversion is not None else ()
    return TorchFile(data, tuple(records), (*modules, *tree.changes))


def build_shard_file(draft: Draft) -> TorchFile:
    """Return pickle and storages of a state_dict of plain tensors, all made from descriptions.

    Raises:
        PlanError: a tensor can be written with the pickle of its source only.
    """
    for key, item in draft.items.items():
        if not _is_describable(item.tensor):
            kind = item.tensor.wrapper or item.tensor.layout
            raise PlanError(
                f"{draft.checkpoint.path}: `{key}` is {kind}: only plain tensors are sharded"
            )
    builder = _TensorNodeBuilder()
    root = _build_state_dict(None, draft, builder)
    data, persistent = writer.write_pickle(root)
    keys = dict.fromkeys(str(node.persistent_id[2]) for node in persistent)
    return TorchFile(data, tuple(ZipRecord(key, builder.blobs[key]) for key in keys))


def _is_unchanged(draft: Draft) -> bool:
    """Whether the state is written in its place, with the keys and values that it has there."""
    source_draft = create_draft(draft.checkpoint, draft.state)
    is_same = (draft.items, draft.non_tensor_keys, draft.versions) == (
        source_draft.items,
        source_draft.non_tensor_keys,
        source_draft.versions,
    )
    return is_same and not draft.is_extracted and draft.state.role != "module"


def _read_source(
    draft: Draft, limits: Limits, builder: "_TensorNodeBuilder", *, is_conversion: bool
) -> SourcePickle:
    """Return the source's object; none where a state alone is written and can do without it.

    Raises:
        PlanError: its pickle cannot be written again.
    """
    try:
        source = read_source_pickle(draft.checkpoint, limits, builder.build_tensor)
    except PlanError:
        can_describe = all(_is_describable(item.tensor) for item in draft.items.values())
        if draft.is_extracted and can_describe and not draft.non_tensor_keys:
            return SourcePickle()
        raise
    return replace_fields(source, protocol=2) if is_conversion else source


def _clean_tree(
    root: Any,
    draft: Draft,
    builder: "_TensorNodeBuilder",
    source: SourcePickle,
    conversion: ConversionScope | None,
    stripped_places: Collection[str],
) -> PlainTree:
    """Return the graph without what the result must not have: see `build_torch_file`."""
    checkpoint = draft.checkpoint
    if conversion is None and not names_dangerous(root, source.substitutes):
        return PlainTree(root, ())
    substitutes = dict(source.substitutes)
    if conversion is not None and not draft.is_extracted:
        _replace_other_modules(root, draft, builder)
        substitutes |= {key: new for key, (_, new) in builder.replaced_nodes.items()}
    place = draft.state.at if draft.is_extracted else ""
    stripped = frozenset(stripped_places)
    tree = build_plain_tree(
        root,
        builder.build_described_tensor,
        tensors=_map_tensors(checkpoint, draft),
        substitutes=substitutes,
        is_stripped=stripped.__contains__,
        keeps_unknown=conversion is None,
        place=place,
    )
    left_out = next((c.before for c in tree.changes if c.place == "." and not c.after), "")
    if left_out:
        raise PlanError(
            f"{checkpoint.path}: torch.load(weights_only=True) would refuse a part of {left_out}, "
            "which cannot be left out alone: --at KEY writes one state_dict"
        )
    missing_places = [
        change.place
        for change in tree.changes
        if not change.after and change.place in {join_key(draft.state.at, k) for k in draft.items}
    ]
    if missing_places:
        names = join_limited(missing_places, MAX_NAMED, quote_code)
        raise PlanError(
            f"{checkpoint.path}: torch.load(weights_only=True) would refuse {names}: convert it in"
            " the environment that wrote it, or leave it out (migrate: --drop, convert: --strip)"
        )
    return tree


def _replace_other_modules(root: Any, draft: Draft, builder: "_TensorNodeBuilder") -> None:
    """Note the state_dict of each other pickled module as the node to write in its place."""
    other_modules = {
        state.at: create_draft(draft.checkpoint, state)
        for state in draft.checkpoint.states
        if state.role == "module" and state.at != draft.state.at and not state.is_packed
    }
    if not other_modules:
        return
    for path, node, _ in _iter_nodes(root, lambda _: None):
        if path in other_modules and _is_state_node(node, other_modules[path]):
            new_node = _build_state_dict(node, other_modules[path], builder)
            builder.replaced_nodes[id(node)] = (node, new_node)


def _describe_replaced_modules(draft: Draft) -> Iterator[TreeChange]:
    """Yield the pickled modules that are written as state_dicts."""
    for state in draft.checkpoint.states:
        is_written = state.at == draft.state.at or not draft.is_extracted
        if state.role == "module" and is_written and not state.is_packed:
            module = state.modules.get("")
            yield TreeChange(state.at or ".", module.name if module else "a module", "state_dict")


def _map_tensors(checkpoint: Checkpoint, draft: Draft) -> dict[str, TensorInfo]:
    """Return the tensors by their places in the tree that is to be written."""
    tensors = {
        join_key(state.at, key): tensor
        for state in checkpoint.states
        if state.at != draft.state.at
        for key, tensor in state.tensors.items()
    }
    tensors |= {join_key(draft.state.at, key): item.tensor for key, item in draft.items.items()}
    return tensors


def _is_describable(tensor: TensorInfo) -> bool:
    """Return whether a tensor can be written from its description alone."""
    is_plain = tensor.layout in READABLE_LAYOUTS and not tensor.wrapper
    return is_plain and (tensor.is_on_meta or not unreadable_reason(tensor))


class _TensorNodeBuilder:
    """Builds pickle nodes and storages for tensors that the source's pickle does not have."""

    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}
        self.reserved_keys: Collection[str] = ()
        """Keys of the source's storages."""
        self.replaced_nodes: dict[int, tuple[Any, Any]] = {}
        """id of a node of a state -> the node, and the one that is written in its place."""
        self._storages: dict[object, tuple[PersistentReference, PlannedTensor]] = {}
        self._next_key = 0

    def build_tensor(self, item: PlannedTensor) -> UnresolvedObject:
        """Return the node of a tensor with a new storage, shared with tied tensors.

        A tensor on meta has none: torch.save writes its dtype, shape and stride.
        """
        if item.tensor.is_on_meta:
            dtype_name = GlobalName("torch", item.dtype)
            return UnresolvedObject(
                _REBUILD_META_TENSOR, (dtype_name, item.tensor.shape, item.tensor.stride, False)
            )
        if item.tie_identity not in self._storages:
            self._storages[item.tie_identity] = (self._add_storage(item), item)
        storage, first = self._storages[item.tie_identity]
        shape, dtype = first.tensor.shape, first.dtype
        args = (
            storage,
            0,
            shape,
            contiguous_stride(shape),
            False,
            UnresolvedObject(_ORDERED_DICT, ()),
        )
        if dtype in _STORAGE_CLASSES:
            return UnresolvedObject(_REBUILD_TENSOR_V2, args)
        return UnresolvedObject(_REBUILD_TENSOR_V3, (*args, GlobalName("torch", dtype)))

    def build_described_tensor(self, tensor: TensorInfo) -> UnresolvedObject | None:
        """Return the node of a tensor or an array; None if its description does not say it."""
        if not _is_describable(tensor):
            return None
        return self.build_tensor(PlannedTensor(replace(tensor, kind=None)))

    def _add_storage(self, item: PlannedTensor) -> PersistentReference:
        key = self._find_free_key()
        self.blobs[key] = build_blob(item)
        nbytes, storage_class = (
            self.blobs[key].nbytes,
            _STORAGE_CLASSES.get(item.dtype, _UNTYPED_STORAGE),
        )
        numel = (
            nbytes if storage_class is _UNTYPED_STORAGE else nbytes * 8 // DTYPE_BITS[item.dtype]
        )
        return PersistentReference((_STORAGE, storage_class, key, _CPU, numel))

    def _find_free_key(self) -> str:
        while (key := str(self._next_key)) in self.blobs or key in self.reserved_keys:
            self._next_key += 1
        return str(self._next_key)


def _replace_state_dict(root: Any, draft: Draft, builder: _TensorNodeBuilder) -> Any:
    """Return the pickle tree with the source's state_dict replaced by the result's.

    If the state is extracted, return the result's alone.
    """
    if root is None or not draft.state.at:
        return _build_state_dict(root, draft, builder)
    holder = [root]
    for path, node, set_node in _iter_nodes(root, _make_setter(holder, 0)):
        if path == draft.state.at and _is_state_node(node, draft):
            new_node = _build_state_dict(node, draft, builder)
            builder.replaced_nodes[id(node)] = (node, new_node)
            set_node(new_node)
            return new_node if draft.is_extracted else holder[0]
    if draft.is_extracted and all(_is_describable(item.tensor) for item in draft.items.values()):
        return _build_state_dict(None, draft, builder)
    raise PlanError(
        f"{draft.checkpoint.path}: the state at `{draft.state.at}` cannot be changed in place: "
        "add an extract step, or write safetensors"
    )


def _is_state_node(node: Any, draft: Draft) -> bool:
    if draft.state.role == "module":
        return type(node) is UnresolvedObject
    return bool(_read_pairs(node).keys() >= {*draft.state.tensors})


def _build_state_dict(old_node: Any, draft: Draft, builder: _TensorNodeBuilder) -> Any:
    """Return the node of the result's state_dict; unchanged tensors keep their source nodes.

    Raises:
        PlanError: a sparse, quantized or other tensor has no node in the source to be kept.
    """
    old_pairs = _read_pairs(old_node) if draft.state.role != "module" else {}
    pairs: dict[Any, Any] = {}
    for key, item in draft.items.items():
        old_pair = old_pairs.get(item.source_key) if item.source_key else None
        if old_pair is None and not _is_describable(item.tensor):
            kind = item.tensor.wrapper or item.tensor.layout
            raise PlanError(
                f"{draft.checkpoint.path}: `{key}` is {kind}: only plain tensors are written to a "
                "file of another format"
            )
        pairs[key if old_pair is None or key != item.source_key else old_pair[0]] = (
            builder.build_tensor(item) if old_pair is None else old_pair[1]
        )
    for key, source_key in draft.non_tensor_keys.items():
        if source_key in old_pairs:
            old_key, value = old_pairs[source_key]
            pairs[old_key if key == source_key else key] = value
    return _build_mapping(old_node, draft, pairs)


def _build_mapping(old_node: Any, draft: Draft, pairs: dict[Any, Any]) -> Any:
    if type(old_node) is dict and draft.versions is None:
        return pairs
    mapping = UnresolvedObject(_ORDERED_DICT, ())
    if type(old_node) is UnresolvedObject and draft.state.role != "module":
        mapping = UnresolvedObject(old_node.func, old_node.args)
        mapping.kwargs, mapping.state = old_node.kwargs, old_node.state
    mapping.pairs = pairs
    if draft.versions is not None and draft.versions != draft.state.versions:
        mapping.state = {**(mapping.state if isinstance(mapping.state, dict) else {})}
        mapping.state["_metadata"] = _build_version_metadata(draft)
    elif draft.versions is not None and mapping.state is None:
        mapping.state = {"_metadata": _build_version_metadata(draft)}
    return mapping


def _build_version_metadata(draft: Draft) -> UnresolvedObject:
    metadata = UnresolvedObject(_ORDERED_DICT, ())
    metadata.pairs = {
        prefix: dict(
            draft.state.module_metadata.get(prefix, {} if version is None else {"version": version})
        )
        for prefix, version in (draft.versions or {}).items()
    }
    return metadata


def _read_pairs(node: Any) -> dict[str, tuple[Any, Any]]:
    """Return the children of a mapping or list: key as text -> (key, node)."""
    if type(node) is UnresolvedObject:
        node = node.pairs or node.items or {}
    if isinstance(node, dict):
        return {name: (key, child) for name, key, child in iter_named_pairs(node)}
    if type(node) in {list, tuple}:
        return {str(index): (str(index), child) for index, child in enumerate(node)}
    return {}


NodeSetter = Callable[[Any], None]


def _iter_nodes(root: Any, set_root: NodeSetter) -> Iterator[tuple[str, Any, NodeSetter]]:
    """Yield (path, node, setter) for every node inside containers."""
    pending_nodes: list[tuple[str, Any, NodeSetter]] = [("", root, set_root)]
    visited_ids: set[int] = set()
    while pending_nodes:
        at, node, set_own = pending_nodes.pop()
        if id(node) in visited_ids:
            continue
        visited_ids.add(id(node))
        for step, child, set_node in _iter_children(node, set_own):
            path = join_key(at, step)
            yield path, child, set_node
            if type(child) in {dict, list, tuple, UnresolvedObject}:
                pending_nodes.append((path, child, set_node))


def _iter_children(node: Any, set_own: NodeSetter) -> Iterator[tuple[str, Any, NodeSetter]]:
    if type(node) is tuple:  # it cannot be changed: another takes its place
        for index, child in enumerate(node):
            yield str(index), child, _make_tuple_setter(node, index, set_own)
        return
    containers: list[Any] = [node]
    if type(node) is UnresolvedObject:
        containers = [node.pairs or {}, node.items or [], node.state, *_iter_dict_arguments(node)]
    for container in containers:
        if isinstance(container, dict):
            for name, key, child in [*iter_named_pairs(container)]:
                yield name, child, _make_setter(container, key)
        elif isinstance(container, list):
            for index, child in enumerate(container):
                yield str(index), child, _make_setter(container, index)


def _iter_dict_arguments(node: UnresolvedObject) -> Iterator[Any]:
    """Yield the dicts among an object's constructor arguments: `Counter({...})`."""
    if type(node.func) is not NewObjClass:
        yield from (argument for argument in node.args if isinstance(argument, dict))


def _make_tuple_setter(items: tuple[Any, ...], index: int, set_own: NodeSetter) -> NodeSetter:
    return lambda node: set_own((*items[:index], node, *items[index + 1 :]))


def _make_setter(container: Any, key: Any) -> NodeSetter:
    def set_node(node: Any) -> None:
        container[key] = node

    return set_node
