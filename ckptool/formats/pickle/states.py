"""Object graph of a pickle -> PickleTree: its StateDicts, and the rest as PlainEntry values."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.formats.limits import Limits
from ckptool.formats.pickle.modules import is_module, read_module_state
from ckptool.formats.pickle.nodes import ATOMIC_TYPES, MappingNode, SetNode, UnresolvedObject
from ckptool.formats.pickle.numpy_arrays import read_numpy_array
from ckptool.formats.pickle.plain_values import (
    NOT_PLAIN,
    PlainValueConverter,
    describe_node,
    describe_value,
    format_key,
    is_optimizer_state,
)
from ckptool.formats.pickle.tensor_rebuild import (
    EmbeddedStorageReader,
    PickleTreeError,
    TensorInfoReader,
)
from ckptool.model import PlainEntry, Skipped, StateDict, TensorInfo, join_key

_MAX_ENTRIES: Final = 10_000
_MAX_LISTED_CHILDREN: Final = 200
"""Non-tensor children that get entries of their own; more are only counted."""


class PickleTree(Struct):
    """States and entries of one pickle."""

    states: list[StateDict] = []
    entries: list[PlainEntry] = []
    skipped: list[Skipped] = []

    @property
    def is_empty(self) -> bool:
        """Whether it has no tensor, saved or unsaved."""
        return not any(state.tensors or state.unsaved_tensors for state in self.states)


def describe_tree(
    root: object, limits: Limits, read_embedded: EmbeddedStorageReader | None = None
) -> PickleTree:
    """Return the states, sorted by place, and the entries of a tree whose storages are resolved.

    Raises:
        PickleTreeError: it has a view beyond its storage, or nests deeper than `Limits.nesting`.
    """
    walk = _TreeWalk(limits, TensorInfoReader(limits, read_embedded))
    walk.walk_tree(root)
    # States are in the order of their places, and of nothing else.
    walk.tree.states.sort(key=lambda state: state.at)
    _reclassify_small_states(walk.tree)
    if len(walk.tree.entries) > _MAX_ENTRIES:
        del walk.tree.entries[_MAX_ENTRIES:]
        walk.tree.skipped.append(Skipped("entries", f"there are more than {_MAX_ENTRIES}"))
    return walk.tree


_NON_MODEL_KEYS: Final = frozenset({"callbacks", "loops", "lr_schedulers", "rng", "rng_state"})
"""Top-level keys of trainers for values that are no model, though they may hold tensors."""


def _reclassify_small_states(tree: PickleTree) -> None:
    """Give role "tensors" to dicts that contain a larger state, or are under `_NON_MODEL_KEYS`."""
    sizes = {state.at: len(state.tensors) for state in tree.states}
    for index, state in enumerate(tree.states):
        prefix = f"{state.at}." if state.at else ""
        has_larger_state = any(
            size > len(state.tensors) and at != state.at and at.startswith(prefix)
            for at, size in sizes.items()
        )
        if state.role == "state_dict" and (
            has_larger_state or state.at.partition(".")[0] in _NON_MODEL_KEYS
        ):
            tree.states[index] = replace(state, role="tensors")
            listed_places = {entry.at for entry in tree.entries}
            new_entries = (
                PlainEntry(f"{prefix}{key}", text) for key, text in state.non_tensors.items()
            )
            if has_larger_state:
                tree.entries[:0] = [entry for entry in new_entries if entry.at not in listed_places]


class _TreeWalk:
    """One pass over a tree, parents first, without recursion; shared nodes are visited once."""

    def __init__(self, limits: Limits, reader: TensorInfoReader) -> None:
        self.tree = PickleTree()
        self._limits = limits
        self._reader = reader
        self._plain_values = PlainValueConverter()
        self._visited_ids: set[int] = set()
        self._todo: list[tuple[Any, str, int]] = []

    def walk_tree(self, root: object) -> None:
        tensor = self._reader.read_tensor(root, "")
        if tensor is not None:
            self.tree.states.append(StateDict("", {"": tensor}, "tensors"))
            return
        self._todo.append((root, "", 0))
        while self._todo:
            node, at, depth = self._todo.pop()
            if depth > self._limits.nesting:
                raise PickleTreeError(f"it nests deeper than {self._limits.nesting}")
            self._visit_node(node, at, depth)

    def _visit_node(self, node: Any, at: str, depth: int) -> None:
        if type(node) in ATOMIC_TYPES or type(node) not in _CONTAINER_TYPES:
            self._add_entry(node, at)
        elif id(node) not in self._visited_ids:
            self._visited_ids.add(id(node))
            if is_module(node):
                self.tree.states.append(read_module_state(node, at, self._reader))
            elif is_optimizer_state(node):
                self._add_optimizer_state(node, at)
            else:
                self._visit_container(node, at, depth)

    def _visit_container(self, node: Any, at: str, depth: int) -> None:
        value = self._plain_values.convert_node(node)
        if value is not NOT_PLAIN:
            self.tree.entries.append(PlainEntry(at, describe_value(node, value), value))
            return
        tensors: dict[str, TensorInfo] = {}
        non_tensors: dict[str, Any] = {}
        for name, child in _iter_children(node):
            key = (
                _make_unique_key(name, tensors, non_tensors)
                if name in tensors or name in non_tensors
                else name
            )
            tensor = self._reader.read_tensor(child, key)
            if tensor is None:
                non_tensors[key] = child
            else:
                tensors[key] = tensor
        if tensors:
            self._add_state(node, at, tensors, non_tensors)
        elif type(node) is UnresolvedObject or len(non_tensors) > _MAX_LISTED_CHILDREN:
            self.tree.entries.append(PlainEntry(at, describe_node(node)))
        if (
            len(non_tensors) > _MAX_LISTED_CHILDREN
        ):  # of more children, plain ones are counted, not listed
            non_tensors = {k: v for k, v in non_tensors.items() if not self._is_leaf(v)}
        elif tensors:
            non_tensors = {k: v for k, v in non_tensors.items() if type(v) in _CONTAINER_TYPES}
        self._push_children(at, depth, non_tensors)

    def _add_state(
        self, node: Any, at: str, tensors: dict[str, TensorInfo], non_tensors: dict[str, Any]
    ) -> None:
        plain_texts = {
            key: describe_node(child) for key, child in non_tensors.items() if self._is_leaf(child)
        }
        role = "state_dict" if isinstance(node, dict) or _has_dict_items(node) else "tensors"
        state = StateDict(
            at, tensors, role, versions=_read_module_versions(node), non_tensors=plain_texts
        )
        self.tree.states.append(state)

    def _is_leaf(self, node: Any) -> bool:
        """Whether a node is plain data or has no children, so that it is not descended into."""
        if type(node) not in _CONTAINER_TYPES or not list(_iter_children(node)):
            return True
        return self._plain_values.convert_node(node) is not NOT_PLAIN

    def _push_children(self, at: str, depth: int, nodes: dict[str, Any]) -> None:
        children = (
            (child, f"{at}.{key}" if depth else key, depth + 1) for key, child in nodes.items()
        )
        self._todo.extend(reversed(list(children)))

    def _add_entry(self, node: object, at: str) -> None:
        value = self._plain_values.convert_node(node)
        plain_value = None if value is NOT_PLAIN else value
        self.tree.entries.append(PlainEntry(at, describe_node(node), plain_value))

    def _add_optimizer_state(self, node: dict[Any, Any], at: str) -> None:
        """Add an optimizer's state_dict as one state, with all nested tensors."""
        tensors: dict[str, TensorInfo] = {}
        non_tensors: dict[str, str] = {}
        todo: list[tuple[str, Any]] = [(format_key(k), v) for k, v in reversed(node.items())]
        while todo:
            key, child = todo.pop()
            tensor = self._reader.read_tensor(child, key)
            if tensor is not None:
                tensors[key] = tensor
            elif type(child) not in _CONTAINER_TYPES:
                non_tensors[key] = describe_node(child)
            elif id(child) not in self._visited_ids:
                self._visited_ids.add(id(child))
                children = [
                    (f"{key}.{child_key}", value) for child_key, value in _iter_children(child)
                ]
                todo.extend(reversed(children))
        self.tree.states.append(StateDict(at, tensors, "optimizer", non_tensors=non_tensors))
        value = self._plain_values.convert_node(node["param_groups"])
        if value is not NOT_PLAIN:
            place = join_key(at, "param_groups")
            self.tree.entries.append(PlainEntry(place, describe_node(node["param_groups"]), value))


