"""Non-tensor nodes -> plain values if they are data, and short descriptions."""

from typing import Any, Final

from ckptool.formats.pickle.nodes import (
    ATOMIC_TYPES,
    GETATTR,
    SEQUENCE_TYPES,
    GlobalName,
    MappingNode,
    PersistentReference,
    SetNode,
    SizeNode,
    UnresolvedObject,
)
from ckptool.formats.pickle.numpy_arrays import read_numpy_scalar
from ckptool.phrases import make_printable, truncate

NOT_PLAIN: Final = object()
"""Returned by `PlainValueConverter.convert_node` for a node that is not plain data."""

_MAX_LEAVES: Final = 10_000
"""Leaves of one value; a larger value is NOT_PLAIN and only described."""
_CHARS_PER_LEAF: Final = 100
"""A text counts as one leaf, and as one more for each of so many characters."""
_MAX_DEPTH: Final = 64
_MAX_TEXT_LENGTH: Final = 80
_MAX_STRING_LENGTH: Final = 10_000
_MAX_INT_BITS: Final = 1_024


class PlainValueConverter:
    """Converts nodes to None, numbers, strings, and lists and dicts of them; each node once."""

    def __init__(self) -> None:
        self._results: dict[int, tuple[object, int]] = {}

    def convert_node(self, node: object) -> object:
        """Return the plain value of `node`, or NOT_PLAIN."""
        return self._convert_counted(node, 0)[0]

    def _convert_counted(self, node: Any, depth: int) -> tuple[object, int]:
        """Return the plain value and its number of leaves, shared ones counted each time."""
        node_type = type(node)
        if node_type in ATOMIC_TYPES:
            return _convert_atom(node), _count_atom_leaves(node)
        cached_result = self._results.get(id(node))
        if cached_result is not None:
            return cached_result
        if depth > _MAX_DEPTH:
            return _NO_VALUE
        # Until it is converted, a node is not plain: this ends a cycle.
        self._results[id(node)] = _NO_VALUE
        result = self._results[id(node)] = self._convert_container(node, depth)
        return result

    def _convert_container(self, node: Any, depth: int) -> tuple[object, int]:
        if isinstance(node, dict):
            return self._convert_mapping(node, depth)
        if type(node) in SEQUENCE_TYPES or type(node) is SetNode:
            return self._convert_sequence(node.items if type(node) is SetNode else node, depth)
        if type(node) is GlobalName:
            return (node.qualified_name, 1) if is_torch_constant(node) else _NO_VALUE
        if type(node) is UnresolvedObject:
            return self._convert_object(node, depth)
        return _NO_VALUE

    def _convert_mapping(self, node: dict[Any, Any], depth: int) -> tuple[object, int]:
        if len(node) > _MAX_LEAVES or (type(node) is MappingNode and node.state is not None):
            return _NO_VALUE
        if is_optimizer_state(node):  # it is a state of its own, even without a tensor
            return _NO_VALUE
        values, leaves = {}, 1
        for key, child in node.items():
            value, count = self._convert_counted(child, depth + 1)
            leaves += count + _count_atom_leaves(key) - 1
            if value is NOT_PLAIN or type(key) not in ATOMIC_TYPES or leaves > _MAX_LEAVES:
                return _NO_VALUE
            values[format_key(key)] = value
        return values, leaves

    def _convert_sequence(self, node: Any, depth: int) -> tuple[object, int]:
        if len(node) > _MAX_LEAVES:
            return _NO_VALUE
        values, leaves = [], 1
        for child in node:
            value, count = self._convert_counted(child, depth + 1)
            leaves += count
            if value is NOT_PLAIN or leaves > _MAX_LEAVES:
                return _NO_VALUE
            values.append(value)
        return values, leaves

    def _convert_object(self, node: UnresolvedObject, depth: int) -> tuple[object, int]:
        """Return the value of a Namespace, a dict or list subclass, a path, or a numpy number.

        Of a config object (a dataclass, OmegaConf, pydantic, attrs), its fields.
        """
        scalar = convert_simple_object(node)
        if scalar is not NOT_PLAIN:
            return scalar, 1
        fields = _read_config_fields(node)
        if fields is not NOT_PLAIN:
            return self._convert_counted(fields, depth + 1)
        contents = [content for content in (node.pairs, node.state, node.items) if content]
        if len(contents) == 1 and not node.args and not node.kwargs:
            return self._convert_counted(contents[0], depth + 1)
        return _NO_VALUE


