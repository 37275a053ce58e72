"""Source of a class -> lines that assign, use and write its attributes; nothing is executed."""

import ast
import inspect
import linecache
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import FunctionType
from typing import Final, TypeAlias

from ckptool.formats.python_text import parse_module
from ckptool.modules.assignment_locations import format_location, is_user_file
from ckptool.modules.device_moves import find_safe_reads
from ckptool.modules.source.argument_dependence import is_computed_from_arguments
from ckptool.modules.source.attribute_writes import (
    AttributeWrite,
    InPlaceFunction,
    find_attribute_writes,
    find_deferred_functions,
    find_in_place_functions,
    get_called_name,
)
from ckptool.modules.source.local_aliases import ANY_NAME, match_path
from ckptool.modules.walk import list_classes_below_module

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
_REGISTRATION_FUNCTIONS: Final = frozenset(
    {"register_buffer", "register_parameter", "__setattr__", "setattr"}
)

_FunctionIndex: TypeAlias = dict[tuple[int, str], ast.FunctionDef]


@dataclass(frozen=True, slots=True, eq=False)
class _MethodSource:
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


@dataclass(frozen=True, slots=True)
class _ClassSource:
    """Methods of a class and of its bases below nn.Module."""

    forward_methods: list[_MethodSource]
    """Methods reachable from forward, in call order."""
    mutating_methods: list[_MethodSource]
    """Methods that may run after construction, those reachable from forward first."""
    constructor_methods: list[_MethodSource]


_TORCH_CLASSES: Final[dict[type, _ClassSource]] = {}
"""Torch's own classes, whose source does not change while the process runs."""


@dataclass(slots=True)
class SourceAnalysis:
    """Source locations of attributes; each file and each class is parsed once."""

    _classes: dict[type, _ClassSource] = field(default_factory=dict)
    _trees: dict[str, ast.Module | None] = field(default_factory=dict)
    _functions: dict[str, _FunctionIndex] = field(default_factory=dict)
    _dependences: dict[tuple[type, str], bool] = field(default_factory=dict)
    _in_place_functions: dict[str, dict[str, InPlaceFunction]] = field(default_factory=dict)

    def find_assignment(self, cls: type, attribute: str) -> str:
        """Return "file:line" of the assignment by a method or the class body, or ""."""
        class_source = self._analyze_class(cls)
        for method in (*class_source.constructor_methods, *class_source.mutating_methods):
            if attribute in method.first_writes:
                return method.format_line(method.first_writes[attribute])
        return self._find_body_assignment(cls, attribute) or self._find_computed_assignment(
            class_source, attribute
        )

    def find_use(self, cls: type, attribute: str) -> str:
        """Return "file:line" of the first use of `self.attribute` reachable from forward, or ""."""
        for method in self._analyze_class(cls).forward_methods:
            if attribute in method.first_reads:
                return method.format_line(method.first_reads[attribute])
        return ""

    def find_move(self, cls: type, attribute: str) -> str:
        """Return "file:line" where forward moves `self.attribute` or reads only its metadata.

        Return "" if forward does not use it, or also uses it unmoved.
        """
        methods = [
            m for m in self._analyze_class(cls).forward_methods if attribute in m.first_reads
        ]
        has_unmoved_read = any(attribute in method.unmoved_reads for method in methods)
        if not methods or (
            has_unmoved_read
            and not any(attribute in method.reassigned_attributes for method in methods)
        ):
            return ""
        moved_lines = (
            m.format_line(m.moved_reads[attribute]) for m in methods if attribute in m.moved_reads
        )
        return next(moved_lines, methods[0].format_line(methods[0].first_reads[attribute]))

    def is_cast_on_use(self, cls: type, attribute: str) -> bool:
        """Whether forward casts `self.attribute` at each use."""
        methods = [
            m for m in self._analyze_class(cls).forward_methods if attribute in m.first_reads
        ]
        return bool(methods) and not any(attribute in method.uncast_reads for method in methods)

    def find_write(self, cls: type, attribute: str) -> str:
        """Return "file:line" of the first write of `self.attribute` after construction, or ""."""
        class_source = self._analyze_class(cls)
        for method in class_source.mutating_methods:
            for name, line in method.first_writes.items():
                if name == attribute or (ANY_NAME in name and match_path((name,), (attribute,))):
                    return method.format_line(line)
        for method in class_source.constructor_methods:
            for write in method.deferred_writes:
                if write.path[:1] == (attribute,) and write.root == method.self_name:
                    return method.format_line(write.line)
        return ""

    def list_later_writes(self, cls: type) -> tuple[tuple[AttributeWrite, str], ...]:
        """Return the writes of `cls` after construction that go below an attribute of `self`.

        Each with its "file:line"; also those in hooks that the constructor defines. The root of
        the path is `self`.
        """
        class_source = self._analyze_class(cls)
        return tuple(
            (write, method.format_line(write.line))
            for methods, is_deferred in (
                (class_source.mutating_methods, False),
                (class_source.constructor_methods, True),
            )
            for method in methods
            for write in (method.deferred_writes if is_deferred else method.writes)
            if write.root == method.self_name and len(write.path) > 1
        )

    def is_computed_from_arguments(self, cls: type, attribute: str) -> bool:
        """Whether the source shows that the constructor's arguments decide the value.

        Arguments that are only sizes, dtypes and devices do not count. False if the source is
        not available.
        """
        key = cls, attribute
        if key not in self._dependences:
            methods = self._analyze_class(cls).constructor_methods
            functions = [method.node for method in methods]
            self._dependences[key] = is_computed_from_arguments(functions, attribute)
        return self._dependences[key]

    def find_file(self, cls: type) -> str:
        """Return the path of the file that defines `cls`, "" if it is not known."""
        return getattr(sys.modules.get(cls.__module__), "__file__", None) or ""

    def parse_file(self, file: str) -> ast.Module | None:
        """Return the AST of a file, None if it is not Python or cannot be read."""
        if file not in self._trees:
            self._trees[file] = _parse_source(file)
        return self._trees[file]

    def get_in_place_functions(self, file: str) -> dict[str, InPlaceFunction]:
        """Return the functions of a user's file that write to their arguments, by name."""
        if file not in self._in_place_functions:
            tree = self.parse_file(file) if is_user_file(file) else None
            self._in_place_functions[file] = find_in_place_functions(tree) if tree else {}
        return self._in_place_functions[file]

    def _analyze_class(self, cls: type) -> _ClassSource:
        classes = _TORCH_CLASSES if cls.__module__.startswith("torch.") else self._classes
        if cls not in classes:
            classes[cls] = _classify_methods(
                list_classes_below_module(cls), self._analyze_methods(cls)
            )
        return classes[cls]

    def _analyze_methods(self, cls: type) -> dict[str, list[_MethodSource]]:
        methods: dict[str, list[_MethodSource]] = {}
        for base in list_classes_below_module(cls):
            for name, value in vars(base).items():
                for function in _iter_functions(value):
                    node = self._find_definition(function)
                    if node is not None:
                        helpers = self.get_in_place_functions(function.__code__.co_filename)
                        methods.setdefault(name, []).append(
                            _analyze_method(base, name, function, node, helpers)
                        )
        return methods

    def _find_definition(self, function: FunctionType) -> ast.FunctionDef | None:
        code = function.__code__
        file = code.co_filename
        if file not in self._functions:
            self._functions[file] = _index_functions(self.parse_file(file))
        return self._functions[file].get((code.co_firstlineno, code.co_name))

    def _find_computed_assignment(self, class_source: _ClassSource, attribute: str) -> str:
        """Return "file:line" where the constructor assigns a computed name matching `attribute`."""
        for method in class_source.constructor_methods:
            for pattern, line in method.name_patterns.items():
                if re.fullmatch(pattern, attribute):
                    return method.format_line(line)
        return ""

    def _find_body_assignment(self, cls: type, attribute: str) -> str:
        """Return "file:line" where the body of `cls` or of a base assigns `attribute`, or ""."""
        owner = next(
            (
                base
                for base in list_classes_below_module(cls)
                if _declares_attribute(base, attribute)
            ),
            None,
        )
        file = self.find_file(owner) if owner else ""
        tree = self.parse_file(file) if file else None
        if owner is None or tree is None:
            return ""
        bodies = [
            node.body
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name == owner.__name__
        ]
        lines = [
            statement.lineno
            for body in bodies
            for statement in body
            if attribute in _list_assigned_names(statement)
        ]
        return format_location(file, lines[0]) if lines else ""


