"""AST of a function -> MethodSource: what it reads, writes and calls on self, by line."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Final

from ckptool.modules.assignment_locations import format_location
from ckptool.modules.device_moves import find_safe_reads
from ckptool.modules.source.attribute_writes import (
    AttributeWrite,
    InPlaceFunction,
    find_attribute_writes,
    find_deferred_functions,
    get_called_name,
)

_REGISTRATION_FUNCTIONS: Final = frozenset(
    {"register_buffer", "register_parameter", "__setattr__", "setattr"}
)


@dataclass(frozen=True, slots=True, eq=False)
class MethodSource:
    """Reads, writes and calls on `self` in one function."""

    cls: type
    name: str
    file: str
    node: ast.FunctionDef
    first_reads: dict[str, int]
    """Attribute -> line of the first read."""
    unmoved_reads: dict[str, int]
    """Attribute -> line of the first read without a move that needs more than metadata."""
    uncast_reads: dict[str, int]
    """The same for reads that no cast follows."""
    moved_reads: dict[str, int]
    """Attribute -> line of the first read that a move follows."""
    reassigned_attributes: frozenset[str]
    """Attributes that are assigned their own moved value."""
    first_writes: dict[str, int]
    """Attribute, or pattern of a computed name -> line of the first write."""
    writes: tuple[AttributeWrite, ...]
    """Writes of attributes of other objects and of sub-modules, by line."""
    deferred_writes: tuple[AttributeWrite, ...]
    """Writes in functions that it defines and does not call, such as hooks, by line."""
    super_calls: frozenset[str]
    """Names of methods called through super()."""
    name_patterns: dict[str, int]
    """Regular expression of a computed name -> line that assigns it."""

    @property
    def self_name(self) -> str:
        """Name of the first parameter; "" without one."""
        return _get_self_name(self.node)

    def format_line(self, line: int) -> str:
        return format_location(self.file, line)


def _get_self_name(function: ast.FunctionDef) -> str:
    arguments = [*function.args.posonlyargs, *function.args.args]
    return arguments[0].arg if arguments else ""


def analyze_method(
    cls: type,
    name: str,
    function: FunctionType,
    node: ast.FunctionDef,
    in_place_functions: dict[str, InPlaceFunction],
) -> MethodSource:
    self_name = _get_self_name(node)
    first_reads: dict[str, int] = {}
    first_writes: dict[str, int] = {}
    super_calls: set[str] = set()
    moves, casts = find_safe_reads(node, self_name)
    unmoved_reads: dict[str, int] = {}
    uncast_reads: dict[str, int] = {}
    moved_reads: dict[str, int] = {}
    name_patterns: dict[str, int] = {}
    for inner in ast.walk(node):
        for attribute in _iter_reads(inner, self_name):
            first_reads[attribute] = min(first_reads.get(attribute, sys.maxsize), _get_line(inner))
            if id(inner) in moves.converted_ids:
                moved_reads[attribute] = min(
                    moved_reads.get(attribute, sys.maxsize), _get_line(inner)
                )
            for reads, safe_reads in ((unmoved_reads, moves), (uncast_reads, casts)):
                if (
                    id(inner) not in safe_reads.node_ids
                    and attribute not in safe_reads.reassigned_attributes
                ):
                    reads[attribute] = min(reads.get(attribute, sys.maxsize), _get_line(inner))
        super_calls |= _find_super_calls(inner)
        for pattern in _iter_name_patterns(inner, self_name) if isinstance(inner, ast.Call) else ():
            name_patterns.setdefault(pattern, _get_line(inner))
    writes = _sort_writes(find_attribute_writes(node, in_place_functions))
    for write in writes:
        if write.root == self_name and write.path:
            first_writes.setdefault(write.path[0], write.line)
    deferred_writes = [
        write
        for nested in find_deferred_functions(node)
        for write in find_attribute_writes(nested, in_place_functions)
    ]
    return MethodSource(
        cls,
        name,
        function.__code__.co_filename,
        node,
        first_reads=first_reads,
        unmoved_reads=unmoved_reads,
        uncast_reads=uncast_reads,
        moved_reads=moved_reads,
        reassigned_attributes=frozenset(moves.reassigned_attributes),
        first_writes=first_writes,
        writes=writes,
        deferred_writes=_sort_writes(deferred_writes),
        super_calls=frozenset(super_calls),
        name_patterns=name_patterns,
    )


def _sort_writes(writes: Iterable[AttributeWrite]) -> tuple[AttributeWrite, ...]:
    return tuple(sorted(writes, key=lambda write: write.line))


def _get_line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _iter_reads(node: ast.AST, self_name: str) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id=name), attr=attribute, ctx=ast.Load()) if (
            name == self_name
        ):
            yield attribute
        case ast.AugAssign(target=target):
            yield from (
                inner.attr
                for inner in ast.walk(target)
                if isinstance(inner, ast.Attribute)
                and isinstance(inner.value, ast.Name)
                and inner.value.id == self_name
            )
        case ast.Call(
            func=ast.Name(id="getattr"), args=[ast.Name(id=name), ast.Constant(value=str(attr)), *_]
        ) if name == self_name:
            yield attr
        case _:
            pass


def _iter_name_patterns(call: ast.Call, self_name: str) -> Iterator[str]:
    """Yield a regular expression for an f-string passed to setattr() or self.register_buffer()."""
    if get_called_name(call) not in _REGISTRATION_FUNCTIONS:
        return
    match call.func, call.args:
        case ast.Attribute(value=ast.Name(id=name)), [ast.JoinedStr(values=parts), *_]:
            is_self = name == self_name
        case _, [ast.Name(id=name), ast.JoinedStr(values=parts), *_]:
            is_self = name == self_name
        case _:
            return
    texts = [part.value if isinstance(part, ast.Constant) else "" for part in parts]
    if is_self and any(texts):
        yield "".join(re.escape(str(text)) if text else ".+" for text in texts)


def _find_super_calls(node: ast.AST) -> set[str]:
    match node:
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
            return {name}
        case _:
            return set()
