"""AST of a function -> what its local variables stand for: `mean` for self.layers[0].mean."""

import ast
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

ANY_NAME: Final = "*"
"""Segment of a path for a subscript, or for a name computed at run time."""
ANY_DEPTH: Final = "**"
"""Segment of a path for any number of segments: `self.modules()`."""

_REGISTRIES: Final = frozenset({"__dict__", "_buffers", "_parameters", "_modules"})
"""Attributes of a module whose items are its attributes."""
VIEW_ATTRIBUTES: Final = frozenset({"data", "T", "mT", "H", "mH", "real", "imag"})
_VIEW_METHODS: Final = frozenset(
    {
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze"),
        *("unsqueeze", "expand", "expand_as", "transpose", "permute", "t", "narrow", "select"),
        *("detach", "swapaxes", "swapdims", "movedim", "diagonal", "ravel", "contiguous"),
        *("to", "type", "type_as", "cpu", "cuda", "float", "half", "double", "bfloat16"),
        *("long", "int", "bool", "view_as_real", "requires_grad_"),
    }
)
"""Methods whose result may share the memory of the tensor, as that of `to()` without a move."""
_LOOKUP_METHODS: Final = frozenset({"get_buffer", "get_parameter", "get_submodule"})
_ITEM_METHODS: Final = frozenset({"values", "items"})
_MEMBER_METHODS: Final = frozenset(
    {"modules", "named_modules", "children", "named_children", "buffers", "named_buffers"}
)
Path: TypeAlias = tuple[str, ...]
_Reference: TypeAlias = tuple[str, Path]
"""Name of a variable, and the path of attributes from it."""


def match_path(pattern: Path, path: Path) -> bool:
    """Whether the segments of `path` fit those of `pattern`, which may be wildcards."""
    if not pattern:
        return not path
    if pattern[0] == ANY_DEPTH:
        return any(match_path(pattern[1:], path[start:]) for start in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and match_path(pattern[1:], path[1:])


def strip_index(path: Path) -> Path:
    """Return a path without the indices, or the computed names, at its end."""
    while path and path[-1] == ANY_NAME:
        path = path[:-1]
    return path


@dataclass(slots=True)
class LocalAliases:
    """What local variables stand for, by the line from which on they do."""

    bindings: dict[str, list[tuple[int, _Reference | None]]] = field(default_factory=dict)

    def bind_name(self, name: str, line: int, reference: _Reference | None) -> None:
        self.bindings.setdefault(name, []).append((line, reference))

    def resolve_name(self, name: str, line: int) -> _Reference:
        """Return what `name` stands for in `line`: itself, with an empty path, if not known."""
        bindings = self.bindings.get(name, [])
        index = bisect_right([binding_line for binding_line, _ in bindings], line) - 1
        reference = bindings[index][1] if index >= 0 else None
        return reference or (name, ())

    def resolve_expression(self, expression: ast.AST | None) -> _Reference | None:
        """Return the reference of self.layers[0].mean.data, self._buffers["mean"], or None."""
        match expression:
            case ast.Name(id=name):
                return self.resolve_name(name, expression.lineno)
            case ast.Attribute(value=inner, attr=attr):
                segments: Path = (
                    () if attr in VIEW_ATTRIBUTES and self._has_path(inner) else (attr,)
                )
            case ast.Subscript(value=ast.Attribute(value=inner, attr=attr), slice=index) if (
                attr in _REGISTRIES
            ):
                segments = (_get_name_pattern(index),)
            case ast.Subscript(value=inner):
                # An element of a local variable stands for the variable itself.
                segments = (ANY_NAME,) if self._has_path(inner) else ()
            case ast.Call(func=ast.Name(id="getattr"), args=[inner, name, *_]):
                segments = (_get_name_pattern(name),)
            case ast.Call(func=ast.Attribute(value=inner, attr=attr), args=arguments):
                if attr in _LOOKUP_METHODS and arguments:
                    segments = _split_dotted_name(arguments[0])
                elif attr in _VIEW_METHODS:
                    segments = ()
                else:
                    return None
            case _:
                return None
        return self._append_segments(inner, segments)

    def resolve_items(
        self, iterable: ast.expr, target: ast.expr
    ) -> Iterator[tuple[str, int, _Reference | None]]:
        """Yield (name, line, reference or None) of the variables of `for target in iterable`."""
        match iterable, target:
            case ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]), ast.Tuple(
                elts=[_, item]
            ):
                yield from self.resolve_items(inner, item)
            case ast.Call(func=ast.Name(id="zip"), args=inners), ast.Tuple(elts=items):
                for inner, item in zip(inners, items, strict=False):
                    yield from self.resolve_items(inner, item)
            case ast.Call(func=ast.Name(id="list" | "tuple" | "reversed"), args=[inner]), _:
                yield from self.resolve_items(inner, target)
            case ast.Tuple(elts=elements) | ast.List(elts=elements), ast.Name(id=name):
                references = [self.resolve_expression(element) for element in elements]
                yield name, target.lineno, _merge_references(references)
            case _, ast.Tuple(elts=[*_, ast.Name() as item]):
                yield from self.resolve_items(iterable, item)
            case _, ast.Name(id=name):
                yield name, target.lineno, self._resolve_item(iterable)
            case _:
                pass

    def _resolve_item(self, iterable: ast.expr) -> _Reference | None:
        match iterable:
            case ast.Call(func=ast.Attribute(value=inner, attr=attr)) if attr in _MEMBER_METHODS:
                is_buffers = attr.endswith("buffers")
                return self._append_segments(
                    inner, (ANY_DEPTH, ANY_NAME) if is_buffers else (ANY_DEPTH,)
                )
            case ast.Call(func=ast.Attribute(value=inner, attr=attr)) if attr in _ITEM_METHODS:
                if isinstance(inner, ast.Attribute) and inner.attr in _REGISTRIES:
                    return self._append_segments(inner.value, (ANY_NAME,))
                return self._append_segments(inner, (ANY_NAME,))
            case _:
                return self._append_segments(iterable, (ANY_NAME,))

    def _has_path(self, expression: ast.expr) -> bool:
        """Whether it is more than a variable: `.data` of `self` is an attribute, not a view."""
        reference = self.resolve_expression(expression)
        return reference is not None and bool(reference[1])

    def _append_segments(self, inner: ast.expr, segments: Path) -> _Reference | None:
        base = self.resolve_expression(inner)
        return None if base is None else (base[0], (*base[1], *segments))


