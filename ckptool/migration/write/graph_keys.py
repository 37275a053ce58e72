"""Keys of a graph's mapping -> the names that the description of the file has for them."""

from collections.abc import Iterator, Mapping
from typing import Any

from ckptool.formats.pickle.graph import SetMembers
from ckptool.formats.pickle.nodes import GlobalName, SetNode, SizeNode, UnresolvedObject
from ckptool.formats.pickle.places import KeyDeduplicator
from ckptool.formats.pickle.plain_values import format_key
from ckptool.migration.write.plain_nodes import find_class, get_callee, read_bytes, resolve_name


def iter_named_pairs(pairs: Mapping[Any, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, key, child) of each pair; the name is what places in the file have for the key.

    Two keys of the same text, such as 1 and "1", have different names.
    """
    names: dict[str, None] = {}
    make_unique = KeyDeduplicator(names)
    for key, child in pairs.items():
        name = key if type(key) is str else format_key(_describe_key(key))
        if name in names:
            name = make_unique(name)
        names[name] = None
        yield name, key, child


def _describe_key(key: Any) -> Any:
    """Return a key as the reader that describes files has it.

    A graph has each name and each call as spelled: bytes are a call, `builtins` is `__builtin__`.
    """
    if type(key) is tuple:  # of a bounded number of nodes: see `require_hashable_key`
        return tuple(map(_describe_key, key))
    if type(key) is SetMembers:
        return SetNode(key, is_frozen=key.is_frozen)
    return _describe_object(key) if type(key) is UnresolvedObject else key


def _describe_object(node: UnresolvedObject) -> Any:
    content, callee, cls = read_bytes(node), get_callee(node), find_class(node)
    if content is not None:
        return content
    if callee == ("torch", "Size") and len(node.args) == 1:
        return SizeNode(node.args[0])
    if callee == ("builtins", "frozenset") and len(node.args) == 1:
        return SetNode(node.args[0], is_frozen=True)
    if not isinstance(cls, GlobalName):
        return node
    contents = [(part, read_bytes(part)) for part in node.args]
    args = tuple(part if content is None else content for part, content in contents)
    described = UnresolvedObject(GlobalName(*resolve_name(cls)), args)
    described.state, described.items, described.pairs = node.state, node.items, node.pairs
    return described