def _declares_attribute(cls: type, attribute: str) -> bool:
    """Whether the body of `cls` has the attribute or, in a dataclass, a field without a default."""
    return attribute in vars(cls) or attribute in getattr(cls, "__dataclass_fields__", {})


def _iter_functions(value: object) -> Iterator[FunctionType]:
    """Yield the functions with a `self` argument in a value of a class `__dict__`."""
    if isinstance(value, staticmethod | classmethod):
        return
    accessors = (value.fget, value.fset) if isinstance(value, property) else (value,)
    for accessor in accessors:
        inner = getattr(accessor, "func", accessor)
        function = inspect.unwrap(inner) if callable(inner) else inner
        if isinstance(function, FunctionType):
            yield function


def _index_functions(tree: ast.Module | None) -> _FunctionIndex:
    """Return the functions of a file by (first line, name), as in their code objects."""
    functions: _FunctionIndex = {}
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef):
            first_line = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            functions[first_line, node.name] = node
    return functions


def _parse_source(file: str) -> ast.Module | None:
    return _parse_text("".join(linecache.getlines(file)))


@lru_cache(maxsize=8)
def _parse_text(text: str) -> ast.Module | None:
    """Parse a file once for the checkpoints of one process: their classes are often in one file."""
    try:
        return parse_module(text)
    except (SyntaxError, ValueError, RecursionError):
        # Not Python (a compiled cell, a template), or changed since it was imported.
        return None


def _classify_methods(
    order: tuple[type, ...], methods: dict[str, list[_MethodSource]]
) -> _ClassSource:
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
    return _ClassSource(
        forward_methods=forward,
        mutating_methods=[
            m
            for m in mutating_methods
            if m.name not in {*_STATE_TRANSFER_METHODS, *_CONSTRUCTOR_METHODS}
        ],
        constructor_methods=constructor_methods,
    )


def _is_replaced(method: _MethodSource, methods: dict[str, list[_MethodSource]]) -> bool:
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
    methods: dict[str, list[_MethodSource]], names: Iterable[str]
) -> list[_MethodSource]:
    """Return the methods with these names: two for a property with a setter."""
    groups = [methods[name] for name in names if name in methods]
    return [method for group in groups for method in group if method.cls is group[0].cls]


def _find_reachable(
    order: tuple[type, ...], methods: dict[str, list[_MethodSource]], start: list[_MethodSource]
) -> list[_MethodSource]:
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


def _get_self_name(function: ast.FunctionDef) -> str:
    arguments = [*function.args.posonlyargs, *function.args.args]
    return arguments[0].arg if arguments else ""


def _analyze_method(
    cls: type,
    name: str,
    function: FunctionType,
    node: ast.FunctionDef,
    in_place_functions: dict[str, InPlaceFunction],
) -> _MethodSource:
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
    return _MethodSource(
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


def _list_assigned_names(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.Assign(targets=targets):
            return {t.id for t in targets if isinstance(t, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()
