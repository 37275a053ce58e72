"""Object graph of a pickle -> PickleTree: its StateDicts, and the rest as PlainEntry values."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.formats.arrays import numpy_array
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import ATOMS, Elements, Opaque, Ordered
from ckptool.formats.pickled_modules import is_module, module_state
from ckptool.formats.plain import NOT_PLAIN, Plain, is_optimizer, text_key, value_words, words
from ckptool.formats.tensors import Embedded, Tensors, TreeError
from ckptool.model import Entry, Skipped, State, TensorInfo

_ENTRIES: Final = 10_000
_LISTED: Final = 200
"""Non-tensor children that get entries of their own; more are only counted."""


class Tree(Struct):
    """States and entries of one pickle."""

    states: list[State] = []
    entries: list[Entry] = []
    skipped: list[Skipped] = []

    @property
    def empty(self) -> bool:
        """Whether it has no tensor, saved or unsaved."""
        return not any(state.tensors or state.unsaved for state in self.states)


def describe(root: object, limits: Limits, embedded: Embedded | None = None) -> Tree:
    """Return the states, sorted by place, and the entries of a tree whose storages are resolved.

    Raises:
        PickleTreeError: it has a view beyond its storage, or nests deeper than `Limits.nesting`.
    """
    walk = _Walk(limits, Tensors(limits, embedded))
    walk.run(root)
    # States are in the order of their places, and of nothing else.
    walk.tree.states.sort(key=lambda state: state.at)
    _rank(walk.tree)
    if len(walk.tree.entries) > _ENTRIES:
        del walk.tree.entries[_ENTRIES:]
        walk.tree.skipped.append(Skipped("entries", f"there are more than {_ENTRIES}"))
    return walk.tree


_NO_MODEL: Final = frozenset({"callbacks", "loops", "lr_schedulers", "rng", "rng_state"})
"""Top-level keys of trainers for values that are no model, though they may hold tensors."""


def _rank(tree: Tree) -> None:
    """Give role "tensors" to dicts that contain a larger state, or are under `_NON_MODEL_KEYS`."""
    sizes = {state.at: len(state.tensors) for state in tree.states}
    for number, state in enumerate(tree.states):
        inside = f"{state.at}." if state.at else ""
        larger = any(
            size > len(state.tensors) and at != state.at and at.startswith(inside)
            for at, size in sizes.items()
        )
        if state.role == "state_dict" and (larger or state.at.partition(".")[0] in _NO_MODEL):
            tree.states[number] = replace(state, role="tensors")
            listed = {entry.at for entry in tree.entries}
            values = (Entry(f"{inside}{key}", text) for key, text in state.others.items())
            if larger:
                tree.entries[:0] = [entry for entry in values if entry.at not in listed]


class _Walk:
    """One pass over a tree, parents first, without recursion; shared nodes are visited once."""

    def __init__(self, limits: Limits, tensors: Tensors) -> None:
        self.tree = Tree()
        self._limits = limits
        self._tensors = tensors
        self._plain = Plain()
        self._seen: set[int] = set()
        self._todo: list[tuple[Any, str, int]] = []

    def run(self, root: object) -> None:
        lone = self._tensors.read(root, "")
        if lone is not None:
            self.tree.states.append(State("", {"": lone}, "tensors"))
            return
        self._todo.append((root, "", 0))
        while self._todo:
            node, at, depth = self._todo.pop()
            if depth > self._limits.nesting:
                raise TreeError(f"it nests deeper than {self._limits.nesting}")
            self._visit(node, at, depth)

    def _visit(self, node: Any, at: str, depth: int) -> None:
        if type(node) in ATOMS or type(node) not in _CONTAINERS:
            self._enter(node, at)
        elif id(node) not in self._seen:
            self._seen.add(id(node))
            if is_module(node):
                self.tree.states.append(module_state(node, at, self._tensors))
            elif is_optimizer(node):
                self._optimizer(node, at)
            else:
                self._container(node, at, depth)

    def _container(self, node: Any, at: str, depth: int) -> None:
        value = self._plain.value(node)
        if value is not NOT_PLAIN:
            self.tree.entries.append(Entry(at, value_words(node, value), value))
            return
        tensors: dict[str, TensorInfo] = {}
        others: dict[str, Any] = {}
        for name, child in _children(node):
            key = _free(name, tensors, others) if name in tensors or name in others else name
            tensor = self._tensors.read(child, key)
            if tensor is None:
                others[key] = child
            else:
                tensors[key] = tensor
        if tensors:
            self._state(node, at, tensors, others)
        elif type(node) is Opaque or len(others) > _LISTED:
            self.tree.entries.append(Entry(at, words(node)))
        if len(others) > _LISTED:  # of more children, plain ones are counted, not listed
            others = {k: v for k, v in others.items() if not self._is_leaf(v)}
        elif tensors:
            others = {k: v for k, v in others.items() if type(v) in _CONTAINERS}
        self._descend(at, depth, others)

    def _state(
        self, node: Any, at: str, tensors: dict[str, TensorInfo], others: dict[str, Any]
    ) -> None:
        kept = {key: words(child) for key, child in others.items() if self._is_leaf(child)}
        role = "state_dict" if isinstance(node, dict) or _pairs(node) else "tensors"
        state = State(at, tensors, role, versions=_versions(node), others=kept)
        self.tree.states.append(state)

    def _is_leaf(self, node: Any) -> bool:
        """Whether a node is plain data or has no children, so that it is not descended into."""
        if type(node) not in _CONTAINERS or not list(_children(node)):
            return True
        return self._plain.value(node) is not NOT_PLAIN

    def _descend(self, at: str, depth: int, others: dict[str, Any]) -> None:
        inner = (
            (child, f"{at}.{key}" if depth else key, depth + 1) for key, child in others.items()
        )
        self._todo.extend(reversed(list(inner)))

    def _enter(self, node: object, at: str) -> None:
        value = self._plain.value(node)
        plain = None if value is NOT_PLAIN else value
        self.tree.entries.append(Entry(at, words(node), plain))

    def _optimizer(self, node: dict[Any, Any], at: str) -> None:
        """Add an optimizer's state_dict as one state, with all nested tensors."""
        tensors: dict[str, TensorInfo] = {}
        others: dict[str, str] = {}
        todo: list[tuple[str, Any]] = [(text_key(k), v) for k, v in reversed(node.items())]
        while todo:
            key, child = todo.pop()
            tensor = self._tensors.read(child, key)
            if tensor is not None:
                tensors[key] = tensor
            elif type(child) not in _CONTAINERS:
                others[key] = words(child)
            elif id(child) not in self._seen:
                self._seen.add(id(child))
                inner = [(f"{key}.{step}", value) for step, value in _children(child)]
                todo.extend(reversed(inner))
        self.tree.states.append(State(at, tensors, "optimizer", others=others))
        value = self._plain.value(node["param_groups"])
        if value is not NOT_PLAIN:
            place = f"{at}.param_groups" if at else "param_groups"
            self.tree.entries.append(Entry(place, words(node["param_groups"]), value))


