"""Methods of a class -> ClassSource: those of construction, of forward, and later ones."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ckptool.modules.source.method_source import MethodSource

_FORWARD_METHODS: Final = ("forward", "__call__")
_CONSTRUCTOR_METHODS: Final = ("__init__", "__new__", "__post_init__")
_STATE_TRANSFER_METHODS: Final = frozenset(
    {
        *("_apply", "to", "to_empty", "type", "cpu", "cuda", "half", "float", "double", "bfloat16"),
        *("load_state_dict", "_load_from_state_dict", "set_extra_state"),
        *("__setstate__", "__deepcopy__", "__setattr__", "__delattr__"),
    }
)
"""Methods that move, load or copy state: writes in them do not count as changes."""


@dataclass(frozen=True, slots=True)
class ClassSource:
    """Methods of a class and of its bases below nn.Module."""

    forward_methods: list[MethodSource]
    """Methods reachable from forward, in call order."""
    mutating_methods: list[MethodSource]
    """Methods that may run after construction, those reachable from forward first."""
    constructor_methods: list[MethodSource]


def classify_methods(
    order: tuple[type, ...], methods: dict[str, list[MethodSource]]
) -> ClassSource:
    forward = _find_reachable(order, methods, _select_methods(methods, _FORWARD_METHODS))
    constructor_methods = _find_reachable(
        order, methods, _select_methods(methods, _CONSTRUCTOR_METHODS)
    )
    candidates = [
        m
        for overloads in methods.values()
        for m in overloads
        if m.name not in _STATE_TRANSFER_METHODS and not _is_replaced(m, methods)
    ]
    # A helper of the constructor counts as constructor only if no other method calls it.
    later_methods = _find_reachable(
        order, methods, [m for m in candidates if m not in constructor_methods]
    )
    mutating_methods = [*forward, *(m for m in later_methods if m not in forward)]
    return ClassSource(
        forward_methods=forward,
        mutating_methods=[
            m
            for m in mutating_methods
            if m.name not in {*_STATE_TRANSFER_METHODS, *_CONSTRUCTOR_METHODS}
        ],
        constructor_methods=constructor_methods,
    )


def _is_replaced(method: MethodSource, methods: dict[str, list[MethodSource]]) -> bool:
    """Whether a class below overrides a method, and no code names it as `Base.method`.

    `super().method()` runs it as well; that is followed where it is reached.
    """
    if method.cls is methods[method.name][0].cls:
        return False
    return not any(
        isinstance(node, ast.Attribute)
        and node.attr == method.name
        and isinstance(node.value, ast.Name)
        and node.value.id == method.cls.__name__
        for overloads in methods.values()
        for other in overloads
        for node in ast.walk(other.node)
    )


def _select_methods(
    methods: dict[str, list[MethodSource]], names: Iterable[str]
) -> list[MethodSource]:
    """Return the methods with these names: two for a property with a setter."""
    groups = [methods[name] for name in names if name in methods]
    return [method for group in groups for method in group if method.cls is group[0].cls]


def _find_reachable(
    order: tuple[type, ...], methods: dict[str, list[MethodSource]], start: list[MethodSource]
) -> list[MethodSource]:
    """Return `start` and the methods reachable from it by calls on self, nearest first."""
    reachable_methods = list(start)
    for method in reachable_methods:
        called_methods = _select_methods(
            methods, sorted(method.first_reads, key=lambda name: method.first_reads[name])
        )
        bases = order[order.index(method.cls) + 1 :]
        for name in sorted(method.super_calls):
            called_methods += [m for m in methods.get(name, ()) if m.cls in bases][:1]
        reachable_methods += [m for m in called_methods if m not in reachable_methods]
    return reachable_methods
