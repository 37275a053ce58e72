"""AST of a method -> DeviceSafeReads: reads of `self.x` that no wrong device or dtype affects."""

import ast
from dataclasses import dataclass, field
from typing import Final

_MOVES: Final = frozenset({"to", "cuda", "cpu", "type_as"})
_CASTS: Final = frozenset({"type_as", "type", "float", "half", "double", "bfloat16", "long", "int"})
_QUESTIONS: Final = frozenset(
    {"device", "dtype", "shape", "size", "ndim", "dim", "numel", "is_cuda", "requires_grad"}
)
"""Metadata of a tensor, which can be read on any device."""
_NUMBERS: Final = frozenset({"int", "float", "bool", "len", "isinstance"})
"""Functions that convert or inspect a tensor on any device."""


@dataclass(frozen=True, slots=True)
class Harmless:
    """Reads of `self.x` that are independent of its device, or of its dtype."""

    reads: set[int] = field(default_factory=set)
    """`id()` of the AST nodes."""
    taken: set[int] = field(default_factory=set)
    """The `node_ids` followed by a move or cast; the other nodes read only metadata."""
    attributes: set[str] = field(default_factory=set)
    """Attributes that are assigned their own moved value, which makes every later read safe."""


def harmless_reads(function: ast.FunctionDef, this: str) -> tuple[Harmless, Harmless]:
    """Return the reads that a move follows directly, and the reads that a cast follows directly."""
    moves, casts = Harmless(), Harmless()
    for node in ast.walk(function):
        match node:
            case (
                ast.Attribute(value=read, attr=attr)
                | ast.Compare(left=read, ops=[ast.Is() | ast.IsNot() as attr])
            ) if not isinstance(attr, str) or attr in _QUESTIONS:
                moves.reads.add(id(read))
                casts.reads.add(id(read))
            case ast.Call(func=ast.Name(id=name), args=[read, *_]) if name in _NUMBERS:
                moves.reads.add(id(_leftmost(read)))
                casts.reads.add(id(_leftmost(read)))
            case ast.Call(func=ast.Attribute(value=moved, attr=name)):
                if name in _MOVES:
                    moves.taken.add(id(_leftmost(moved)))
                if name in _CASTS or (name == "to" and _to_dtype(node)):
                    casts.taken.add(id(_leftmost(moved)))
            case ast.ListComp(elt=each, generators=[ast.comprehension(iter=read)]):
                if _moves(each):
                    moves.taken.add(id(read))
                    casts.taken.add(id(read))
            case _:
                pass
    for found in (moves, casts):
        found.reads.update(found.taken)
        found.attributes.update(_assigned_back(function, this, found.reads))
    return moves, casts


def _moves(expression: ast.expr) -> bool:
    match expression:
        case ast.Call(func=ast.Attribute(value=ast.Name(), attr=name)):
            return name in _MOVES
        case _:
            return False


def _leftmost(expression: ast.expr) -> ast.expr:
    """Return the node `self.x` of an expression such as self.x[:n].unsqueeze(0)."""
    while True:
        match expression:
            case ast.Attribute(value=ast.Name()):
                return expression
            case ast.Attribute(value=inner) | ast.Subscript(value=inner) | ast.Call(func=inner):
                expression = inner
            case _:
                return expression


def _to_dtype(call: ast.Call) -> bool:
    """Whether a `.to(...)` call has a dtype or another tensor among its arguments."""
    words = {keyword.arg for keyword in call.keywords}
    if words & {"dtype", "other"}:
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


def _assigned_back(function: ast.FunctionDef, this: str, reads: set[int]) -> set[str]:
    """Return the names x of assignments `self.x = self.x.to(...)`."""
    found: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id=name), attr=attribute)], value=value
            ) if name == this:
                read = (
                    value.generators[0].iter
                    if isinstance(value, ast.ListComp)
                    else _leftmost(value)
                )
                if id(read) in reads and getattr(read, "attr", "") == attribute:
                    found.add(attribute)
            case _:
                pass
    return found
