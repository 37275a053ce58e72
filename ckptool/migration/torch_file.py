"""Draft -> TorchFile: the pickle and the storages that torch.save would write.

If the source is a torch.save zip, its own pickle is written again with the state_dict replaced:
an epoch, an optimizer or an object of an unknown class stay.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ckptool.errors import PlanError
from ckptool.formats import pickle_writer
from ckptool.formats.blobs import Blob
from ckptool.formats.files import open_source
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global, Opaque, Persistent, PickleError
from ckptool.formats.pickle_graph import Class, Graph, read_graph
from ckptool.formats.plain import text_key
from ckptool.formats.storages import DTYPES
from ckptool.formats.torch_zip import Records
from ckptool.formats.torch_zip_writer import Record
from ckptool.formats.zips import STORED, chunks, read_archive, read_member
from ckptool.migration.draft import Draft, Item, c_order
from ckptool.migration.execute import blob
from ckptool.model import BITS, Container, Span

_ORDERED: Final = Global("collections", "OrderedDict")
_REBUILD: Final = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_TYPED: Final = Global("torch._utils", "_rebuild_tensor_v3")
_CLASSES: Final = {
    dtype: Global("torch", name)
    for name, dtype in DTYPES.items()
    if not name.endswith("UntypedStorage")
}
_UNTYPED: Final = Global("torch.storage", "UntypedStorage")
_STORAGE, _CPU = "storage", "cpu"


@dataclass(slots=True)
class TorchFile:
    """Content of a torch.save zip file."""

    pickle: bytes
    storages: list[Record]
    made: dict[str, str] = field(default_factory=dict)
    """Tensor key -> key of a storage of its own (unused)."""


def torch_file(draft: Draft, limits: Limits, *, changed: bool) -> TorchFile:
    """Return the pickle and the storages of the result.

    Without `changed`, the source's pickle is kept as it is.

    Raises:
        PlanError: the source's objects cannot be pickled again around the new state_dict.
    """
    source = _Source(draft, limits)
    root, protocol = source.graph.root, source.graph.protocol
    maker = _Maker(source)
    if changed or draft.checkpoint.container is not Container.TORCH_ZIP:
        root = _replaced(root, draft, maker)
    try:
        data, persistent = pickle_writer.dump(root, protocol)
    except PickleError as error:
        raise PlanError(f"{draft.checkpoint.path}: cannot be written again: {error}") from error
    keys = dict.fromkeys(str(node.id[2]) for node in persistent if type(node.id) is tuple)
    records = [Record(key, maker.blobs.get(key) or source.storage(key)) for key in keys]
    return TorchFile(data, records)


class _Source:
    """Pickle graph and storages of a torch.save zip source; empty for other containers."""

    def __init__(self, draft: Draft, limits: Limits) -> None:
        self.graph = Graph(None, 2)
        self._path = draft.checkpoint.path
        self._limits = limits
        self._blobs: dict[str, Blob] = {}
        if draft.checkpoint.metadata.get("byteorder") == "big":
            raise PlanError(f"{self._path}: is big-endian: write safetensors, then a .pth of that")
        if draft.checkpoint.container is Container.TORCH_ZIP:
            self._read()

    def storage(self, key: str) -> Blob:
        return self._blobs[key]

    def taken(self, key: str) -> bool:
        return key in self._blobs

    def _read(self) -> None:
        with open_source(self._path) as source:
            records = Records(source, read_archive(source, self._limits), self._limits)
            data = read_member(source, records.pickles[0], self._limits, self._limits.pickle_bytes)
            self.graph = _graph(data, self._limits, self._path)
        for name, member in records.items():
            if name.startswith("data/"):
                span = Span(self._path, member.start, member.nbytes)
                stored = member.method == STORED
                inflate = None if stored else self._inflater(name)
                kept = span if stored else None
                self._blobs[name[5:]] = Blob(member.nbytes, kept, inflate, member.crc or None)

    def _inflater(self, name: str) -> Callable[[], Iterator[bytes]]:
        def inflate() -> Iterator[bytes]:
            with open_source(self._path) as source:
                records = Records(source, read_archive(source, self._limits), self._limits)
                yield from chunks(source, records[name], self._limits)

        return inflate


def _graph(data: bytes, limits: Limits, path: object) -> Graph:
    try:
        return read_graph(data, limits)
    except PickleError as error:
        raise PlanError(f"{path}: its pickle cannot be written again: {error}") from error


class _Maker:
    """Builds pickle nodes and storages for tensors that the source's pickle does not have."""

    def __init__(self, source: _Source) -> None:
        self.blobs: dict[str, Blob] = {}
        self._source = source
        self._storages: dict[object, tuple[Persistent, Item]] = {}
        self._next = 0

    def tensor(self, item: Item) -> Opaque:
        """Return the node of a tensor with a new storage, shared with tied tensors."""
        if item.identity not in self._storages:
            self._storages[item.identity] = (self._storage(item), item)
        storage, first = self._storages[item.identity]
        shape, dtype = first.tensor.shape, first.dtype
        args = (storage, 0, shape, c_order(shape), False, Opaque(_ORDERED, ()))
        if dtype in _CLASSES:
            return Opaque(_REBUILD, args)
        return Opaque(_REBUILD_TYPED, (*args, Global("torch", dtype)))

    def _storage(self, item: Item) -> Persistent:
        key = self._free_key()
        self.blobs[key] = blob(item)
        nbytes, cls = self.blobs[key].nbytes, _CLASSES.get(item.dtype, _UNTYPED)
        numel = nbytes if cls is _UNTYPED else nbytes * 8 // BITS[item.dtype]
        return Persistent((_STORAGE, cls, key, _CPU, numel))

    def _free_key(self) -> str:
        while self._source.taken(str(self._next)) or str(self._next) in self.blobs:
            self._next += 1
        return str(self._next)


