"""Graph of nodes -> pickle bytes; nothing in it is imported or called."""

from collections.abc import Callable, Generator, Mapping
from struct import pack
from types import MappingProxyType
from typing import Any, Final

from ckptool.formats.pickle.graph import NewObjClass, SetMembers
from ckptool.formats.pickle.nodes import (
    GlobalName,
    PersistentReference,
    PickleError,
    UnresolvedObject,
)

_BATCH_ITEMS: Final = 1000
"""Items per MARK, as in Python's own pickler."""
_EXHAUSTED: Final = object()
NodeIterator = Generator[Any, None, None]
"""Writes one node; yields the nodes to write before it goes on."""


def write_pickle(
    root: object, protocol: int = 2, substitutes: Mapping[int, object] = MappingProxyType({})
) -> tuple[bytes, list[PersistentReference]]:
    """Return the pickle of `root`, and its persistent references in the order of writing.

    Args:
        root: the graph.
        protocol: of the pickle; 2 at the least.
        substitutes: id of a node -> the node to write in its place.

    Raises:
        PickleError: a node in it cannot be written.
    """
    writer = _PickleWriter(substitutes)
    writer.output += b"\x80" + bytes([max(2, protocol)])
    todo: list[NodeIterator] = [writer.save_node(root)]
    while todo:
        child = next(todo[-1], _EXHAUSTED)
        if child is _EXHAUSTED:
            todo.pop()
        elif not writer.try_write_leaf(child):
            todo.append(writer.save_node(child))
    return bytes(writer.output) + b".", writer.persistent_references


class _PickleWriter:
    """Pickle bytes written so far, and the memo of the nodes in them."""

    def __init__(self, substitutes: Mapping[int, object]) -> None:
        self._substitutes = substitutes
        self.output = bytearray()
        self.persistent_references: list[PersistentReference] = []
        # The nodes are kept too: an id is unique only as long as its object lives.
        self._memo: dict[int, tuple[int, object]] = {}

    def try_write_leaf(self, node: object) -> bool:
        """Write `node` if it is in the memo or has no children; return whether it was written."""
        memo_entry = self._memo.get(id(node))
        if memo_entry is not None:
            index = memo_entry[0]
            self.output += b"h" + bytes([index]) if index < 256 else b"j" + pack("<I", index)
            return True
        encode = _ATOM_ENCODERS.get(type(node))
        if encode is None:
            return False
        self.output += encode(node)
        if type(node) in _MEMOIZED_TYPES:
            self._memoize_node(node)
        return True

    def save_node(self, node: Any) -> NodeIterator:
        """Return the iterator that writes `node`.

        Raises:
            PickleError: its type cannot be written.
        """
        savers: dict[type, Callable[[Any], NodeIterator]] = {
            tuple: self._save_tuple,
            list: self._save_list,
            dict: self._save_dict,
            UnresolvedObject: self._save_object,
            PersistentReference: self._save_persistent_id,
            SetMembers: self._save_set,
        }
        node = self._substitutes.get(id(node), node)
        node_type = type(node)
        if node_type not in savers and node_type not in _ATOM_ENCODERS:
            raise PickleError(f"a {node_type.__name__} cannot be written")
        return savers.get(node_type, self._save_atom)(node)

    def _save_atom(self, node: Any) -> NodeIterator:
        self.try_write_leaf(node)
        yield from ()

    def _memoize_node(self, node: object) -> None:
        index = len(self._memo)
        self._memo[id(node)] = (index, node)
        self.output += b"q" + bytes([index]) if index < 256 else b"r" + pack("<I", index)

    def _save_tuple(self, node: tuple[Any, ...]) -> NodeIterator:
        if not node:
            self.output += b")"
            return
        self.output += b"("
        yield from node
        if id(node) in self._memo:
            # It contains itself through a list: writing its items has written it already.
            self.output += b"1"
            self.try_write_leaf(node)
            return
        self.output += b"t"
        self._memoize_node(node)

    def _save_list(self, node: list[Any]) -> NodeIterator:
        self.output += b"]"
        self._memoize_node(node)
        yield from self._save_batches(node, b"e")

    def _save_set(self, node: SetMembers) -> NodeIterator:
        if node.is_frozen:
            self.output += b"("
            yield from node
            self.output += b"\x91"
            self._memoize_node(node)
            return
        self.output += b"\x8f"
        self._memoize_node(node)
        yield from self._save_batches(node, b"\x90")

    def _save_dict(self, node: dict[Any, Any]) -> NodeIterator:
        self.output += b"}"
        self._memoize_node(node)
        yield from self._save_dict_items(node)

    def _save_object(self, node: UnresolvedObject) -> NodeIterator:
        func = node.func
        yield func.cls if type(func) is NewObjClass else func
        yield node.args
        if type(func) is NewObjClass and node.kwargs is not None:
            yield node.kwargs
            self.output += b"\x92"
        else:
            self.output += b"\x81" if type(func) is NewObjClass else b"R"
        self._memoize_node(node)
        yield from self._save_batches(node.items or [], b"e")
        yield from self._save_dict_items(node.pairs or {})
        if node.state is not None:
            yield node.state
            self.output += b"b"

    def _save_persistent_id(self, node: PersistentReference) -> NodeIterator:
        if type(node.target) is GlobalName:
            yield node.target
            return
        self.persistent_references.append(node)
        yield node.persistent_id
        self.output += b"Q"

    def _save_batches(self, items: list[Any], opcode: bytes) -> NodeIterator:
        for start in range(0, len(items), _BATCH_ITEMS):
            self.output += b"("
            yield from items[start : start + _BATCH_ITEMS]
            self.output += opcode

    def _save_dict_items(self, pairs: dict[Any, Any]) -> NodeIterator:
        items = [element for pair in pairs.items() for element in pair]
        yield from self._save_batches(items, b"u")


def _encode_int(node: int) -> bytes:
    if 0 <= node < 1 << 16:
        return b"K" + bytes([node]) if node < 256 else b"M" + pack("<H", node)
    if -(1 << 31) <= node < 1 << 31:
        return b"J" + pack("<i", node)
    data = node.to_bytes(node.bit_length() // 8 + 1, "little", signed=True)
    return (
        b"\x8a" + bytes([len(data)]) + data
        if len(data) < 256
        else b"\x8b" + _add_length_prefix(data)
    )


def _add_length_prefix(data: bytes) -> bytes:
    return pack("<I", len(data)) + data


def _encode_str(node: str) -> bytes:
    return b"X" + _add_length_prefix(node.encode("utf-8", "surrogatepass"))


def _encode_global(node: GlobalName) -> bytes:
    if "\n" in node.module + node.name:
        raise PickleError(f"{node.qualified_name!r} is not a name that can be written")
    return b"c" + f"{node.module}\n{node.name}\n".encode()


def _encode_bytes(node: bytes) -> bytes:
    return b"C" + bytes([len(node)]) + node if len(node) < 256 else b"B" + _add_length_prefix(node)


_ATOM_ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: b"N",
    bool: lambda node: b"\x88" if node else b"\x89",
    int: _encode_int,
    float: lambda node: b"G" + pack(">d", node),
    str: _encode_str,
    bytes: _encode_bytes,
    bytearray: lambda node: b"\x96" + pack("<Q", len(node)) + node,
    GlobalName: _encode_global,
}
_MEMOIZED_TYPES: Final = frozenset({str, bytes, bytearray, GlobalName})
"""Types of atoms that get a memo slot."""
