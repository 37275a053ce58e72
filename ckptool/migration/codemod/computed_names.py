"""Second argument of setattr() -> the names that it may be: literals, loops over literals."""

import ast
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final, TypeAlias

_MAX_NAMES: Final = 4096
"""Names of one expression that are listed."""
_PLACEHOLDER: Final = re.compile(r"%[-#0 +\d.]*[a-zA-Z]|\{[^{}]*\}")
"""Of "mask_%d" and "mask_{}"."""
_CHANGES: Final = frozenset({"append", "extend", "insert", "remove", "pop", "clear", "update"})
"""Methods after which a variable is not the literal that it was assigned."""

_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef | None"


def may_be_name(expression: ast.expr, attribute: str, function: _Function) -> bool:
    """Whether an expression with text in it, or of literals, may be the name of an attribute."""
    names = list_names(expression, function)
    if names is not None:
        return attribute in names
    return has_text(expression) and re.fullmatch(_build_pattern(expression), attribute) is not None


def has_text(expression: ast.expr) -> bool:
    """Whether a part of the name is written there: `f"mask_{n}"`, not `name`."""
    return bool(_build_pattern(expression).replace(".*", ""))


def list_names(expression: ast.expr, function: _Function) -> frozenset[str] | None:
    """Return all names that an expression may be; None if they depend on more than literals."""
    values = _evaluate(expression, function, 6)
    return None if values is None else frozenset(map(str, values))