_NO_VALUE: Final = (NOT_PLAIN, 0)


def _read_config_fields(node: UnresolvedObject) -> object:
    """Return the node with the fields of a config object, or NOT_PLAIN.

    OmegaConf keeps them beside links to the parent, pydantic beside the names that were set, and
    a class with `__slots__` behind the `__dict__` that it does not have.
    """
    state = node.state
    if type(state) is tuple and len(state) == 2 and not state[0] and isinstance(state[1], dict):
        return state[1]
    if not isinstance(state, dict):
        return NOT_PLAIN
    if node.callee_name[0].partition(".")[0] == "omegaconf":
        return state.get("_content", state.get("_val", NOT_PLAIN))
    if "__pydantic_fields_set__" in state or "__fields_set__" in state:
        return state.get("__dict__", NOT_PLAIN)
    return NOT_PLAIN


def count_leaves(value: object, limit: int) -> int:
    """Return the leaves of a plain value, shared ones counted each time; above `limit`, more."""
    count = 0
    todo = [value]
    while todo and count <= limit:
        part = todo.pop()
        if isinstance(part, dict):
            count += sum(map(_count_atom_leaves, part))
            todo.extend(part.values())
        elif isinstance(part, list):
            count += 1
            todo.extend(part)
        else:
            count += _count_atom_leaves(part)
    return count


def _count_atom_leaves(atom: object) -> int:
    return 1 + len(atom) // _CHARS_PER_LEAF if isinstance(atom, str | bytes) else 1


def is_optimizer_state(node: object) -> bool:
    """Whether a node is an optimizer's state_dict(): it has `state` and `param_groups`."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), dict)
        and isinstance(node.get("param_groups"), list | dict)
    )


def is_optimizer(node: object) -> bool:
    """Whether a node is a pickled optimizer: its attributes are those of its state_dict()."""
    return type(node) is UnresolvedObject and is_optimizer_state(node.state)


def number_parameters(param_groups: object) -> dict[int, str]:
    """Return id of a parameter's node -> its number, by which Optimizer.state_dict() names it.

    A pickled optimizer has the parameters themselves as the keys of its state.
    """
    groups = param_groups if isinstance(param_groups, list) else []
    members = (group.get("params") for group in groups if isinstance(group, dict))
    # Each list once: groups of a crafted file share one.
    lists = {id(nodes): nodes for nodes in members if isinstance(nodes, list)}
    parameters = [node for nodes in lists.values() for node in nodes]
    return {
        id(node): str(number)
        for number, node in enumerate(parameters)
        if type(node) is UnresolvedObject
    }


def format_key(key: object) -> str:
    """Return a dict's key as text; a key that is no atom is described."""
    if type(key) is str:
        return key
    if isinstance(key, bytes):
        return key.decode("latin-1")
    return str(key) if type(key) in ATOMIC_TYPES else _describe_key(key, 1)


def _describe_key(key: Any, depth: int) -> str:
    """Return a key that is no text: "('layer', 0)", or "net.Color(1)" of an enum."""
    if type(key) in ATOMIC_TYPES:
        return _describe_atom(key)
    name, parts = "", key
    member = describe_class_attribute(key)
    if member:
        return member
    if type(key) is UnresolvedObject and not (key.state or key.items or key.pairs):
        name = escape_unprintable(key.qualified_name)
        parts = key.args if all(type(part) in ATOMIC_TYPES for part in key.args) else None
    if not isinstance(parts, tuple) or len(parts) > _MAX_KEY_PARTS or depth > _MAX_KEY_PARTS:
        return describe_node(key)
    texts = [_describe_key(part, depth + 1) for part in parts]
    if any(len(text) > _MAX_TEXT_LENGTH for text in texts):
        return describe_node(key)
    return f"{name}({', '.join(texts)}{',' if not name and len(texts) == 1 else ''})"


def describe_class_attribute(node: object) -> str:
    """Return "net.Color.RED" for getattr(net.Color, "RED"), else "".

    Python 3.11.0 to 3.11.3 pickles members of enums so.
    """
    if type(node) is not UnresolvedObject or node.callee_name != GETATTR or len(node.args) != 2:
        return ""
    cls, name = node.args
    if type(cls) is not GlobalName or type(name) is not str:
        return ""
    return escape_unprintable(f"{cls.qualified_name}.{name}")


