"""Two statements of a function -> whether one call can run both."""

import ast
from typing import Final, TypeAlias

_LOOPS: Final = (ast.For, ast.AsyncFor, ast.While)
_TRIES: Final = (ast.Try, ast.TryStar)

_Step: TypeAlias = tuple[ast.AST, str, int]
"""A node, the name of a field of it, and the index in that field: where the next node is."""


def exclude_each_other(function: ast.AST, first: ast.AST, second: ast.AST) -> bool:
    """Whether no call of a function runs both statements: branches of one `if`, an early return.

    Branches in a loop may run in turn, and the body of a `try` may end in its handler.
    """
    path, other_path = _find_path(function, first), _find_path(function, second)
    for step, other in zip(path, other_path, strict=False):
        if step == other:
            if isinstance(step[0], _LOOPS):
                return False
            continue
        (node, name, index), (_, other_name, other_index) = step, other
        if name == other_name and name not in {"handlers", "cases"}:
            return _returns(path if index < other_index else other_path, node)
        return _are_arms(node, {name, other_name})
    return False


def _are_arms(node: ast.AST, names: set[str]) -> bool:
    """Whether at most one of two fields, or of two items of one field, is run."""
    match node:
        case ast.If():
            return names == {"body", "orelse"}
        case ast.Match():
            return True
        case ast.Try() | ast.TryStar():
            return names <= {"handlers", "orelse"}
        case _:
            return False


def _returns(path: list[_Step], ancestor: ast.AST) -> bool:
    """Whether a call ends after the statement at the end of a path: a block below returns."""
    nodes = [node for node, _, _ in path]
    for node, name, _ in path[nodes.index(ancestor) + 1 :]:
        block = getattr(node, name)
        last = block[-1] if isinstance(block, list) and block else None
        is_raised = isinstance(last, ast.Raise) and not any(isinstance(n, _TRIES) for n in nodes)
        if isinstance(last, ast.Return) or is_raised:
            return True
    return False


def _find_path(node: ast.AST, target: ast.AST) -> list[_Step]:
    """Return the steps from a node to one in it, [] if it is not there."""
    for name, value in ast.iter_fields(node):
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if child is target:
                return [(node, name, index)]
            if isinstance(child, ast.AST) and (steps := _find_path(child, target)):
                return [(node, name, index), *steps]
    return []
