"""Non-tensor nodes -> plain values if they are data, and short descriptions."""

from typing import Any, Final

from ckptool.formats.arrays import numpy_scalar
from ckptool.formats.nodes import ATOMS, Elements, Global, Opaque, Ordered, Persistent

NOT_PLAIN: Final = object()
"""Returned by `PlainValueConverter.convert_node` for a node that is not plain data."""

_LEAVES: Final = 10_000
"""Leaves of one value; a larger value is NOT_PLAIN and only described."""
_DEPTH: Final = 64
_TEXT: Final = 80
_STRING: Final = 10_000
_BITS: Final = 1_024


class Plain:
    """Converts nodes to None, numbers, strings, and lists and dicts of them; each node once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[object, int]] = {}

    def value(self, node: object) -> object:
        """Return the plain value of `node`, or NOT_PLAIN."""
        return self._value(node, 0)[0]

    def _value(self, node: Any, depth: int) -> tuple[object, int]:
        """Return the plain value and its number of leaves, shared ones counted each time."""
        kind = type(node)
        if kind in ATOMS:
            return _atom(node), 1
        known = self._known.get(id(node))
        if known is not None:
            return known
        if depth > _DEPTH:
            return _FAILED
        # Until it is converted, a node is not plain: this ends a cycle.
        self._known[id(node)] = _FAILED
        made = self._known[id(node)] = self._made(node, depth)
        return made

    def _made(self, node: Any, depth: int) -> tuple[object, int]:
        if isinstance(node, dict):
            return self._mapping(node, depth)
        if type(node) in {list, tuple, Elements}:
            return self._sequence(node.items if type(node) is Elements else node, depth)
        if type(node) is Global:
            return (node.qualified, 1) if is_constant(node) else _FAILED
        if type(node) is Opaque:
            return self._object(node, depth)
        return _FAILED

    def _mapping(self, node: dict[Any, Any], depth: int) -> tuple[object, int]:
        if len(node) > _LEAVES or (type(node) is Ordered and node.state is not None):
            return _FAILED
        if is_optimizer(node):  # it is a state of its own, even without a tensor
            return _FAILED
        made, leaves = {}, 1
        for key, child in node.items():
            value, count = self._value(child, depth + 1)
            leaves += count
            if value is NOT_PLAIN or type(key) not in ATOMS or leaves > _LEAVES:
                return _FAILED
            made[text_key(key)] = value
        return made, leaves

    def _sequence(self, node: Any, depth: int) -> tuple[object, int]:
        if len(node) > _LEAVES:
            return _FAILED
        made, leaves = [], 1
        for child in node:
            value, count = self._value(child, depth + 1)
            leaves += count
            if value is NOT_PLAIN or leaves > _LEAVES:
                return _FAILED
            made.append(value)
        return made, leaves

    def _object(self, node: Opaque, depth: int) -> tuple[object, int]:
        """Return the value of a Namespace, a dict or list subclass, a path, or a numpy number."""
        scalar = simple_object(node)
        if scalar is not NOT_PLAIN:
            return scalar, 1
        holds = [part for part in (node.pairs, node.state, node.items) if part]
        if len(holds) == 1 and not node.args and not node.kwargs:
            return self._value(holds[0], depth + 1)
        return _FAILED


_FAILED: Final = (NOT_PLAIN, 0)


def is_optimizer(node: object) -> bool:
    """Whether a node is an optimizer's state_dict(): it has `state` and `param_groups`."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), dict)
        and isinstance(node.get("param_groups"), list | dict)
    )


def text_key(key: object) -> str:
    """Return a dict's key as text; a key that is no atom is described."""
    if type(key) is str:
        return key
    if type(key) is bytes:
        return key.decode("latin-1")
    return str(key) if type(key) in ATOMS else words(key)


def is_constant(node: Global) -> bool:
    """Whether a global is a constant of torch: a dtype, a layout, a memory format."""
    return node.module == "torch" and node.name.islower()


def simple_object(node: Opaque) -> object:
    """Return the text or number of a path, torch.device, complex or numpy scalar, or NOT_PLAIN."""
    module, name = node.name
    if module.startswith("pathlib") and all(type(part) is str for part in node.args):
        return "/".join(node.args).replace("//", "/")
    if (module, name) == ("torch", "device") and node.args and type(node.args[0]) is str:
        return ":".join(str(part) for part in node.args if type(part) in {str, int})
    if (module, name) == ("builtins", "complex") and all(type(n) is float for n in node.args):
        return str(complex(*node.args[:2]))
    if name == "scalar" and module.endswith("multiarray"):
        number = numpy_scalar(node.args)
        return NOT_PLAIN if number is None else number
    return NOT_PLAIN


def words(node: Any) -> str:
    """Return a short, printable description: "dict of 3", "bytes of 16", a quoted string."""
    kind = type(node)
    if kind in ATOMS:
        return _atom_words(node)
    if isinstance(node, dict):
        return f"dict of {len(node)}"
    if kind is Elements:
        return f"set of {len(node.items)}"
    return f"{kind.__name__} of {len(node)}" if kind in {list, tuple} else _object_words(node)


def _atom_words(node: Any) -> str:
    kind = type(node)
    if kind is str:
        return quoted(node)
    if kind is bytes:
        return f"bytes of {len(node)}"
    if kind is int and node.bit_length() > _BITS:
        return f"a number of {node.bit_length()} bits"
    return repr(node)


def _object_words(node: Any) -> str:
    if type(node) is Global:
        return printable(node.qualified)
    if type(node) is Persistent:
        return "a storage"
    if type(node) is not Opaque:
        return type(node).__name__
    value = simple_object(node)
    if value is not NOT_PLAIN:
        return quoted(value) if type(value) is str else repr(value)
    return f"a {printable(node.qualified)}"


_SHOWN: Final = 72
"""Characters up to which a small dict, such as hyper-parameters, is shown in full."""


def value_words(node: object, value: object) -> str:
    """Describe a node by its plain value: lists and dicts of up to 8 items are shown in full."""
    if isinstance(value, list) and 0 < len(value) <= 8 and all(type(v) in ATOMS for v in value):
        shown = ", ".join(words(item) for item in value)
        if len(shown) <= _TEXT:
            return f"[{shown}]"
    if isinstance(value, dict) and 0 < len(value) <= 8:
        shown = ", ".join(f"{printable(str(k))}: {value_words(v, v)}" for k, v in value.items())
        if len(shown) <= _SHOWN:
            return f"{{{shown}}}"
    return words(node)


def quoted(text: str) -> str:
    return f"'{printable(text)}'"


def printable(text: str) -> str:
    """Return `text` cut to 80 characters, with unprintable ones escaped: they control terminals."""
    cut = text[:_TEXT] + ("..." if len(text) > _TEXT else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _atom(node: Any) -> object:
    """Return an atom, or NOT_PLAIN for bytes and for strings and ints above the limits."""
    kind = type(node)
    if kind is bytes or (kind is str and len(node) > _STRING):
        return NOT_PLAIN
    return NOT_PLAIN if kind is int and node.bit_length() > _BITS else node