_CONTAINERS: Final = frozenset({dict, Ordered, list, tuple, Elements, Opaque})


def _pairs(node: Any) -> bool:
    return type(node) is Opaque and bool(node.pairs)


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield (key as text, child) of a container; nothing for a numpy array."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield (key if type(key) is str else text_key(key)), child
    elif type(node) in {list, tuple}:
        yield from ((str(index), child) for index, child in enumerate(node))
    elif type(node) is Elements:
        yield from ((str(index), child) for index, child in enumerate(node.items))
    elif type(node) is Opaque and numpy_array(node, "") is None:
        yield from _parts(node)


def _parts(node: Opaque) -> Iterator[tuple[str, Any]]:
    """Yield the items, attributes and arguments of an UnresolvedObject."""
    yield from _children(node.pairs or {})
    yield from _children(node.items or [])
    states = node.state if type(node.state) is tuple else (node.state,)
    for state in states:
        if isinstance(state, dict):
            yield from _children(state)
        elif type(state) in _CONTAINERS:
            yield "state", state
    yield from ((str(n), part) for n, part in enumerate(node.args) if type(part) in _CONTAINERS)
    if isinstance(node.kwargs, dict):
        yield from _children(node.kwargs)


def _free(key: str, *taken: dict[str, Any]) -> str:
    """Append "'" to `key` until it is unique: 1 and "1" are two keys of one dict."""
    while any(key in names for names in taken):
        key += "'"
    return key


def _versions(node: Any) -> dict[str, int | None] | None:
    """Return prefix -> version of each submodule, from `state_dict._metadata`; None without it."""
    state = node.state if type(node) is Ordered else None
    metadata = state.get("_metadata") if isinstance(state, dict) else None
    if not isinstance(metadata, dict):
        return None
    return {text_key(prefix): _version(local) for prefix, local in metadata.items()}


def _version(local: Any) -> int | None:
    version = local.get("version") if isinstance(local, dict) else None
    return version if type(version) is int else None
