"""Object graph of a pickle -> content fingerprints of all that stands beside its tensors.

A tensor is compared by its values. Everything else is cut into the largest parts that hold no
tensor; each has a place and a fingerprint, so that two files can be compared without their objects.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, product
from typing import Any, Final

from ckptool.formats.contents.collector import CLASS_SUFFIX, ContentCollector, create_content_hasher
from ckptool.formats.pickle.nodes import (
    ATOMIC_TYPES,
    GlobalName,
    MappingNode,
    PersistentReference,
    SetNode,
    UnresolvedObject,
)
from ckptool.formats.pickle.numpy_arrays import is_numpy_array
from ckptool.formats.pickle.places import PlaceJoiner, iter_children
from ckptool.formats.pickle.tensors.argument_checks import TENSOR_CLASSES

_HOLDS_TENSOR: Final = b"tensor"
_UNKNOWN: Final = b""
_IN_PROGRESS: Final = b"cycle"


def collect_contents(root: object, is_tensor: Callable[[object], bool]) -> dict[str, str]:
    """Return place -> fingerprint of the largest parts without a tensor."""
    collector = ContentCollector()
    add_tree_contents(collector, root, is_tensor)
    return collector.fingerprints


def add_tree_contents(
    collector: ContentCollector, root: object, is_tensor: Callable[[object], bool], place: str = ""
) -> None:
    """Add the parts of the graph below `root`, whose place is `place`."""
    for part_place, fingerprint in _TreeContents(is_tensor).iter_parts(root, place):
        collector.add(part_place, fingerprint)


class _TreeContents:
    """One pass from the leaves up (what is tensor-free?), one from the root down (which parts?)."""

    def __init__(self, is_tensor: Callable[[object], bool]) -> None:
        self._is_tensor = is_tensor
        self._digests: dict[int, bytes] = {}
        """id of a node -> its digest, or one of the three constants above."""
        self._hook_positions: dict[int, dict[Any, int]] = {}
        """id of a dict of hooks -> id of a hook in it -> its position, in the order of the calls.

        The ids count all hooks that the process registered before, of whatever module.
        """
        self._plain_callees: set[object] = set()
        """What makes tensors without attributes: nothing of such a tensor is a part."""
        self._places = PlaceJoiner()

    def iter_parts(self, root: Any, place: str) -> Iterator[tuple[str, str]]:
        """Yield (place, fingerprint) of the largest parts without a tensor."""
        self._digest_graph(root)
        visited_ids: set[int] = set()
        todo: list[tuple[Any, str, bool]] = [(root, place, False)]
        compared_ids: set[int] = set()
        while todo:
            node, at, is_in_attributes = todo.pop()
            digest = self._get_digest(node)
            if digest != _HOLDS_TENSOR:
                yield at, digest.hex()
            elif self._is_tensor(node):
                if is_in_attributes and id(node) not in compared_ids:
                    yield at, _UNKNOWN.hex()
                if cls := _find_tensor_class(node):
                    digest = self._hash_parts(b"frame", [cls.qualified_name])
                    yield f"{at}{CLASS_SUFFIX}", digest.hex()
                for attributes, components in _iter_tensor_attributes(node):
                    self._digest_graph(attributes)
                    compared_ids.update(map(id, components))
                    todo.append((attributes, f"{at} (attributes)", True))
            elif id(node) not in visited_ids:
                visited_ids.add(id(node))
                if frame := list(_iter_frame(node)):
                    yield f"{at or '.'}{CLASS_SUFFIX}", self._hash_parts(b"frame", frame).hex()
                # An array under a key is compared as a tensor; in a list it is data.
                are_keys = isinstance(node, dict) or type(node) is UnresolvedObject
                children = [
                    (child, self._places.join(at, key, "." if at else ""), is_in_attributes)
                    for key, child in chain(iter_children(node), _iter_attributes(node))
                    if is_in_attributes
                    or (
                        not (type(child) is UnresolvedObject and child.func in self._plain_callees)
                        and not (are_keys and is_numpy_array(child))
                    )
                ]
                todo.extend(reversed(children))

    def _digest_graph(self, root: Any) -> None:
        todo = [(root, False)] if type(root) not in ATOMIC_TYPES else []
        while todo:
            node, is_entered = todo.pop()
            if is_entered:
                self._digests[id(node)] = self._digest_node(node)
            elif id(node) not in self._digests:
                if self._is_tensor(node):
                    self._digests[id(node)] = _HOLDS_TENSOR
                    if (
                        type(node) is UnresolvedObject
                        and node.callee_name[1] not in _ATTRIBUTE_FUNCTIONS
                    ):
                        self._plain_callees.add(node.func)
                    continue
                # Until it is digested, a node that is met again closes a cycle.
                self._digests[id(node)] = _IN_PROGRESS
                if type(node) is dict and node.keys() >= _MODULE_KEYS:
                    self._number_hooks(node)
                todo.append((node, True))
                todo += [
                    (part, False) for part in _iter_parts(node) if type(part) not in ATOMIC_TYPES
                ]

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
                return self._combine(b"set", sorted(map(self._get_digest, node.items)))
            case UnresolvedObject():
                return self._hash_parts(b"object", _iter_parts(node))
            case GlobalName():
                return self._hash_parts(b"global", (node.qualified_name, node.computed))
            case _:
                is_class = type(node) is PersistentReference and type(node.target) is GlobalName
                return self._hash_parts(b"class", (node.id,)) if is_class else _UNKNOWN

    def _digest_dict(self, node: dict[Any, Any]) -> bytes:
        # A state_dict ends here, at its first tensor.
        if any(self._get_digest(v) == _HOLDS_TENSOR or is_numpy_array(v) for v in node.values()):
            return _HOLDS_TENSOR
        positions = self._hook_positions.get(id(node), {})
        items = [
            self._hash_parts(b"item", (positions.get(key, key) if positions else key, value))
            for key, value in node.items()
        ]
        attributes = node.state if type(node) is MappingNode else None
        return self._combine(b"dict", [*sorted(items), self._get_digest(attributes)])

    def _hash_parts(self, kind: bytes, parts: Iterable[object]) -> bytes:
        return self._combine(kind, [self._get_digest(part) for part in parts])

    def _get_digest(self, node: Any) -> bytes:
        """Return the digest of a node that was visited; an atom is its own."""
        if type(node) not in ATOMIC_TYPES:
            return self._digests.get(id(node), _UNKNOWN)
        data = node if type(node) is bytes else repr(node).encode("utf-8", "surrogatepass")
        if len(data) < _MAX_INLINE_BYTES:
            return type(node).__name__.encode() + b":" + data
        return create_content_hasher(type(node).__name__.encode() + b":" + data).digest()

    @staticmethod
    def _combine(kind: bytes, digests: list[bytes]) -> bytes:
        if _HOLDS_TENSOR in digests:
            return _HOLDS_TENSOR
        if _UNKNOWN in digests:
            return _UNKNOWN
        content_hash = create_content_hasher(kind)
        for digest in digests:
            content_hash.update(len(digest).to_bytes(2, "little") + digest)
        return content_hash.digest()


_MAX_INLINE_BYTES: Final = 48
_MODULE_KEYS: Final = frozenset({"_parameters", "_buffers", "_modules"})
_HOOK_FLAGS: Final = re.compile("_(?:with_kwargs|always_called)$")
"""Ends of dicts that say of hooks in another dict how they are called."""


def _iter_parts(node: Any) -> Iterator[Any]:
    """Yield the nodes that a node is made of."""
    if isinstance(node, dict):
        yield from chain(node.keys(), node.values())
        yield getattr(node, "state", None)
    elif type(node) in {list, tuple}:
        yield from node
    elif type(node) is SetNode:
        yield from node.items
    elif type(node) is UnresolvedObject:
        yield from (node.func, node.args, node.kwargs, node.state, node.items, node.pairs)
    elif type(node) is PersistentReference:
        yield node.id


_STATEFUL_FUNCTIONS: Final = frozenset(
    {"_rebuild_from_type", "_rebuild_from_type_v2", "_rebuild_parameter_with_state"}
)
_PARAMETER_FUNCTIONS: Final = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})
_ATTRIBUTE_FUNCTIONS: Final = _STATEFUL_FUNCTIONS | _PARAMETER_FUNCTIONS
"""Functions of `torch._utils` and `torch._tensor` whose tensors may have attributes."""


def _iter_tensor_attributes(node: Any) -> Iterator[tuple[object, list[object]]]:
    """Yield the attributes of a tensor subclass or a parameter, if it has any.

    With them the tensors among them whose values are compared as components of that tensor.
    """
    for _ in range(_MAX_WRAPPERS):
        if type(node) is not UnresolvedObject or not node.args:
            return
        name = node.callee_name[1]
        if name in _STATEFUL_FUNCTIONS and len(node.args) == 4 and node.args[3]:
            yield node.args[3], _list_components(node.args[0], node.args[3])
        if name in _STATEFUL_FUNCTIONS and len(node.args) == 4 and _is_jagged(node.args[0]):
            yield node.args[2], _list_jagged_tensors(node.args[2])
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


def _list_components(func: Any, attributes: Any) -> list[object]:
    """Return the attributes that hold the elements of a tensor without a storage of its own."""
    mappings = attributes if type(attributes) is tuple else (attributes,)
    fields = [mapping for mapping in mappings if isinstance(mapping, dict)]
    match func:
        case GlobalName(name="_rebuild_wrapper_subclass"):
            return [value for mapping in fields for value in mapping.values()]
        case GlobalName() if _is_jagged(func):
            return _list_jagged_tensors(fields)
        case _:
            return []


def _is_jagged(func: object) -> bool:
    """Whether a function makes jagged nested tensors."""
    return type(func) is GlobalName and func.name == "_rebuild_njt"


def _list_jagged_tensors(mappings: Iterable[object]) -> list[object]:
    """Return the tensors of a jagged tensor in its arguments, or its attributes.

    The sizes in its cache follow from the offsets.
    """
    fields = [mapping for mapping in mappings if isinstance(mapping, dict)]
    caches = [mapping.get("_metadata_cache") for mapping in fields]
    sizes = [cache for cache in caches if isinstance(cache, dict)]
    names = ("values", "offsets", "lengths", "_values", "_offsets", "_lengths")
    pairs = [*product(fields, names), *product(sizes, ("min_seqlen", "max_seqlen"))]
    return [mapping.get(name) for mapping, name in pairs]


_MAX_WRAPPERS: Final = 8


def _iter_frame(node: Any) -> Iterator[object]:
    """Yield what an object is made of besides the children that `iter_children` names."""
    if type(node) is UnresolvedObject:
        yield node.func
        yield from (part for part in node.args if type(part) in ATOMIC_TYPES)
        yield from (
            part
            for part in (node.state if type(node.state) is tuple else (node.state,))
            if type(part) in ATOMIC_TYPES and part is not None
        )


def _iter_attributes(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a dict subclass: `_metadata` of a state_dict."""
    state = node.state if type(node) is MappingNode else None
    if state is not None:
        yield from iter_children(state) if isinstance(state, dict) else (("(attributes)", state),)
