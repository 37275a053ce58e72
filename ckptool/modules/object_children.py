"""Container or plain object -> its children, each with its path step."""

import dataclasses
import sys
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import FunctionType, MappingProxyType, MethodType, SimpleNamespace
from typing import Final

LEAF_TYPES: Final = (str, bytes, int, float, complex, bool, type(None), type, range, slice)
"""Types without children."""
_OPAQUE_PACKAGES: Final = sys.stdlib_module_names | {"torch", "numpy", "builtins"}
"""Packages whose objects are not searched: they hold no model state."""


def iter_children(value: object) -> Iterator[tuple[str, object]]:
    """Yield (path step, child) for each child of `value`: ("[0]", x), (".name", x)."""
    match value:
        case dict() | MappingProxyType():
            for index, (key, child) in enumerate(list(value.items())):
                yield _format_key_step(key, index), child
        case list() | tuple() | deque():
            # list(value) calls len(), which raises for e3nn's tuples.
            yield from _iter_indexed(list(iter(value)))
        case set() | frozenset():
            yield from _iter_indexed(sorted(value, key=_make_sort_key))
        case partial():
            yield ".func", value.func
            yield ".args", value.args
            yield ".keywords", value.keywords
        case UserDict() | UserList():
            yield ".data", value.data
        case ChainMap():
            yield ".maps", value.maps
        case MethodType():
            yield ".__self__", value.__self__
        case FunctionType():
            yield from _iter_function_state(value)
        case _:
            yield from _iter_attributes(value)


def _iter_function_state(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Yield the closure variables and defaults of a function."""
    if (function.__module__ or "").partition(".")[0] in _OPAQUE_PACKAGES:
        return
    for index, cell in enumerate(function.__closure__ or ()):
        # A cell is empty until the enclosing function has assigned the variable.
        with suppress(ValueError):
            yield f".__closure__[{index}].cell_contents", cell.cell_contents
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__


def _iter_indexed(values: Iterable[object]) -> Iterator[tuple[str, object]]:
    for index, child in enumerate(values):
        yield f"[{index}]", child


def _format_key_step(key: object, index: int) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    has_plain_repr = all(isinstance(part, str | int | float | bytes | None) for part in parts)
    return f"[{key!r}]" if has_plain_repr else f"[#{index}]"


def _make_sort_key(value: object) -> tuple[str, str]:
    """Return a sort key for set elements that is the same in every run."""
    if isinstance(value, LEAF_TYPES):
        return type(value).__name__, repr(value)
    shape, dtype = getattr(value, "shape", ""), getattr(value, "dtype", "")
    return type(value).__name__, f"{dtype}{shape}"


def _iter_attributes(value: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes of a plain object, such as running statistics in a user's class."""
    if dataclasses.is_dataclass(value):
        names = [item.name for item in dataclasses.fields(value)]
    elif isinstance(value, SimpleNamespace) or is_plain_object(value):
        names = [*vars(value), *list_slots(type(value))]
    else:
        names = [] if _is_opaque(value) else list_slots(type(value))
    children: list[tuple[str, object]] = []
    for name in names:
        # A class may refuse an attribute by any exception: transformers' per-layer configurations.
        with suppress(Exception):
            child = getattr(value, name)
            children.append((f".{name}", child))
    yield from children


def list_slots(cls: type) -> list[str]:
    """Return the names in `__slots__` of `cls` and its bases."""
    names: list[str] = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [name for name in names if not name.startswith("__")]


def is_plain_object(value: object) -> bool:
    """Whether `value` has a user-defined class and a `__dict__`."""
    return not _is_opaque(value) and isinstance(getattr(value, "__dict__", None), dict)


def _is_opaque(value: object) -> bool:
    modules = [base.__module__ for base in type(value).__mro__]
    # The tensors of a distribution are settings, also in a user-defined subclass.
    is_distribution = "torch.distributions.distribution" in modules
    return is_distribution or modules[0].partition(".")[0] in _OPAQUE_PACKAGES
