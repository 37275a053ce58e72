"""A method's AST -> attributes that it takes to the device itself, or reads as plain numbers."""

import ast
from typing import Final, TypeAlias

_MOVING: Final = frozenset({"to", "type_as", "cuda"})
_PLAIN: Final = frozenset(
    {
        *("shape", "size", "ndim", "dim", "numel", "dtype", "device", "layout"),
        *("item", "tolist", "is_floating_point", "is_complex", "is_cuda"),
    }
)
"""What a tensor says of itself on any device."""
_NUMBERS: Final = frozenset({"int", "float", "bool", "len", "isinstance"})

_Parents: TypeAlias = dict[ast.AST, ast.AST]


def carried(node: ast.AST, this: str) -> frozenset[str]:
    """Return what is assigned to itself by way of .to(): `self.x = self.x.to(device)`."""
    return frozenset(
        attribute
        for inner in ast.walk(node)
        if isinstance(inner, ast.Assign) and _moves(inner.value)
        for target in inner.targets
        if (attribute := _of(target, this))
        if any(_of(read, this) == attribute for read in ast.walk(inner.value))
    )


def bare(node: ast.AST, this: str) -> frozenset[str]:
    """Return what is read at least once in a way that needs it on the input's device."""
    parents = {child: above for above in ast.walk(node) for child in ast.iter_child_nodes(above)}
    return frozenset(
        attribute
        for inner in ast.walk(node)
        if (attribute := _of(inner, this))
        and not isinstance(getattr(inner, "ctx", None), ast.Store)
        if not _handled(inner, parents)
    )


def _of(node: ast.AST, this: str) -> str:
    match node:
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == this:
            return attribute
        case ast.Call(
            func=ast.Name(id="getattr"), args=[ast.Name(id=name), ast.Constant(value=str(attr)), *_]
        ) if name == this:
            return attr
        case _:
            return ""


def _moves(value: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.Call)
        and isinstance(inner.func, ast.Attribute)
        and inner.func.attr in _MOVING
        for inner in ast.walk(value)
    )


def _handled(node: ast.AST, parents: _Parents) -> bool:
    """Whether the value is moved, or made a number, before anything is computed with others."""
    while True:
        above = parents.get(node)
        match above:
            case ast.Subscript(value=value) if value is node:
                node = above
            case ast.Attribute(attr=attribute):
                call = parents.get(above)
                called = isinstance(call, ast.Call) and call.func is above
                if attribute in _PLAIN or (called and attribute in _MOVING):
                    return True
                if not isinstance(call, ast.Call) or not called or call.args or call.keywords:
                    return False
                node = call
            case ast.Call(func=ast.Name(id=name)):
                return name in _NUMBERS
            case ast.Compare(ops=[ast.Is() | ast.IsNot()]):
                return True
            case _:
                return False
