"""GlobalNames of a pickle -> GlobalUse: Safety, and the first place of the name in the tree."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.pickle.nodes import (
    GETATTR,
    SEQUENCE_TYPES,
    GlobalName,
    MappingNode,
    PersistentReference,
    SetNode,
    UnresolvedObject,
)
from ckptool.formats.pickle.plain_values import format_key
from ckptool.formats.pickle.safe_globals import classify_global
from ckptool.locations import Location
from ckptool.model import Checkpoint, Container, GlobalUse, Safety
from ckptool.phrases import truncate

_MAX_SHOWN_STEPS = 32
"""Maximum number of keys in the text of a place."""
_MAX_STEP_CHARS = 200
"""Maximum characters of one key in it."""


def find_global_uses(
    names: Iterable[GlobalName],
    root: object = None,
    classify: Callable[[GlobalName], Safety] = classify_global,
) -> tuple[GlobalUse, ...]:
    """Return the Safety of each name, and its place in the tree; "" if safe or not in the tree."""
    safety_by_name = {(name.module, name.name): (name, classify(name)) for name in names}
    unsafe_names = {name for name, safety in safety_by_name.values() if safety is not Safety.SAFE}
    places, getattr_calls = _locate_globals(root, unsafe_names)
    method = _describe_bound_methods(getattr_calls)
    return tuple(
        GlobalUse(
            name.module,
            name.name,
            safety,
            places.get(name, ""),
            method if (name.module, name.name) == GETATTR else "",
        )
        for name, safety in safety_by_name.values()
    )


def build_damaged_checkpoint(
    path: Location, container: Container, nbytes: int, names: Sequence[GlobalName], reason: str
) -> Checkpoint:
    """Return a Checkpoint without states that lists the globals of an unreadable file.

    Raises:
        CorruptCheckpointError: none of the globals is dangerous.
    """
    return damaged_with_uses(path, container, nbytes, find_global_uses(names), reason)


def damaged_with_uses(
    path: Location, container: Container, nbytes: int, uses: Iterable[GlobalUse], reason: str
) -> Checkpoint:
    """As `build_damaged_checkpoint`, for names that are classified already.

    Raises:
        CorruptCheckpointError: none of the names is dangerous.
    """
    global_uses = tuple(uses)
    if all(use.safety is not Safety.DANGEROUS for use in global_uses):
        raise CorruptCheckpointError(path, reason)
    return Checkpoint(path, container, nbytes, (), globals=global_uses, damage=reason)


def _describe_bound_methods(calls: Sequence[UnresolvedObject]) -> str:
    """Return "METHOD of CLASS" of the first call of getattr if all are bound methods; else "".

    Of a class itself, whose members and methods are looked up as well: "MEMBER of the class CLASS".

    A bound method is pickled as getattr(object, name): its object is of a class that torch.load
    does not call dangerous, and the name is no special one.
    """
    descriptions = [_describe_bound_method(call) for call in calls]
    return descriptions[0] if descriptions and all(descriptions) else ""


def _describe_bound_method(call: UnresolvedObject) -> str:
    owner, name = call.args if len(call.args) == 2 else (None, None)
    if type(name) is not str or not name.isidentifier() or name.startswith("__"):
        return ""
    kind = "the class " if type(owner) is GlobalName else ""
    if type(owner) is UnresolvedObject and isinstance(owner.state, dict | tuple):
        owner = owner.func
    if type(owner) is not GlobalName or classify_global(owner) is Safety.DANGEROUS:
        return ""
    return f"`{truncate(name, _MAX_STEP_CHARS)}` of {kind}{owner.qualified_name}"


def _locate_globals(
    root: object, names: set[GlobalName]
) -> tuple[dict[GlobalName, str], list[UnresolvedObject]]:
    """Return name -> its first place, in the order of the file, and the calls of getattr.

    Each node is visited once. The calls are complete only if all names are in the tree.
    """
    places: dict[GlobalName, str] = {}
    getattr_calls: list[UnresolvedObject] = []
    visited_ids: set[int] = set()
    todo: list[tuple[object, Any]] = [(root, None)]
    has_getattr = any((name.module, name.name) == GETATTR for name in names)
    while todo and (has_getattr or len(places) < len(names)):
        node, path = todo.pop()
        if type(node) is GlobalName:
            if node in names:
                places.setdefault(node, _format_place(path))
        elif id(node) not in visited_ids:
            children = _list_children(node)
            if type(node) is UnresolvedObject and node.callee_name == GETATTR:
                getattr_calls.append(node)
            if children:
                visited_ids.add(id(node))
                todo.extend(
                    (child, (path, key) if key else path) for key, child in reversed(children)
                )
    return places, getattr_calls


_COMPOUND_KEY_TYPES: Final = SEQUENCE_TYPES | {GlobalName, UnresolvedObject}


def _list_children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        children = [(format_key(key), child) for key, child in node.items()]
        children += [("", key) for key in node if type(key) in _COMPOUND_KEY_TYPES]
        if type(node) is MappingNode:
            children += [("", part) for part in (*node.kind[1:], node.state) if part]
        return children
    if type(node) in SEQUENCE_TYPES:
        return [(str(index), child) for index, child in enumerate(node)]
    if type(node) is SetNode:
        return [(str(index), child) for index, child in enumerate(node.items)]
    if type(node) is PersistentReference:
        return [("", node.persistent_id)]
    if type(node) is UnresolvedObject:
        parts = (node.func, *node.args, node.kwargs, node.state, node.items, node.pairs)
        return [("", part) for part in parts if part is not None]
    return []


def _format_place(path: Any) -> str:
    keys: list[str] = []
    while path is not None and len(keys) < _MAX_SHOWN_STEPS:
        path, key = path
        keys.append(truncate(key, _MAX_STEP_CHARS))
    if path is not None:
        keys.append("...")
    return ".".join(reversed(keys))
