"""AST of a function -> MethodSource: what it reads, writes and calls on self, by line."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Final, TypeAlias

from ckptool.modules.assignment_locations import format_location
from ckptool.modules.device_moves import DeviceSafeReads, find_safe_reads
from ckptool.modules.source.attribute_writes import (
    AttributeWrite,
    InPlaceFunction,
    find_attribute_writes,
    find_deferred_functions,
    get_called_name,
)
from ckptool.modules.source.local_aliases import ANY_DEPTH, Path

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
    """Return what a method reads, writes, moves and casts of its object, with first lines."""
    self_name = _get_self_name(node)
    moves, casts = find_safe_reads(node, self_name)
    reads = [
        (id(inner), attribute, _get_line(inner))
        for inner in ast.walk(node)
        for attribute in _iter_reads(inner, self_name)
    ]
    name_patterns: dict[str, int] = {}
    for inner in ast.walk(node):
        for pattern in _iter_name_patterns(inner, self_name) if isinstance(inner, ast.Call) else ():
            name_patterns.setdefault(pattern, _get_line(inner))
    first_writes: dict[str, int] = {}
    writes = _sort_writes(find_attribute_writes(node, in_place_functions))
    for write in writes:
        if write.root == self_name and (attribute := _get_own_attribute(write.path)):
            first_writes.setdefault(attribute, write.line)
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
        first_reads=_find_first_lines(reads),
        unmoved_reads=_find_first_lines(_iter_unsafe_reads(reads, moves)),
        uncast_reads=_find_first_lines(_iter_unsafe_reads(reads, casts)),
        moved_reads=_find_first_lines(read for read in reads if read[0] in moves.converted_ids),
        reassigned_attributes=frozenset(moves.reassigned_attributes),
        first_writes=first_writes,
        writes=writes,
        deferred_writes=_sort_writes(deferred_writes),
        super_calls=_find_super_calls(node),
        name_patterns=name_patterns,
    )


def _get_own_attribute(path: Path) -> str:
    """Return the attribute, or the pattern of its name, that a write below `self` may change.

    `for module in self.modules()` is also `self`. "" if it writes no attribute of it.
    """
    return next((segment for segment in path if segment != ANY_DEPTH), "")


_Read: TypeAlias = tuple[int, str, int]
"""Id of the AST node, attribute, line."""


def _iter_unsafe_reads(reads: Iterable[_Read], safe_reads: DeviceSafeReads) -> Iterator[_Read]:
    for node_id, attribute, line in reads:
        is_reassigned = attribute in safe_reads.reassigned_attributes
        if not is_reassigned and node_id not in safe_reads.node_ids:
            yield node_id, attribute, line


def _find_first_lines(reads: Iterable[_Read]) -> dict[str, int]:
    lines: dict[str, int] = {}
    for _, attribute, line in reads:
        lines[attribute] = min(lines.get(attribute, line), line)
    return lines


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


def _find_super_calls(function: ast.FunctionDef) -> frozenset[str]:
    """Return the names of the methods that a function calls, or names, on super()."""
    return frozenset(
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "super"
    )
