"""Graph of nodes -> pickle bytes; nothing in it is imported or called."""

from collections.abc import Callable, Generator
from struct import pack
from typing import Any, Final

from ckptool.formats.nodes import Global, Opaque, Persistent, PickleError
from ckptool.formats.pickle_graph import Class, Members

_BATCH: Final = 1000
"""Items per MARK, as in Python's own pickler."""
_DONE: Final = object()
Nodes = Generator[Any, None, None]
"""Writes one node; yields the nodes to write before it goes on."""


def dump(root: object, protocol: int = 2) -> tuple[bytes, list[Persistent]]:
    """Return the pickle of `root`, and its persistent references in the order of writing.

    Raises:
        PickleError: a node in it cannot be written.
    """
    writer = _Writer()
    writer.out += b"\x80" + bytes([max(2, protocol)])
    todo: list[Nodes] = [writer.save(root)]
    while todo:
        child = next(todo[-1], _DONE)
        if child is _DONE:
            todo.pop()
        elif not writer.at_once(child):
            todo.append(writer.save(child))
    return bytes(writer.out) + b".", writer.persistent


class _Writer:
    """Pickle bytes written so far, and the memo of the nodes in them."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.persistent: list[Persistent] = []
        # The nodes are kept too: an id is unique only as long as its object lives.
        self._memo: dict[int, tuple[int, object]] = {}

    def at_once(self, node: object) -> bool:
        """Write `node` if it is in the memo or has no children; return whether it was written."""
        known = self._memo.get(id(node))
        if known is not None:
            index = known[0]
            self.out += b"h" + bytes([index]) if index < 256 else b"j" + pack("<I", index)
            return True
        atom = _ATOMS.get(type(node))
        if atom is None:
            return False
        self.out += atom(node)
        if type(node) in _KEPT:
            self._remember(node)
        return True

    def save(self, node: Any) -> Nodes:
        """Return the iterator that writes `node`.

        Raises:
            PickleError: its type cannot be written.
        """
        savers: dict[type, Callable[[Any], Nodes]] = {
            tuple: self._tuple,
            list: self._list,
            dict: self._dict,
            Opaque: self._object,
            Persistent: self._persistent,
            Members: self._members,
        }
        kind = type(node)
        if kind not in savers and kind not in _ATOMS:
            raise PickleError(f"a {kind.__name__} cannot be written")
        return savers.get(kind, self._atom)(node)

    def _atom(self, node: Any) -> Nodes:
        self.at_once(node)
        yield from ()

    def _remember(self, node: object) -> None:
        index = len(self._memo)
        self._memo[id(node)] = (index, node)
        self.out += b"q" + bytes([index]) if index < 256 else b"r" + pack("<I", index)

    def _tuple(self, node: tuple[Any, ...]) -> Nodes:
        if not node:
            self.out += b")"
            return
        self.out += b"("
        yield from node
        if id(node) in self._memo:
            # It contains itself through a list: writing its items has written it already.
            self.out += b"1"
            self.at_once(node)
            return
        self.out += b"t"
        self._remember(node)

    def _list(self, node: list[Any]) -> Nodes:
        self.out += b"]"
        self._remember(node)
        yield from self._appends(node, b"e")

    def _members(self, node: Members) -> Nodes:
        if node.frozen:
            self.out += b"("
            yield from node
            self.out += b"\x91"
            self._remember(node)
            return
        self.out += b"\x8f"
        self._remember(node)
        yield from self._appends(node, b"\x90")

    def _dict(self, node: dict[Any, Any]) -> Nodes:
        self.out += b"}"
        self._remember(node)
        yield from self._pairs(node)

    def _object(self, node: Opaque) -> Nodes:
        made = node.func
        yield made.cls if type(made) is Class else made
        yield node.args
        if type(made) is Class and node.kwargs is not None:
            yield node.kwargs
            self.out += b"\x92"
        else:
            self.out += b"\x81" if type(made) is Class else b"R"
        self._remember(node)
        yield from self._appends(node.items or [], b"e")
        yield from self._pairs(node.pairs or {})
        if node.state is not None:
            yield node.state
            self.out += b"b"

    def _persistent(self, node: Persistent) -> Nodes:
        self.persistent.append(node)
        yield node.id
        self.out += b"Q"

    def _appends(self, items: list[Any], opcode: bytes) -> Nodes:
        for start in range(0, len(items), _BATCH):
            self.out += b"("
            yield from items[start : start + _BATCH]
            self.out += opcode

    def _pairs(self, pairs: dict[Any, Any]) -> Nodes:
        items = [part for pair in pairs.items() for part in pair]
        yield from self._appends(items, b"u")


def _int(node: int) -> bytes:
    if 0 <= node < 1 << 16:
        return b"K" + bytes([node]) if node < 256 else b"M" + pack("<H", node)
    if -(1 << 31) <= node < 1 << 31:
        return b"J" + pack("<i", node)
    data = node.to_bytes(node.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data if len(data) < 256 else b"\x8b" + _sized(data)


def _sized(data: bytes) -> bytes:
    return pack("<I", len(data)) + data


def _str(node: str) -> bytes:
    return b"X" + _sized(node.encode("utf-8", "surrogatepass"))


def _global(node: Global) -> bytes:
    if "\n" in node.module + node.name:
        raise PickleError(f"{node.qualified!r} is no name that can be written")
    return b"c" + f"{node.module}\n{node.name}\n".encode()


def _bytes(node: bytes) -> bytes:
    return b"C" + bytes([len(node)]) + node if len(node) < 256 else b"B" + _sized(node)


_ATOMS: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: b"N",
    bool: lambda node: b"\x88" if node else b"\x89",
    int: _int,
    float: lambda node: b"G" + pack(">d", node),
    str: _str,
    bytes: _bytes,
    bytearray: lambda node: b"\x96" + pack("<Q", len(node)) + node,
    Global: _global,
}
_KEPT: Final = frozenset({str, bytes, bytearray, Global})
"""Types of atoms that get a memo slot."""