def _replaced(root: Any, draft: Draft, maker: _Maker) -> Any:
    """Return the pickle tree with the source's state_dict replaced by the result's."""
    if root is None or not draft.state.at:
        return _state_dict(root, draft, maker)
    for place, node, put in _places(root):
        if place == draft.state.at and _holds(node, draft):
            put(_state_dict(node, draft, maker))
            return root
    raise PlanError(
        f"{draft.checkpoint.path}: the state at `{draft.state.at}` cannot be changed in its place: "
        "take it out with an extract step, or write safetensors"
    )


def _holds(node: Any, draft: Draft) -> bool:
    if draft.state.role == "module":
        return type(node) is Opaque
    return bool(_pairs(node).keys() >= {*draft.state.tensors})


def _state_dict(old: Any, draft: Draft, maker: _Maker) -> Any:
    """Return the node of the result's state_dict; unchanged tensors keep their source nodes."""
    before = _pairs(old) if draft.state.role != "module" else {}
    pairs: dict[Any, Any] = {}
    for key, item in draft.items.items():
        found = before.get(item.origin) if item.origin else None
        pairs[key if found is None or key != item.origin else found[0]] = (
            maker.tensor(item) if found is None else found[1]
        )
    for key, origin in draft.others.items():
        if origin in before:
            pairs[key] = before[origin][1]
    return _mapping(old, draft, pairs)


def _mapping(old: Any, draft: Draft, pairs: dict[Any, Any]) -> Any:
    if type(old) is dict and draft.versions is None:
        return pairs
    made = Opaque(_ORDERED, ())
    if type(old) is Opaque and draft.state.role != "module":
        made = Opaque(old.func, old.args)
        made.kwargs, made.state = old.kwargs, old.state
    made.pairs = pairs
    if draft.versions is not None and draft.versions != draft.state.versions:
        made.state = {**(made.state if isinstance(made.state, dict) else {})}
        made.state["_metadata"] = _metadata(draft.versions)
    elif draft.versions is not None and made.state is None:
        made.state = {"_metadata": _metadata(draft.versions)}
    return made


def _metadata(versions: Mapping[str, int | None]) -> Opaque:
    made = Opaque(_ORDERED, ())
    made.pairs = {
        prefix: {} if version is None else {"version": version}
        for prefix, version in versions.items()
    }
    return made


def _pairs(node: Any) -> dict[str, tuple[Any, Any]]:
    """Return the children of a mapping or list: key as text -> (key, node)."""
    if type(node) is Opaque:
        node = node.pairs or node.items or {}
    if isinstance(node, dict):
        return {text_key(key): (key, child) for key, child in node.items()}
    if type(node) in {list, tuple}:
        return {str(index): (str(index), child) for index, child in enumerate(node)}
    return {}


Put = Callable[[Any], None]


def _places(root: Any) -> Iterator[tuple[str, Any, Put]]:
    """Yield (path, node, setter) for every node inside containers."""
    todo: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    while todo:
        at, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for step, child, put in _children(node):
            place = f"{at}.{step}" if at else step
            yield place, child, put
            if type(child) in {dict, list, tuple, Opaque}:
                todo.append((place, child))


def _children(node: Any) -> Iterator[tuple[str, Any, Put]]:
    holders: list[Any] = [node]
    if type(node) is Opaque:
        holders = [node.pairs or {}, node.items or [], node.state, *_arguments(node)]
    for holder in holders:
        if isinstance(holder, dict):
            for key, child in list(holder.items()):
                yield text_key(key), child, _putter(holder, key)
        elif isinstance(holder, list):
            for index, child in enumerate(holder):
                yield str(index), child, _putter(holder, index)


def _arguments(node: Opaque) -> Iterator[Any]:
    """Yield the dicts among an object's constructor arguments: `Counter({...})`."""
    if type(node.func) is not Class:
        yield from (part for part in node.args if isinstance(part, dict))


def _putter(holder: Any, key: Any) -> Put:
    def put(node: Any) -> None:
        holder[key] = node

    return put