_MAX_KEY_PARTS: Final = 8
"""Parts of a key that is no text, and levels of them, that are written out in its description."""


def is_torch_constant(node: GlobalName) -> bool:
    """Whether a global is a constant of torch: a dtype, a layout, a memory format."""
    return node.module == "torch" and node.name.islower()


def convert_simple_object(node: UnresolvedObject) -> object:
    """Return the text or number of a path, torch.device, complex or numpy scalar, or NOT_PLAIN."""
    module, name = node.callee_name
    if module.startswith("pathlib") and all(type(part) is str for part in node.args):
        return "/".join(node.args).replace("//", "/")
    if (module, name) == ("torch", "device") and node.args and type(node.args[0]) is str:
        return ":".join(str(part) for part in node.args if type(part) in {str, int})
    if (module, name) == ("builtins", "complex") and all(type(n) is float for n in node.args):
        return str(complex(*node.args[:2]))
    if name == "scalar" and module.endswith("multiarray"):
        number = read_numpy_scalar(node.args)
        return NOT_PLAIN if number is None else number
    return NOT_PLAIN


_SEQUENCE_NAMES: Final[dict[type, str]] = {list: "list", tuple: "tuple", SizeNode: "torch.Size"}


def describe_node(node: Any) -> str:
    """Return a short, printable description: "dict of 3", "bytes of 16", a quoted string."""
    node_type = type(node)
    if node_type in ATOMIC_TYPES:
        return _describe_atom(node)
    if isinstance(node, dict):
        return f"dict of {len(node)}"
    if node_type is SetNode:
        return f"{'frozenset' if node.is_frozen else 'set'} of {len(node.items)}"
    return (
        f"{_SEQUENCE_NAMES[node_type]} of {len(node)}"
        if node_type in _SEQUENCE_NAMES
        else _describe_object(node)
    )


def _describe_atom(node: Any) -> str:
    node_type = type(node)
    if node_type is str:
        return quote_name(node)
    if isinstance(node, bytes):
        return f"{'bytes' if node_type is bytes else 'bytearray'} of {len(node)}"
    if node_type is int and node.bit_length() > _MAX_INT_BITS:
        return f"a number of {node.bit_length()} bits"
    return repr(node)


def _describe_object(node: Any) -> str:
    if type(node) is GlobalName:
        return escape_unprintable(node.qualified_name)
    if type(node) is PersistentReference:
        return "a storage"
    if type(node) is not UnresolvedObject:
        return type(node).__name__
    if node.callee_name[1] == "_reconstruct" and node.callee_name[0].endswith("multiarray"):
        return "a NumPy array"
    value = convert_simple_object(node)
    if value is not NOT_PLAIN:
        return quote_name(value) if type(value) is str else repr(value)
    return describe_class_attribute(node) or f"a {escape_unprintable(node.qualified_name)}"


_MAX_DICT_TEXT_LENGTH: Final = 72
"""Characters up to which a small dict, such as hyper-parameters, is shown in full."""


def describe_value(node: object, value: object) -> str:
    """Describe a node by its plain value: lists and dicts of up to 8 items are shown in full."""
    if (
        isinstance(value, list)
        and 0 < len(value) <= 8
        and all(type(v) in ATOMIC_TYPES for v in value)
    ):
        text = ", ".join(describe_node(item) for item in value)
        if len(text) <= _MAX_TEXT_LENGTH:
            return f"[{text}]"
    if isinstance(value, dict) and 0 < len(value) <= 8:
        text = ", ".join(
            f"{escape_unprintable(str(k))}: {describe_value(v, v)}" for k, v in value.items()
        )
        if len(text) <= _MAX_DICT_TEXT_LENGTH:
            return f"{{{text}}}"
    return describe_node(node)


def quote_name(text: str) -> str:
    return f"'{escape_unprintable(text)}'"


def escape_unprintable(text: str) -> str:
    """Return `text` cut to 80 characters, with unprintable ones escaped: they control terminals."""
    return make_printable(truncate(text, _MAX_TEXT_LENGTH))


def _convert_atom(node: Any) -> object:
    """Return an atom, or NOT_PLAIN for bytes and for strings and ints above the limits."""
    node_type = type(node)
    if isinstance(node, bytes) or (node_type is str and len(node) > _MAX_STRING_LENGTH):
        return NOT_PLAIN
    return NOT_PLAIN if node_type is int and node.bit_length() > _MAX_INT_BITS else node
