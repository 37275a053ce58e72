"""Object graph of a pickle -> contents of all that stands beside the tensors of its states.

Everything is cut into the largest parts that hold no elements; each has a place and a fingerprint,
so that two files can be compared without their objects. Elements that are in no state are compared
by their values: tensors that are attributes of another tensor, and bare storages.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from struct import pack
from typing import Any, Final

from ckptool.formats.contents.collector import (
    CLASS_SUFFIX,
    KEYS_SUFFIX,
    UNKNOWN_CONTENT,
    ContentCollector,
    create_content_hasher,
)
from ckptool.formats.pickle.nodes import (
    ATOMIC_TYPES,
    SEQUENCE_TYPES,
    GlobalName,
    MappingNode,
    PersistentReference,
    PickleTreeError,
    SetNode,
    UnresolvedObject,
)
from ckptool.formats.pickle.places import CONTAINER_TYPES, PlaceJoiner, iter_children
from ckptool.formats.pickle.tensors.argument_checks import TENSOR_CLASSES
from ckptool.formats.pickle.tensors.tensor_reader import TensorInfoReader
from ckptool.model import Content

_HOLDS_ELEMENTS: Final = b"tensor"
_UNKNOWN: Final = b""
_IN_PROGRESS: Final = b"cycle"


def collect_contents(root: object, reader: TensorInfoReader) -> dict[str, Content]:
    """Return place -> content of the largest parts that are in no state."""
    collector = ContentCollector()
    add_tree_contents(collector, root, reader)
    return collector.contents


def add_tree_contents(
    collector: ContentCollector,
    root: object,
    reader: TensorInfoReader,
    place: str = "",
    rewrite: Callable[[str], str] = str,
) -> None:
    """Add the parts of the graph below `root`, whose place is `place`.

    `rewrite` replaces the names of classes, in text too, by those under which they are compared.
    """
    for part_place, content in _TreeContents(reader, rewrite).iter_parts(root, place):
        collector.add(part_place, content)


class _TreeContents:
    """One pass from the leaves up (what has elements?), one from the root down (which parts?)."""

    def __init__(self, reader: TensorInfoReader, rewrite: Callable[[str], str]) -> None:
        self._reader = reader
        self._rewrite = rewrite
        self._digests: dict[int, bytes] = {}
        """id of a node -> its digest, or one of the three constants above."""
        self._hook_positions: dict[int, dict[Any, int]] = {}
        """id of a dict of hooks -> id of a hook in it -> its position, in the order of the calls.

        The ids count all hooks that the process registered before, of whatever module.
        """
        self._plain_callees: set[object] = set()
        """What makes tensors without attributes: nothing of such a tensor is a part."""
        self._places = PlaceJoiner()

    def iter_parts(self, root: Any, place: str) -> Iterator[tuple[str, Content]]:
        """Yield (place, content) of the largest parts that are in no state."""
        self._digest_graph(root)
        visited_ids: set[int] = set()
        todo: list[tuple[Any, str]] = [(root, place)]
        while todo:
            node, at = todo.pop()
            digest = self._get_digest(node)
            if digest != _HOLDS_ELEMENTS:
                yield at, digest.hex()
            elif self._has_elements(node):
                if not self._reader.is_read(node):
                    yield at, self._read_elements(node, at)
                yield from self._iter_tensor_frames(node, at)
                for attributes in _iter_tensor_attributes(node):
                    self._digest_graph(attributes)
                    todo.append((attributes, f"{at} (attributes)"))
            elif id(node) not in visited_ids:
                visited_ids.add(id(node))
                unnamed_parts = list(_iter_unnamed_parts(node))
                yield from self._iter_frames(node, at or ".", unnamed_parts)
                children = [
                    (child, self._places.join(at, key, "." if at else ""))
                    for key, child in chain(iter_children(node), _iter_attributes(node))
                    if not self._is_finished(child)
                ]
                children += [
                    (part, f"{at or '.'} (part {number})")
                    for number, part in enumerate(unnamed_parts)
                    if self._get_digest(part) == _HOLDS_ELEMENTS
                ]
                todo.extend(reversed(children))

    def _has_elements(self, node: object) -> bool:
        """Whether it is a tensor or a storage, or an array that a state has as a tensor."""
        reader = self._reader
        return reader.is_tensor(node) or reader.is_storage(node) or reader.is_read(node)

    def _is_finished(self, node: object) -> bool:
        """Whether it is a tensor of a state, without attributes: there are 100,000 of them."""
        return (
            type(node) is UnresolvedObject
            and node.func in self._plain_callees
            and self._reader.is_read(node)
        )

    def _iter_tensor_frames(self, node: object, at: str) -> Iterator[tuple[str, Content]]:
        """Yield the fingerprints of what a tensor is besides its elements and attributes."""
        if cls := _find_tensor_class(node):
            yield f"{at}{CLASS_SUFFIX}", self._hash_parts(b"frame", [cls.qualified_name]).hex()
        if (is_coalesced := _read_is_coalesced(node)) is not None:
            yield f"{at} (is_coalesced)", self._hash_parts(b"frame", [is_coalesced]).hex()

    def _iter_frames(
        self, node: Any, at: str, unnamed_parts: list[Any]
    ) -> Iterator[tuple[str, Content]]:
        """Yield the fingerprints of what `iter_children` leaves out of a node that has elements.

        Keys that are text are part of the places; of others these have a description.
        """
        frame = [part for part in unnamed_parts if self._get_digest(part) != _HOLDS_ELEMENTS]
        frame += _find_kind(node)
        if frame:
            yield f"{at}{CLASS_SUFFIX}", self._hash_parts(b"frame", frame).hex()
        keys = list(_iter_keys(node))
        types = {type(key) for key in keys}
        if not types <= {str}:
            digests = [self._get_digest(key) for key in keys]
            if len(types) == 1 and types <= ATOMIC_TYPES:  # the places have the keys
                digests = [types.pop().__name__.encode()]
            known_keys = sorted(digest for digest in digests if digest != _HOLDS_ELEMENTS)
            yield f"{at}{KEYS_SUFFIX}", self._combine(b"keys", known_keys).hex()

    def _read_elements(self, node: object, at: str) -> Content:
        try:
            return self._reader.read_elements(node, at)
        except PickleTreeError:  # no tensor of a state: what is wrong with it was not looked at
            return UNKNOWN_CONTENT

    def _digest_graph(self, root: Any) -> None:
        todo = [(root, False)] if type(root) not in ATOMIC_TYPES else []
        while todo:
            node, is_entered = todo.pop()
            if is_entered:
                self._digests[id(node)] = self._digest_node(node)
            elif id(node) not in self._digests and not self._note_elements(node):
                # Until it is digested, a node that is met again closes a cycle.
                self._digests[id(node)] = _IN_PROGRESS
                if type(node) is dict and node.keys() >= _MODULE_KEYS:
                    self._number_hooks(node)
                todo.append((node, True))
                todo += [
                    (part, False)
                    for part in _iter_parts(node)
                    if type(part) not in ATOMIC_TYPES and not self._note_elements(part)
                ]

    def _note_elements(self, node: Any) -> bool:
        """Note a tensor, a storage or an array; return whether the node is one."""
        if not self._has_elements(node):
            return False
        self._digests[id(node)] = _HOLDS_ELEMENTS
        if type(node) is UnresolvedObject and node.callee_name[1] not in _ATTRIBUTE_FUNCTIONS:
            self._plain_callees.add(node.func)
        return True

    def _number_hooks(self, attributes: dict[Any, Any]) -> None:
        """Note the positions of the hooks in each dict of hooks of a module."""
        hooks = {
            name: value
            for name, value in attributes.items()
            if type(name) is str and "_hooks" in name and isinstance(value, dict)
        }
        for name, value in hooks.items():
            called = hooks.get(_HOOK_FLAGS.sub("", name), value)
            if id(called) not in self._hook_positions:
                hook_ids = [key for key in called if type(key) is int]
                self._hook_positions[id(called)] = {
                    hook_id: position for position, hook_id in enumerate(hook_ids)
                }
            self._hook_positions[id(value)] = self._hook_positions[id(called)]

    def _digest_node(self, node: Any) -> bytes:
        match node:
            case dict():
                return self._digest_dict(node)
            case list() | tuple():
                return self._hash_parts(type(node).__name__.encode(), node)
            case SetNode():
                kind = b"frozenset" if node.is_frozen else b"set"
                return self._combine(kind, sorted(map(self._get_digest, node.items)))
            case UnresolvedObject():
                return self._hash_parts(b"object", _iter_parts(node))
            case GlobalName():
                return self._hash_parts(b"global", (node.qualified_name, node.computed))
            case _:
                is_class = type(node) is PersistentReference and type(node.target) is GlobalName
                return self._hash_parts(b"class", (node.persistent_id,)) if is_class else _UNKNOWN

    def _digest_dict(self, node: dict[Any, Any]) -> bytes:
        # A state_dict ends here, at its first tensor.
        if any(self._get_digest(value) == _HOLDS_ELEMENTS for value in node.values()):
            return _HOLDS_ELEMENTS
        positions = self._hook_positions.get(id(node), {})
        items = [
            self._hash_parts(b"item", (positions.get(key, key) if positions else key, value))
            for key, value in node.items()
        ]
        kind: tuple[object, ...] = ("dict",)
        attributes = None
        if type(node) is MappingNode:
            kind, attributes = node.kind, node.state
        own = (self._hash_parts(b"kind", kind), self._get_digest(attributes))
        return self._combine(b"dict", [*sorted(items), *own])

    def _hash_parts(self, kind: bytes, parts: Iterable[object]) -> bytes:
        return self._combine(kind, [self._get_digest(part) for part in parts])

    def _get_digest(self, node: Any) -> bytes:
        """Return the digest of a node that was visited; an atom is its own."""
        if type(node) not in ATOMIC_TYPES:
            return self._digests.get(id(node), _UNKNOWN)
        if isinstance(node, bytes):
            data = node
        elif type(node) is float:
            data = pack(">d", node)  # two NaNs have one text
        else:
            text = repr(self._rewrite(node) if type(node) is str else node)
            data = text.encode("utf-8", "surrogatepass")
        if len(data) < _MAX_INLINE_BYTES:
            return type(node).__name__.encode() + b":" + data
        return create_content_hasher(type(node).__name__.encode() + b":" + data).digest()

    @staticmethod
    def _combine(kind: bytes, digests: list[bytes]) -> bytes:
        if _HOLDS_ELEMENTS in digests:
            return _HOLDS_ELEMENTS
        if _UNKNOWN in digests:
            return _UNKNOWN
        content_hash = create_content_hasher(kind)
        for digest in digests:
            content_hash.update(len(digest).to_bytes(2, "little") + digest)
        return content_hash.digest()


def _find_kind(node: Any) -> tuple[object, ...]:
    """Return what a container is if code can tell it from the usual one; () for the usual one.

    A dict and an OrderedDict that have elements are the usual one: load_state_dict() takes either.
    """
    if type(node) is MappingNode:
        return node.kind if node.kind != MappingNode().kind else ()
    if type(node) is SetNode:
        return ("frozenset" if node.is_frozen else "set",)
    return ("tuple",) if type(node) is tuple else ()


_MAX_INLINE_BYTES: Final = 48
_MODULE_KEYS: Final = frozenset({"_parameters", "_buffers", "_modules"})
_HOOK_FLAGS: Final = re.compile("_(?:with_kwargs|always_called)$")
"""Ends of dicts that say of hooks in another dict how they are called."""


def _iter_parts(node: Any) -> Iterator[Any]:
    """Yield the nodes that a node is made of."""
    if isinstance(node, dict):
        yield from chain(node.keys(), node.values())
        if type(node) is MappingNode:
            yield from (*node.kind, node.state)
    elif type(node) in SEQUENCE_TYPES:
        yield from node
    elif type(node) is SetNode:
        yield from node.items
    elif type(node) is UnresolvedObject:
        yield from (node.func, node.args, node.kwargs, node.state, node.items, node.pairs)
    elif type(node) is PersistentReference:
        yield node.persistent_id


_STATEFUL_FUNCTIONS: Final = frozenset(
    {"_rebuild_from_type", "_rebuild_from_type_v2", "_rebuild_parameter_with_state"}
)
_PARAMETER_FUNCTIONS: Final = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})
_SPARSE_FUNCTION: Final = "_rebuild_sparse_tensor"
_ATTRIBUTE_FUNCTIONS: Final = _STATEFUL_FUNCTIONS | _PARAMETER_FUNCTIONS | {_SPARSE_FUNCTION}
"""Functions of `torch._utils` and `torch._tensor` whose tensors may have attributes."""


def _iter_tensor_attributes(node: Any) -> Iterator[object]:
    """Yield the attributes of a tensor subclass or a parameter, if it has any.

    The arguments of a jagged tensor are attributes as well.
    """
    for _ in range(_MAX_WRAPPERS):
        if type(node) is not UnresolvedObject or not node.args:
            return
        name = node.callee_name[1]
        if name in _STATEFUL_FUNCTIONS and len(node.args) == 4:
            func, _, arguments, attributes = node.args
            if attributes:
                yield attributes
            if type(func) is GlobalName and func.name == "_rebuild_njt":
                yield arguments
        if name not in _PARAMETER_FUNCTIONS:
            return
        node = node.args[0]


def _find_tensor_class(node: Any) -> GlobalName | None:
    """Return the class of a tensor subclass; None for a tensor, a parameter or a buffer."""
    for _ in range(_MAX_WRAPPERS):
        if type(node) is not UnresolvedObject or not node.args:
            return None
        name = node.callee_name[1]
        if name in _STATEFUL_FUNCTIONS and len(node.args) == 4 and type(node.args[1]) is GlobalName:
            cls: GlobalName = node.args[1]
            return None if (cls.module, cls.name) in TENSOR_CLASSES else cls
        if name not in _PARAMETER_FUNCTIONS:
            return None
        node = node.args[0]
    return None


def _read_is_coalesced(node: Any) -> bool | None:
    """Return what a sparse COO tensor says of its indices; None for another tensor."""
    for _ in range(_MAX_WRAPPERS):
        if type(node) is not UnresolvedObject or len(node.args) < 2:
            return None
        name, parts = node.callee_name[1], node.args[1]
        if name == _SPARSE_FUNCTION and type(parts) is tuple:
            # indices, values, size, is_coalesced: older files lack the last, which is False then.
            flag = parts[3] if len(parts) > 3 else False
            return flag if type(flag) is bool else None
        if name not in _PARAMETER_FUNCTIONS:
            return None
        node = node.args[0]
    return None


_MAX_WRAPPERS: Final = 8


def _iter_unnamed_parts(node: Any) -> Iterator[object]:
    """Yield what a node is made of besides the children that `iter_children` names.

    Of keys only those that are no text and no number.
    """
    if type(node) is UnresolvedObject:
        states = node.state if type(node.state) is tuple else (node.state,)
        yield node.func
        yield from (part for part in node.args if type(part) not in CONTAINER_TYPES)
        yield from (
            part for part in states if part is not None and type(part) not in CONTAINER_TYPES
        )
    yield from (key for key in _iter_keys(node) if type(key) not in ATOMIC_TYPES)


def _iter_keys(node: Any) -> Iterator[object]:
    """Yield the keys of a dict, or of the dicts of an object."""
    mappings = [node]
    if type(node) is UnresolvedObject:
        states = node.state if type(node.state) is tuple else (node.state,)
        mappings = [node.pairs, node.kwargs, *states]
    for mapping in mappings:
        if isinstance(mapping, dict):
            yield from mapping


def _iter_attributes(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a dict subclass: `_metadata` of a state_dict."""
    state = node.state if type(node) is MappingNode else None
    if state is not None:
        yield from iter_children(state) if isinstance(state, dict) else (("(attributes)", state),)
