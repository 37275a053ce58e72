"""GlobalNames of a pickle -> GlobalUse: Safety, and the first place of the name in the tree."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.globals import judge
from ckptool.formats.nodes import Elements, Global, Opaque, Ordered, Persistent
from ckptool.formats.plain import text_key
from ckptool.locations import Location
from ckptool.model import Checkpoint, Container, GlobalUse, Safety

_SHOWN = 32
"""Maximum number of keys in the text of a place."""


def uses(
    names: Iterable[Global], root: object = None, judged_by: Callable[[Global], Safety] = judge
) -> tuple[GlobalUse, ...]:
    """Return the Safety of each name, and its place in the tree; "" if safe or not in the tree."""
    judged = {(name.module, name.name): (name, judged_by(name)) for name in names}
    wanted = {name for name, safety in judged.values() if safety is not Safety.SAFE}
    places = _places(root, wanted)
    return tuple(
        GlobalUse(name.module, name.name, safety, places.get(name, ""))
        for name, safety in judged.values()
    )


def damaged(
    path: Location, container: Container, nbytes: int, names: Sequence[Global], reason: str
) -> Checkpoint:
    """Return a Checkpoint without states that lists the globals of an unreadable file.

    Raises:
        CorruptCheckpointError: none of the globals is dangerous.
    """
    return named(path, container, nbytes, uses(names), reason)


def named(
    path: Location, container: Container, nbytes: int, found: Iterable[GlobalUse], reason: str
) -> Checkpoint:
    """As `build_damaged_checkpoint`, for names that are classified already."""
    used = tuple(found)
    if all(use.safety is not Safety.DANGEROUS for use in used):
        raise CorruptCheckpointError(path, reason)
    return Checkpoint(path, container, nbytes, (), globals=used, damage=reason)


def _places(root: object, wanted: set[Global]) -> dict[Global, str]:
    """Return name -> its first place, in the order of the file; each node is visited once."""
    found: dict[Global, str] = {}
    seen: set[int] = set()
    todo: list[tuple[object, Any]] = [(root, None)]
    while todo and len(found) < len(wanted):
        node, link = todo.pop()
        if type(node) is Global:
            if node in wanted:
                found.setdefault(node, _place(link))
        elif id(node) not in seen:
            children = _children(node)
            if children:
                seen.add(id(node))
                todo.extend(
                    (child, (link, key) if key else link) for key, child in reversed(children)
                )
    return found


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        inner = [(text_key(key), child) for key, child in node.items()]
        inner += [("", key) for key in node if type(key) in {Global, Opaque, tuple}]
        return [*inner, ("", node.state)] if type(node) is Ordered and node.state else inner
    if type(node) is list or type(node) is tuple:
        return [(str(index), child) for index, child in enumerate(node)]
    if type(node) is Elements:
        return [(str(index), child) for index, child in enumerate(node.items)]
    if type(node) is Persistent:
        return [("", node.id)]
    if type(node) is Opaque:
        parts = (node.func, *node.args, node.kwargs, node.state, node.items, node.pairs)
        return [("", part) for part in parts if part is not None]
    return []


def _place(link: Any) -> str:
    keys: list[str] = []
    while link is not None and len(keys) < _SHOWN:
        link, key = link
        keys.append(key)
    if link is not None:
        keys.append("...")
    return ".".join(reversed(keys))