def _merge_references(references: Sequence[_Reference | None]) -> _Reference | None:
    """Return one reference with wildcards for several that differ in names only."""
    resolved = [reference for reference in references if reference is not None]
    if not resolved or len({(root, len(path)) for root, path in resolved}) > 1:
        return resolved[0] if resolved else None
    paths = [path for _, path in resolved]
    merged = (
        segments[0] if len({*segments}) == 1 else ANY_NAME for segments in zip(*paths, strict=True)
    )
    return resolved[0][0], tuple(merged)


def _get_name_pattern(name: ast.expr) -> str:
    """Return a constant name, or a pattern for a name computed at run time."""
    match name:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                str(part.value) if isinstance(part, ast.Constant) else ANY_NAME for part in parts
            )
        case _:
            return ANY_NAME


def _split_dotted_name(name: ast.expr) -> Path:
    pattern = _get_name_pattern(name)
    return (ANY_DEPTH, ANY_NAME) if pattern == ANY_NAME else tuple(pattern.split("."))


def collect_aliases(nodes: Iterable[ast.AST]) -> LocalAliases:
    """Return the local variables that stand for attributes, in the order of their lines."""
    aliases = LocalAliases()
    kinds = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension)
    bindings = [node for node in nodes if isinstance(node, kinds)]
    for node in sorted(bindings, key=_get_binding_line):
        line = _get_binding_line(node)
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    _bind_target(aliases, target, value, line)
            case (
                ast.AnnAssign(target=target, value=ast.expr() as value)
                | ast.NamedExpr(target=target, value=value)
            ):
                _bind_target(aliases, target, value, line)
            case (
                ast.For(target=target, iter=iterable)
                | ast.comprehension(target=target, iter=iterable)
            ):
                for name, target_line, reference in [*aliases.resolve_items(iterable, target)]:
                    aliases.bind_name(name, target_line, reference)
            case _:
                pass
    return aliases


def _get_binding_line(node: ast.AST) -> int:
    target = getattr(node, "target", None)
    return int(getattr(node, "lineno", getattr(target, "lineno", 0)))


def _bind_target(aliases: LocalAliases, target: ast.expr, value: ast.expr, line: int) -> None:
    match target, value:
        case ast.Name(id=name), _:
            # From the next line on: the value itself still means what it meant before.
            aliases.bind_name(name, line + 1, aliases.resolve_expression(value))
        case ast.Tuple(elts=parts), ast.Tuple(elts=values) if len(parts) == len(values):
            for part, part_value in zip(parts, values, strict=True):
                _bind_target(aliases, part, part_value, line)
        case ast.Tuple(elts=parts) | ast.List(elts=parts), _:
            for part in parts:
                if isinstance(part, ast.Name):
                    aliases.bind_name(part.id, line + 1, None)
        case _:
            pass