def _build_pattern(expression: ast.expr) -> str:
    """Return a regular expression that matches the names: `mask_.*`."""
    match expression:
        case ast.Constant(value=value):
            return re.escape(str(value))
        case ast.JoinedStr(values=parts):
            return "".join(map(_build_pattern, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _build_pattern(left) + _build_pattern(right)
        case (
            ast.BinOp(left=ast.Constant(value=str() as text), op=ast.Mod())
            | ast.Call(func=ast.Attribute(value=ast.Constant(value=str() as text), attr="format"))
        ):
            return ".*".join(map(re.escape, _PLACEHOLDER.split(text)))
        case _:
            return ".*"


def _evaluate(  # noqa: PLR0911 - a case each
    expression: ast.expr | None, function: _Function, depth: int
) -> set[object] | None:
    """Return the values of an expression, None if they are not known; variables are followed."""

    def combine(parts: Sequence[ast.expr]) -> Iterator[tuple[object, ...]] | None:
        choices: list[set[object]] = []
        count = 1
        for part in parts:
            values = _evaluate(part, function, depth)
            if values is None or (count := count * len(values)) > _MAX_NAMES:
                return None
            choices.append(values)
        return product(*choices)

    match expression:
        case ast.Constant(value=str() | int() as value):
            return {value}
        case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
            return _evaluate(inner, function, depth)
        case ast.Call(func=ast.Name(id="str"), args=[inner], keywords=[]):
            return _evaluate(inner, function, depth)
        case ast.JoinedStr(values=parts):
            texts = combine(parts)
            return None if texts is None else {"".join(map(str, text)) for text in texts}
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            pairs = combine([left, right])
            return None if pairs is None else {_add(first, second) for first, second in pairs}
        case ast.Name(id=name) if depth:
            return _evaluate_variable(name, function, depth - 1)
        case _:
            return None


def _add(first: object, second: object) -> object:
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    return f"{first}{second}"


def _evaluate_variable(name: str, function: _Function, depth: int) -> set[object] | None:
    """Return the values of a variable that only loops over literals and literals are assigned."""
    if function is None:
        return None
    values: set[object] = set()
    count = 0
    for node in ast.walk(function):
        match node:
            case (
                ast.For(target=target, iter=iterated)
                | ast.comprehension(target=target, iter=iterated)
            ) if _binds(target, name):
                count += 1
                elements = _list_elements(iterated, function, depth)
                bound = [_unpack(target, element, name) for element in elements or ()]
                bound_values = [_evaluate(item, function, depth) for item in bound]
            case ast.Assign(targets=[ast.Name(id=assigned)], value=value) if assigned == name:
                count += 1
                elements, bound_values = [value], [_evaluate(value, function, depth)]
            case _:
                continue
        if elements is None:
            return None
        for item_values in bound_values:
            if item_values is None or len(values) > _MAX_NAMES:
                return None
            values |= item_values
    return values if count and count == _count_stores(name, function) else None


def _list_elements(  # noqa: C901, PLR0911 - a case each
    iterated: ast.expr | None, function: _Function, depth: int
) -> list[ast.expr | None] | None:
    """Return the elements that a loop goes over, None for the whole if they are not known."""
    if not depth:
        return None

    def list_inner(inner: ast.expr) -> list[ast.expr | None] | None:
        return _list_elements(inner, function, depth - 1)

    match iterated:
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return [*elements] if not any(isinstance(e, ast.Starred) for e in elements) else None
        case ast.Constant(value=str() as text):
            return [ast.Constant(character) for character in text]
        case ast.Dict(keys=keys):
            return [*keys] if None not in keys else None
        case ast.Call(func=ast.Attribute(value=ast.Dict(keys=keys, values=values), attr=method)):
            if None in keys or method not in {"items", "keys"}:
                return None
            pairs = zip(keys, values, strict=True)
            return [_pair(key, value) if method == "items" else key for key, value in pairs]
        case ast.Call(func=ast.Name(id="range"), args=bounds, keywords=[]):
            numbers = [b.value for b in bounds if isinstance(b, ast.Constant)]
            ends = [n for n in numbers if isinstance(n, int)]
            is_known = len(ends) == len(bounds) > 0 and 0 not in ends[2:]
            if not is_known or max(map(abs, ends)) > _MAX_NAMES:
                return None
            return [ast.Constant(n) for n in range(*ends)]
        case ast.Call(func=ast.Name(id="enumerate"), args=[inner], keywords=[]):
            items = list_inner(inner)
            return items and [_pair(ast.Constant(n), item) for n, item in enumerate(items)]
        case ast.Call(func=ast.Name(id="zip"), args=[first, second]):
            columns = [list_inner(first), list_inner(second)]
            lengths = [len(column) for column in columns if column is not None]
            rows = [column or [None] * max(lengths, default=0) for column in columns]
            return [_pair(a, b) for a, b in zip(*rows, strict=False)] if lengths else None
        case ast.Name(id=name):
            return list_inner(value) if (value := _find_literal(name, function)) else None
        case _:
            return None


def _pair(first: ast.expr | None, second: ast.expr | None) -> ast.expr:
    unknown = ast.Name("?", ast.Load())
    return ast.Tuple([first or unknown, second or unknown], ast.Load())


def _unpack(target: ast.expr, element: ast.expr | None, name: str) -> ast.expr | None:
    """Return what a variable of the target of a loop gets of an element."""
    match target, element:
        case ast.Name(id=target_name), _:
            return element if target_name == name else None
        case ast.Tuple(elts=targets), ast.Tuple(elts=elements) if len(targets) == len(elements):
            pairs = zip(targets, elements, strict=True)
            return next((_unpack(t, e, name) for t, e in pairs if _binds(t, name)), None)
        case _:
            return None


def _binds(target: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(target))


def _find_literal(name: str, function: _Function) -> ast.expr | None:
    """Return what a variable is assigned once and for all, None if it may be changed."""
    nodes = [*ast.walk(function)] if function else []
    is_changed = any(
        isinstance(n, ast.Attribute)
        and n.attr in _CHANGES
        and isinstance(n.value, ast.Name)
        and n.value.id == name
        for n in nodes
    )
    values = [
        node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == name
    ]
    is_only = len(values) == 1 and _count_stores(name, function) == 1
    return values[0] if is_only and not is_changed else None


def _count_stores(name: str, function: _Function) -> int:
    """Return how many places assign a variable, its argument included."""
    nodes = ast.walk(function) if function else ()
    return sum(
        (isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Load))
        or (isinstance(n, ast.arg) and n.arg == name)
        for n in nodes
    )
