"""AST of a method -> DeviceSafeReads: reads of `self.x` that no wrong device or dtype affects."""

import ast
from dataclasses import dataclass, field
from typing import Final

_MOVE_METHODS: Final = frozenset({"to", "cuda", "cpu", "type_as"})
_CAST_METHODS: Final = frozenset(
    {"type_as", "type", "float", "half", "double", "bfloat16", "long", "int"}
)
_METADATA_ATTRIBUTES: Final = frozenset(
    {"device", "dtype", "shape", "size", "ndim", "dim", "numel", "is_cuda", "requires_grad"}
)
"""Metadata of a tensor, which can be read on any device."""
_SCALAR_FUNCTIONS: Final = frozenset({"int", "float", "bool", "len", "isinstance"})
"""Functions that convert or inspect a tensor on any device."""


@dataclass(frozen=True, slots=True)
class DeviceSafeReads:
    """Reads of `self.x` that are independent of its device, or of its dtype."""

    node_ids: set[int] = field(default_factory=set)
    """`id()` of the AST nodes."""
    converted_ids: set[int] = field(default_factory=set)
    """The `node_ids` followed by a move or cast; the other nodes read only metadata."""
    reassigned_attributes: set[str] = field(default_factory=set)
    """Attributes that are assigned their own moved value, which makes every later read safe."""


def find_safe_reads(
    function: ast.FunctionDef, self_name: str
) -> tuple[DeviceSafeReads, DeviceSafeReads]:
    """Return the reads that a move follows directly, and the reads that a cast follows directly."""
    moves, casts = DeviceSafeReads(), DeviceSafeReads()
    for node in ast.walk(function):
        match node:
            case (
                ast.Attribute(value=read, attr=attr)
                | ast.Compare(left=read, ops=[ast.Is() | ast.IsNot() as attr])
            ) if not isinstance(attr, str) or attr in _METADATA_ATTRIBUTES:
                moves.node_ids.add(id(read))
                casts.node_ids.add(id(read))
            case ast.Call(func=ast.Name(id=name), args=[read, *_]) if name in _SCALAR_FUNCTIONS:
                moves.node_ids.add(id(_find_root_attribute(read)))
                casts.node_ids.add(id(_find_root_attribute(read)))
            case ast.Call(func=ast.Attribute(value=receiver, attr=name)):
                if name in _MOVE_METHODS:
                    moves.converted_ids.add(id(_find_root_attribute(receiver)))
                if name in _CAST_METHODS or (name == "to" and _converts_dtype(node)):
                    casts.converted_ids.add(id(_find_root_attribute(receiver)))
            case ast.ListComp(elt=element, generators=[ast.comprehension(iter=read)]):
                if _is_move_call(element):
                    moves.converted_ids.add(id(read))
                    casts.converted_ids.add(id(read))
            case _:
                pass
    for safe_reads in (moves, casts):
        safe_reads.node_ids.update(safe_reads.converted_ids)
        safe_reads.reassigned_attributes.update(
            _find_reassigned_attributes(function, self_name, safe_reads.node_ids)
        )
    return moves, casts


def _is_move_call(expression: ast.expr) -> bool:
    match expression:
        case ast.Call(func=ast.Attribute(value=ast.Name(), attr=name)):
            return name in _MOVE_METHODS
        case _:
            return False


def _find_root_attribute(expression: ast.expr) -> ast.expr:
    """Return the node `self.x` of an expression such as self.x[:n].unsqueeze(0)."""
    while True:
        match expression:
            case ast.Attribute(value=ast.Name()):
                return expression
            case ast.Attribute(value=inner) | ast.Subscript(value=inner) | ast.Call(func=inner):
                expression = inner
            case _:
                return expression


def _converts_dtype(call: ast.Call) -> bool:
    """Whether a `.to(...)` call has a dtype or another tensor among its arguments."""
    keyword_names = {keyword.arg for keyword in call.keywords}
    if keyword_names & {"dtype", "other"}:
        return True
    return any(not _is_device(argument) for argument in call.args)


def _is_device(argument: ast.expr) -> bool:
    match argument:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return "device" in name
        case ast.Constant():
            return True
        case _:
            return False


def _find_reassigned_attributes(
    function: ast.FunctionDef, self_name: str, safe_node_ids: set[int]
) -> set[str]:
    """Return the names x of assignments `self.x = self.x.to(...)`."""
    attributes: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id=name), attr=attribute)], value=value
            ) if name == self_name:
                read = (
                    value.generators[0].iter
                    if isinstance(value, ast.ListComp)
                    else _find_root_attribute(value)
                )
                if id(read) in safe_node_ids and getattr(read, "attr", "") == attribute:
                    attributes.add(attribute)
            case _:
                pass
    return attributes