_CONTAINER_TYPES: Final = frozenset({dict, MappingNode, list, tuple, SetNode, UnresolvedObject})


def _has_dict_items(node: Any) -> bool:
    return type(node) is UnresolvedObject and bool(node.pairs)


def _iter_children(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield (key as text, child) of a container; nothing for a numpy array."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield (key if type(key) is str else format_key(key)), child
    elif type(node) in {list, tuple}:
        yield from ((str(index), child) for index, child in enumerate(node))
    elif type(node) is SetNode:
        yield from ((str(index), child) for index, child in enumerate(node.items))
    elif type(node) is UnresolvedObject and read_numpy_array(node, "") is None:
        yield from _iter_object_parts(node)


def _iter_object_parts(node: UnresolvedObject) -> Iterator[tuple[str, Any]]:
    """Yield the items, attributes and arguments of an UnresolvedObject."""
    yield from _iter_children(node.pairs or {})
    yield from _iter_children(node.items or [])
    states = node.state if type(node.state) is tuple else (node.state,)
    for state in states:
        if isinstance(state, dict):
            yield from _iter_children(state)
        elif type(state) in _CONTAINER_TYPES:
            yield "state", state
    yield from (
        (str(n), part) for n, part in enumerate(node.args) if type(part) in _CONTAINER_TYPES
    )
    if isinstance(node.kwargs, dict):
        yield from _iter_children(node.kwargs)


def _make_unique_key(key: str, *mappings: dict[str, Any]) -> str:
    """Append "'" to `key` until it is unique: 1 and "1" are two keys of one dict."""
    while any(key in mapping for mapping in mappings):
        key += "'"
    return key


def _read_module_versions(node: Any) -> dict[str, int | None] | None:
    """Return prefix -> version of each submodule, from `state_dict._metadata`; None without it."""
    state = node.state if type(node) is MappingNode else None
    metadata = state.get("_metadata") if isinstance(state, dict) else None
    if not isinstance(metadata, dict):
        return None
    return {
        format_key(prefix): _read_version(module_metadata)
        for prefix, module_metadata in metadata.items()
    }


def _read_version(module_metadata: Any) -> int | None:
    version = module_metadata.get("version") if isinstance(module_metadata, dict) else None
    return version if type(version) is int else None
