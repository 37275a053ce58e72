"""The part of a target after the colon: an expression of names, subscripts, calls and literals."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptool.formats.python_text import parse_single_expression

_ALLOWED: Final = (
    ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.keyword, ast.Constant, ast.Load,
    ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp, ast.USub,
)  # fmt: skip
_CONTAINERS: Final[Mapping[str, Callable[..., object]]] = {
    "dict": dict, "list": list, "range": range, "set": set, "slice": slice, "tuple": tuple,
}  # fmt: skip
"""Builtins that a target may call; every other name is one of the module."""


class MissingNameError(LookupError):
    """A name or a key of an expression does not exist."""

    def __init__(self, parent: object, parent_text: str, name: object) -> None:
        super().__init__(name)
        self.parent = parent
        """The object that was looked into."""
        self.parent_text = parent_text
        """Source text of the parent, "" for the module itself."""
        self.name = name


@dataclass(frozen=True, slots=True)
class TargetExpression:
    """Parsed expression of a target: `Net`, `Outer.Inner`, `REGISTRY[gpt]`, `make(Config(3))`."""

    tree: ast.expr

    @property
    def is_call(self) -> bool:
        """Whether its value is what a call returns."""
        return isinstance(self.tree, ast.Call)

    def evaluate(self, namespace: object) -> Any:
        """Return the value of the expression, with the names of `namespace`, a Python module.

        Raises:
            MissingNameError: a name or key does not exist.
            Exception: what a call raises.
        """
        return _evaluate(self.tree, namespace)


def parse_expression(text: str) -> TargetExpression | None:
    """Parse the part of a target after the colon; None if it is no such expression.

    It may contain names, attributes, subscripts, calls and literals: nothing that computes.
    """
    try:
        tree = parse_single_expression(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if not all(isinstance(node, _ALLOWED) for node in ast.walk(tree)):
        return None
    return TargetExpression(tree) if _names_object(tree) else None


def _names_object(tree: ast.expr) -> bool:
    """Whether the expression begins with a name: a literal alone is no module."""
    match tree:
        case ast.Name():
            return True
        case ast.Attribute(value=child) | ast.Subscript(value=child) | ast.Call(func=child):
            return _names_object(child)
        case _:
            return False


def _evaluate(tree: ast.expr, namespace: object) -> Any:
    match tree:
        case ast.Name(id=name):
            return _look_up_name(namespace, name)
        case ast.Attribute(value=child, attr=name):
            return _get_attribute(_evaluate(child, namespace), ast.unparse(child), name)
        case ast.Subscript(value=child, slice=index):
            key = index.id if isinstance(index, ast.Name) else _evaluate(index, namespace)
            return _get_item(_evaluate(child, namespace), ast.unparse(child), key)
        case ast.Call(func=function, args=args, keywords=keywords):
            return _call(function, args, keywords, namespace)
        case _:
            return _evaluate_literal(tree, namespace)


def _evaluate_literal(tree: ast.expr, namespace: object) -> Any:
    """Return a literal; the elements of a list, tuple, set or dict may be expressions."""
    match tree:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            container = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(tree)]
            return container(_evaluate(element, namespace) for element in elements)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_evaluate(k, namespace): _evaluate(v, namespace) for k, v in pairs if k}
        case _:
            return ast.literal_eval(tree)


def _call(
    function: ast.expr, args: list[ast.expr], keywords: list[ast.keyword], namespace: object
) -> Any:
    values = [_evaluate(argument, namespace) for argument in args]
    named_values: dict[str, Any] = {}
    for keyword in keywords:
        value = _evaluate(keyword.value, namespace)
        named_values |= value if keyword.arg is None else {keyword.arg: value}
    return _evaluate(function, namespace)(*values, **named_values)


def _look_up_name(namespace: object, name: str) -> Any:
    if name in _CONTAINERS and not hasattr(namespace, name):
        return _CONTAINERS[name]
    return _get_attribute(namespace, "", name)


def _get_attribute(parent: object, parent_text: str, name: str) -> Any:
    try:
        return getattr(parent, name)
    except AttributeError as error:
        raise MissingNameError(parent, parent_text, name) from error


def _get_item(parent: Any, parent_text: str, key: object) -> Any:
    try:
        return parent[key]
    except (LookupError, TypeError) as error:
        raise MissingNameError(parent, parent_text, key) from error
