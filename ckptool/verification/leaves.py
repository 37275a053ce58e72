"""Nested inputs and outputs of forward: iterate over leaves by path, map tensors."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

DEPTH = 8
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of nested tuples, lists, dicts and dataclasses: "[0]", ".loss"."""
    if isinstance(value, Tensor) or depth > DEPTH:
        yield path, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from leaves(child, f"{path}[{key!r}]", depth + 1)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, child in zip(value._fields, value, strict=True):
            yield from leaves(child, f"{path}.{name}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from leaves(child, f"{path}[{index}]", depth + 1)
    elif _is_record(value):
        for name, child in _fields(value):
            yield from leaves(child, f"{path}.{name}", depth + 1)
    else:
        yield path, value


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `transform` to every tensor in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(child, change) for child in value))
    if type(value) in {list, tuple}:
        return type(value)(mapped(child, change) for child in value)
    if type(value) is dict:
        return {key: mapped(child, change) for key, child in value.items()}
    if _is_record(value):
        return dataclasses.replace(value, **{n: mapped(c, change) for n, c in _fields(value)})
    return value


def comparable(leaf: object) -> bool:
    """Whether a leaf is a plain value (number, str, bytes, None) that can be compared."""
    return isinstance(leaf, _PLAIN)


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> list[tuple[str, Any]]:
    names = [item.name for item in dataclasses.fields(value) if item.init]
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
