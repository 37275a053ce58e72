"""Describe a pickle without tensors, for the error message that refuses it."""

from typing import Any, Final

from ckptool.formats.pickle.nodes import (
    SEQUENCE_TYPES,
    UnresolvedObject,
)
from ckptool.formats.pickle.numpy_arrays import read_numpy_array
from ckptool.formats.pickle.plain_values import describe_node, escape_unprintable, format_key
from ckptool.phrases import join_limited, quote_code

_MAX_SHOWN_KEYS: Final = 3


def describe_tensorless_pickle(root: Any) -> str:
    """Return "contains no tensors, but ..." with its arrays, class or first keys."""
    arrays = sum(read_numpy_array(node, "") is not None for node in _list_two_levels(root))
    if arrays:
        count = "one NumPy array" if arrays == 1 else f"{arrays:,} NumPy arrays"
        return f"contains no tensors, but {count}: torch.save them as torch.from_numpy(...) of each"
    if type(root) is UnresolvedObject:
        return f"contains no tensors, but {describe_node(root)}"
    if isinstance(root, dict) and root:
        keys = join_limited(root, _MAX_SHOWN_KEYS, _quote_key)
        return f"contains no tensors, but a dict with {keys}"
    return f"contains no tensors, but {describe_node(root)}"


def _quote_key(key: object) -> str:
    return quote_code(escape_unprintable(format_key(key)))


def _list_two_levels(root: Any) -> list[Any]:
    values = _list_items(root) or [root]
    return [*values, *(nested_value for value in values for nested_value in _list_items(value))]


def _list_items(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return list(node) if type(node) in SEQUENCE_TYPES else []
