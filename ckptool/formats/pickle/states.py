"""Object graph of a pickle -> PickleTree: its StateDicts, and the rest as PlainEntry values."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.formats.contents.packed_objects import PackedObjectReader
from ckptool.formats.contents.pickle_tree import collect_contents
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.modules import is_module, read_module_state
from ckptool.formats.pickle.nodes import (
    ATOMIC_TYPES,
    SEQUENCE_TYPES,
    MappingNode,
    PickleTreeError,
    SetNode,
    UnresolvedObject,
)
from ckptool.formats.pickle.places import (
    CONTAINER_TYPES,
    MAX_PLACE_CHARS,
    KeyDeduplicator,
    PlaceJoiner,
    iter_children,
)
from ckptool.formats.pickle.plain_values import (
    NOT_PLAIN,
    PlainValueConverter,
    count_leaves,
    describe_node,
    describe_value,
    format_key,
    is_optimizer,
    is_optimizer_state,
    number_parameters,
)
from ckptool.formats.pickle.tensors.rebuild_functions import create_tensor_reader
from ckptool.formats.pickle.tensors.storage import EmbeddedStorageReader
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.model import Content, PlainEntry, Skipped, StateDict, TensorInfo
from ckptool.phrases import pluralize

_MAX_ENTRIES: Final = 10_000
_MAX_KEPT_LEAVES: Final = 200_000
"""Leaves of the values of all entries; an entry after them keeps its description only."""
_MAX_LISTED_CHILDREN: Final = 200
"""Non-tensor children that get entries of their own; more are only counted."""


class PickleTree(Struct):
    """States and entries of one pickle."""

    states: list[StateDict] = []
    entries: list[PlainEntry] = []
    skipped: list[Skipped] = []
    opaque: list[Skipped] = []
    """`Checkpoint.opaque` of the tree."""
    contents: Mapping[str, Content] = {}
    """`Checkpoint.contents` of the tree; empty without `Limits.contents`."""

    @property
    def is_empty(self) -> bool:
        """Whether it has no tensor, saved or unsaved."""
        return not any(state.tensors or state.unsaved_tensors for state in self.states)


_NON_MODEL_KEYS: Final = frozenset({"callbacks", "loops", "lr_schedulers", "rng", "rng_state"})
"""Top-level keys of trainers for values that are no model, though they may hold tensors."""


def describe_tree(
    root: object, limits: Limits, read_embedded: EmbeddedStorageReader | None = None
) -> PickleTree:
    """Return the states, sorted by place, and the entries of a tree whose storages are resolved.

    Raises:
        PickleTreeError: it has a view beyond its storage, or nests deeper than `Limits.nesting`.
    """
    reader = create_tensor_reader(limits, read_embedded)
    walk = _TreeWalk(limits, reader)
    walk.walk_tree(root)
    tree = walk.finish_tree()
    if limits.contents:
        tree.contents = collect_contents(root, reader)
    return tree


class _TreeWalk:
    """One pass over a tree, parents first, without recursion; shared nodes are visited once."""

    def __init__(self, limits: Limits, reader: TensorInfoReader) -> None:
        self.tree = PickleTree()
        self._limits = limits
        self._reader = reader
        self._plain_values = PlainValueConverter()
        self._places = PlaceJoiner()
        self._visited_ids: set[int] = set()
        self._leaf_texts: dict[int, str | None] = {}
        """id of a container -> its description if it is a leaf, None if it is descended into."""
        self._outer_states: list[int | None] = []
        """For each state the index of the innermost state that contains it; None for none."""
        self._todo: list[tuple[Any, str, int, int | None]] = []

    def walk_tree(self, root: object) -> None:
        tensor = self._reader.read_tensor(root, "")
        if tensor is not None:
            self._append_state(StateDict("", {"": tensor}, "tensors"), None)
            return
        self._todo.append((root, "", 0, None))
        while self._todo:
            node, at, depth, outer_state = self._todo.pop()
            if depth > self._limits.nesting:
                raise PickleTreeError(f"it nests deeper than {self._limits.nesting}")
            self._visit_node(node, at, depth, outer_state)

    def finish_tree(self) -> PickleTree:
        """Return the tree: small states reclassified, states sorted by place, entries limited."""
        tree, skipped = self.tree, self.tree.skipped
        inner_sizes = self._find_largest_inner_states()
        order = sorted(range(len(tree.states)), key=lambda index: tree.states[index].at)
        listed_places = {entry.at for entry in tree.entries}
        added_entries: list[list[PlainEntry]] = []
        for index in order:
            state = tree.states[index]
            has_larger_state = inner_sizes[index] > len(state.tensors)
            if state.role == "state_dict" and (
                has_larger_state or state.at.partition(".")[0] in _NON_MODEL_KEYS
            ):
                tree.states[index] = replace(state, role="tensors")
                if has_larger_state:
                    entries = [
                        PlainEntry(self._join_place(state.at, key), text)
                        for key, text in state.non_tensors.items()
                    ]
                    added_entries.append([e for e in entries if e.at not in listed_places])
                    listed_places.update(entry.at for entry in added_entries[-1])
        # States are in the order of their places, and of nothing else.
        tree.states = [tree.states[index] for index in order]
        tree.entries = [*chain.from_iterable(reversed(added_entries)), *tree.entries]
        if len(tree.entries) > _MAX_ENTRIES:
            del tree.entries[_MAX_ENTRIES:]
            skipped.append(Skipped("entries", f"there are more than {_MAX_ENTRIES}"))
        if _drop_values_beyond(tree.entries, _MAX_KEPT_LEAVES):
            skipped.append(
                Skipped("values of entries", f"they have more than {_MAX_KEPT_LEAVES} leaves")
            )
        if self._places.cut_count:
            skipped.append(
                Skipped(
                    f"the names of {pluralize(self._places.cut_count, 'place')}",
                    f"longer than {MAX_PLACE_CHARS} characters: cut",
                )
            )
        return tree

    def _find_largest_inner_states(self) -> list[int]:
        """Return for each state the tensors of the largest state inside it, 0 for none."""
        sizes = [0] * len(self.tree.states)
        for index in reversed(range(len(sizes))):  # an inner state comes after its outer one
            outer = self._outer_states[index]
            if outer is not None:
                size = max(len(self.tree.states[index].tensors), sizes[index])
                sizes[outer] = max(sizes[outer], size)
        return sizes

    def _append_state(self, state: StateDict, outer_state: int | None) -> int:
        """Append a state; return its index."""
        self.tree.states.append(state)
        self._outer_states.append(outer_state)
        return len(self.tree.states) - 1

    def _join_place(self, at: str, key: str) -> str:
        return self._places.join(at, key, "." if at else "")

    def _visit_node(self, node: Any, at: str, depth: int, outer_state: int | None) -> None:
        if type(node) in ATOMIC_TYPES or type(node) not in CONTAINER_TYPES:
            self._add_entry(node, at)
        elif id(node) not in self._visited_ids:
            self._visited_ids.add(id(node))
            if is_module(node):
                self._add_module_state(node, at, outer_state)
            elif is_optimizer_state(node):
                self._add_optimizer_state(node, at, outer_state)
            elif is_optimizer(node):
                self.tree.entries.append(PlainEntry(at, describe_node(node)))
                self._add_optimizer_state(node.state, at, outer_state)
            else:
                self._visit_container(node, at, depth, outer_state)

    def _add_module_state(self, node: UnresolvedObject, at: str, outer_state: int | None) -> None:
        packed = PackedObjectReader(self._reader)
        self._append_state(read_module_state(node, at, self._reader, packed), outer_state)
        for state in packed.build_states(at):
            self._append_state(state, outer_state)
        self.tree.opaque += packed.opaque

    def _visit_container(self, node: Any, at: str, depth: int, outer_state: int | None) -> None:
        """Add a plain value, or the state that its tensors are; the rest of it is visited later."""
        value = self._plain_values.convert_node(node)
        if value is not NOT_PLAIN:
            self.tree.entries.append(PlainEntry(at, describe_value(node, value), value))
            return
        tensors: dict[str, TensorInfo] = {}
        non_tensors: dict[str, Any] = {}
        make_unique = KeyDeduplicator(tensors, non_tensors)
        for name, child in iter_children(node):
            key = make_unique(name) if name in tensors or name in non_tensors else name
            tensor = self._reader.read_tensor(child, key)
            if tensor is None and type(node) not in SEQUENCE_TYPES and type(node) is not SetNode:
                tensor = self._reader.read_array(child, key)
            if tensor is None:
                non_tensors[key] = child
            else:
                tensors[key] = tensor
        if tensors:
            outer_state = self._add_state(node, at, tensors, non_tensors, outer_state)
        elif type(node) is UnresolvedObject or len(non_tensors) > _MAX_LISTED_CHILDREN:
            self.tree.entries.append(PlainEntry(at, describe_node(node)))
        elif at and type(node) is MappingNode and not non_tensors:
            # The state_dict of a module without parameters, which has `_metadata` alone.
            self.tree.entries.append(PlainEntry(at, describe_node(node), {}))
        if (
            len(non_tensors) > _MAX_LISTED_CHILDREN
        ):  # of more children, plain ones are counted, not listed
            non_tensors = {k: v for k, v in non_tensors.items() if self._describe_leaf(v) is None}
        elif tensors:
            non_tensors = {k: v for k, v in non_tensors.items() if type(v) in CONTAINER_TYPES}
        self._push_children(at, depth, non_tensors, outer_state)

    def _add_state(
        self,
        node: Any,
        at: str,
        tensors: dict[str, TensorInfo],
        non_tensors: dict[str, Any],
        outer_state: int | None,
    ) -> int:
        leaf_texts = {key: self._describe_leaf(child) for key, child in non_tensors.items()}
        plain_texts = {key: text for key, text in leaf_texts.items() if text is not None}
        role = "state_dict" if isinstance(node, dict) or _has_dict_items(node) else "tensors"
        state = StateDict(
            at,
            tensors,
            role,
            versions=_read_module_versions(node),
            module_metadata=self._read_module_metadata(node),
            non_tensors=plain_texts,
            container_keys=tuple(key for key, text in leaf_texts.items() if text is None),
        )
        return self._append_state(state, outer_state)

    def _read_module_metadata(self, node: Any) -> dict[str, Mapping[str, object]]:
        """Return the entries of `state_dict._metadata` that are not a version alone."""
        entries = {
            format_key(prefix): self._plain_values.convert_node(entry)
            for prefix, entry in (_find_metadata(node) or {}).items()
            if isinstance(entry, dict) and (len(entry) != 1 or _read_version(entry) is None)
        }
        return {prefix: entry for prefix, entry in entries.items() if isinstance(entry, dict)}

    def _describe_leaf(self, node: Any) -> str | None:
        """Describe a node that is plain data or has no children; None if it is descended into.

        Each container is examined once, however many references it has.
        """
        if type(node) not in CONTAINER_TYPES:
            return describe_node(node)
        if id(node) not in self._leaf_texts:
            is_leaf = (
                next(iter_children(node), None) is None
                or self._plain_values.convert_node(node) is not NOT_PLAIN
            )
            self._leaf_texts[id(node)] = describe_node(node) if is_leaf else None
        return self._leaf_texts[id(node)]

    def _push_children(
        self, at: str, depth: int, nodes: dict[str, Any], outer_state: int | None
    ) -> None:
        children = [
            (child, self._places.join(at, key, "." if depth else ""), depth + 1, outer_state)
            for key, child in nodes.items()
        ]
        self._todo.extend(reversed(children))

    def _add_entry(self, node: object, at: str) -> None:
        value = self._plain_values.convert_node(node)
        plain_value = None if value is NOT_PLAIN else value
        self.tree.entries.append(PlainEntry(at, describe_node(node), plain_value))

    def _add_optimizer_state(self, node: dict[Any, Any], at: str, outer_state: int | None) -> None:
        """Add the attributes or the state_dict of an optimizer as one state, with all tensors."""
        numbers = number_parameters(node["param_groups"])
        tensors: dict[str, TensorInfo] = {}
        non_tensors: dict[str, str] = {}
        make_unique = KeyDeduplicator(tensors, non_tensors)
        todo: list[tuple[str, Any]] = [(format_key(k), v) for k, v in reversed(node.items())]
        while todo:
            key, child = todo.pop()
            if key in tensors or key in non_tensors:
                key = make_unique(key)
            tensor = self._reader.read_tensor(child, key)
            if tensor is not None:
                tensors[key] = tensor
            elif type(child) not in CONTAINER_TYPES:
                non_tensors[key] = describe_node(child)
            elif id(child) not in self._visited_ids:
                self._visited_ids.add(id(child))
                children = [
                    (self._places.join(key, child_key), value)
                    for child_key, value in _iter_numbered_children(child, numbers)
                ]
                todo.extend(reversed(children))
        state = StateDict(at, tensors, "optimizer", non_tensors=non_tensors)
        self._append_state(state, outer_state)
        value = self._plain_values.convert_node(node["param_groups"])
        if value is not NOT_PLAIN:
            place = self._join_place(at, "param_groups")
            self.tree.entries.append(PlainEntry(place, describe_node(node["param_groups"]), value))


def _iter_numbered_children(node: Any, numbers: Mapping[int, str]) -> Iterator[tuple[str, Any]]:
    """Yield the children of a node of an optimizer; a key that is a parameter is its number."""
    if not (numbers and isinstance(node, dict)):
        yield from iter_children(node)
        return
    for key, child in node.items():
        yield numbers.get(id(key)) or format_key(key), child


def _has_dict_items(node: Any) -> bool:
    return type(node) is UnresolvedObject and bool(node.pairs)


def _drop_values_beyond(entries: list[PlainEntry], leaves: int) -> bool:
    """Keep the values of the first entries, up to `leaves` in all; return whether some were cut.

    Values share parts within a file, which whoever prints or compares them meets each time.
    """
    is_cut = False
    for index, entry in enumerate(entries):
        leaves -= count_leaves(entry.value, leaves) if leaves >= 0 else 0
        if leaves < 0 and entry.value is not None:
            entries[index] = replace(entry, value=None)
            is_cut = True
    return is_cut


def _read_module_versions(node: Any) -> dict[str, int | None] | None:
    """Return prefix -> version of each submodule, from `state_dict._metadata`; None without it."""
    metadata = _find_metadata(node)
    if metadata is None:
        return None
    return {
        format_key(prefix): _read_version(module_metadata)
        for prefix, module_metadata in metadata.items()
    }


def _find_metadata(node: Any) -> dict[Any, Any] | None:
    """Return `state_dict._metadata` of the node of a state_dict, None without it."""
    state = node.state if type(node) is MappingNode else None
    metadata = state.get("_metadata") if isinstance(state, dict) else None
    return metadata if isinstance(metadata, dict) else None


def _read_version(module_metadata: Any) -> int | None:
    version = module_metadata.get("version") if isinstance(module_metadata, dict) else None
    return version if type(version) is int else None
