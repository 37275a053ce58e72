"""Nested inputs and outputs of forward: iterate over leaves by path, map tensors."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

MAX_DEPTH = 8
_PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None))


def iter_leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of nested tuples, lists, dicts and dataclasses: "[0]", ".loss"."""
    if isinstance(value, Tensor) or depth > MAX_DEPTH:
        yield path, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from iter_leaves(child, f"{path}[{key!r}]", depth + 1)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, child in zip(value._fields, value, strict=True):
            yield from iter_leaves(child, f"{path}.{name}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from iter_leaves(child, f"{path}[{index}]", depth + 1)
    elif _is_dataclass_instance(value):
        for name, child in _list_fields(value):
            yield from iter_leaves(child, f"{path}.{name}", depth + 1)
    else:
        yield path, value


def tree_map(value: Any, transform: Callable[[Tensor], Tensor]) -> Any:
    """Apply `transform` to every tensor in nested tuples, lists, dicts and dataclasses.

    torch.utils._pytree would pass over dataclasses that are not registered with it.
    """
    if isinstance(value, Tensor):
        return transform(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(tree_map(child, transform) for child in value))
    if type(value) in {list, tuple}:
        return type(value)(tree_map(child, transform) for child in value)
    if type(value) is dict:
        return {key: tree_map(child, transform) for key, child in value.items()}
    if _is_dataclass_instance(value):
        return dataclasses.replace(
            value, **{name: tree_map(child, transform) for name, child in _list_fields(value)}
        )
    return value


def is_comparable(leaf: object) -> bool:
    """Whether a leaf is a plain value (number, str, bytes, None) that can be compared."""
    return isinstance(leaf, _PLAIN_TYPES)


def _is_dataclass_instance(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _list_fields(value: Any) -> list[tuple[str, Any]]:
    names = [field.name for field in dataclasses.fields(value) if field.init]
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
