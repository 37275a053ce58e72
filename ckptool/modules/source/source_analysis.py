"""Source of a class -> lines that assign, use and write its attributes; nothing is executed."""

import ast
import inspect
import linecache
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import FunctionType
from typing import Final, TypeAlias

from ckptool.formats.python_text import parse_module
from ckptool.modules.assignment_locations import format_location, is_user_file
from ckptool.modules.source.argument_dependence import is_computed_from_arguments
from ckptool.modules.source.attribute_writes import (
    AttributeWrite,
    InPlaceFunction,
    find_in_place_functions,
)
from ckptool.modules.source.class_source import ClassSource, classify_methods
from ckptool.modules.source.local_aliases import ANY_NAME, match_path
from ckptool.modules.source.method_source import MethodSource, analyze_method
from ckptool.modules.walk import list_classes_below_module

_FunctionIndex: TypeAlias = dict[tuple[int, str], ast.FunctionDef]

_TORCH_CLASSES: Final[dict[type, ClassSource]] = {}
"""Torch's own classes, whose source does not change while the process runs."""


@dataclass(slots=True)
class SourceAnalysis:
    """Source locations of attributes; each file and each class is parsed once."""

    _classes: dict[type, ClassSource] = field(default_factory=dict)
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

    def _analyze_class(self, cls: type) -> ClassSource:
        classes = _TORCH_CLASSES if cls.__module__.startswith("torch.") else self._classes
        if cls not in classes:
            classes[cls] = classify_methods(
                list_classes_below_module(cls), self._analyze_methods(cls)
            )
        return classes[cls]

    def _analyze_methods(self, cls: type) -> dict[str, list[MethodSource]]:
        methods: dict[str, list[MethodSource]] = {}
        for base in list_classes_below_module(cls):
            for name, value in vars(base).items():
                for function in _iter_functions(value):
                    node = self._find_definition(function)
                    if node is not None:
                        helpers = self.get_in_place_functions(function.__code__.co_filename)
                        methods.setdefault(name, []).append(
                            analyze_method(base, name, function, node, helpers)
                        )
        return methods

    def _find_definition(self, function: FunctionType) -> ast.FunctionDef | None:
        code = function.__code__
        file = code.co_filename
        if file not in self._functions:
            self._functions[file] = _index_functions(self.parse_file(file))
        return self._functions[file].get((code.co_firstlineno, code.co_name))

    def _find_computed_assignment(self, class_source: ClassSource, attribute: str) -> str:
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


def _list_assigned_names(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.Assign(targets=targets):
            return {t.id for t in targets if isinstance(t, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()
