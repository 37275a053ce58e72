"""ModuleWalk -> "file:line" of code outside a module's own class that writes its tensors."""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ckptool.modules.assignment_locations import format_location
from ckptool.modules.source.attribute_writes import (
    AttributeWrite,
    find_attribute_writes,
    find_deferred_functions,
    find_in_place_functions,
    list_parameters,
)
from ckptool.modules.source.local_aliases import ANY_DEPTH, ANY_NAME, Path, match_path, strip_index
from ckptool.modules.source.source_analysis import SourceAnalysis
from ckptool.modules.walk import FoundTensor, ModuleWalk, is_torch_class, list_classes_below_module

if TYPE_CHECKING:
    from torch import nn

_INITIALIZERS: Final = ("init", "reset", "build", "create", "make", "post_init", "register")
"""Starts of the names of functions that give a module its first values."""
_NOT_MODULES: Final = frozenset({"ctx", "args", "config", "cfg", "opts", "options", "batch"})
"""Names of parameters that are no modules by convention, though attributes of them are set."""


@dataclass(frozen=True, slots=True)
class _FreeWrite:
    """A write of an attribute of some module, which the source does not name."""

    path: Path
    location: str


class OutsideWrites:
    """Finds writes by the methods of parent modules and by functions of the same files."""

    def __init__(self, module_walk: ModuleWalk, source_analysis: SourceAnalysis) -> None:
        self._source_analysis = source_analysis
        self._members = dict(module_walk.modules)
        self._prefixes: dict[int, list[str]] = {}
        for prefix, member in module_walk.modules:
            self._prefixes.setdefault(id(member), []).append(prefix)
        self._writes_by_class: dict[type, tuple[tuple[AttributeWrite, str], ...]] = {}
        self._free_writes: dict[str, list[_FreeWrite]] = {}
        """Attribute -> the writes of an attribute of this name."""
        for write in self._iter_free_writes({type(member) for _, member in module_walk.modules}):
            self._free_writes.setdefault(write.path[-1], []).append(write)

    def find_write(self, found_tensor: FoundTensor) -> str:
        """Return "file:line" of the first write of the tensor outside of its class, or ""."""
        for prefix in self._prefixes.get(id(found_tensor.owner), ()):
            segments = tuple(prefix.split(".")) if prefix else ()
            location = self._find_parent_write(segments, found_tensor.attribute)
            if location:
                return location
            for write in self._free_writes.get(found_tensor.attribute, ()):
                if _match_from_end(write.path, (*segments, found_tensor.attribute)):
                    return write.location
        return ""

    def _find_parent_write(self, segments: Path, attribute: str) -> str:
        """Return the write by a method of the owner or of a module above it, nearest first."""
        for depth in range(len(segments), -1, -1):
            member = self._members.get(".".join(segments[:depth]))
            relative_path = (*segments[depth:], attribute)
            for write, location in self._list_member_writes(member) if member is not None else ():
                if any(match_path(path, relative_path) for path in _list_patterns(write.path)):
                    return location
        return ""

    def _list_member_writes(self, member: "nn.Module") -> tuple[tuple[AttributeWrite, str], ...]:
        """Return what its methods write; torch's own classes write to nothing but themselves."""
        cls = type(member)
        if is_torch_class(cls):
            return ()
        if cls not in self._writes_by_class:
            self._writes_by_class[cls] = tuple(
                (write, location)
                for write, location in self._source_analysis.list_later_writes(cls)
            )
        return self._writes_by_class[cls]

    def _iter_free_writes(self, classes: set[type]) -> Iterator[_FreeWrite]:
        """Yield the writes in the files of the user's classes that no method of them makes."""
        class_names: dict[str, set[str]] = {}
        for cls in sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)):
            for base in list_classes_below_module(cls):
                file = self._source_analysis.find_file(base)
                if file and not is_torch_class(base):
                    class_names.setdefault(file, set()).add(base.__name__)
        for file, names in class_names.items():
            tree = self._source_analysis.parse_file(file)
            if tree is not None:
                yield from _list_file_writes(file, tree, frozenset(names))


@lru_cache(maxsize=32)
def _list_file_writes(
    file: str, tree: ast.Module, class_names: frozenset[str]
) -> tuple[_FreeWrite, ...]:
    """Return the writes in a file that no method of the classes makes.

    Args:
        file: its path.
        tree: its AST; another one is another file, or another version of it.
        class_names: names of the classes whose own writes are known already.
    """
    return tuple(_iter_file_writes(file, tree, class_names))


def _iter_file_writes(
    file: str, tree: ast.Module, class_names: frozenset[str]
) -> Iterator[_FreeWrite]:
    helpers = find_in_place_functions(tree)
    imported_names = _list_imported_names(tree)
    for code, self_name, is_analyzed in _iter_code(tree, class_names):
        returned_names = _list_returned_names(code)
        for write in sorted(find_attribute_writes(code, helpers), key=lambda write: write.line):
            path = strip_index(write.path)
            is_own = write.root == self_name and (is_analyzed or len(path) == 1)
            is_made_here = write.root in returned_names
            if (
                path
                and path != ("data",)
                and ANY_NAME not in path[-1]
                and not write.is_registration
                and not (is_own or is_made_here)
                and write.root not in imported_names | _NOT_MODULES
            ):
                yield _FreeWrite(path, format_location(file, write.line))


def _iter_code(
    tree: ast.Module, class_names: frozenset[str]
) -> Iterator[tuple[ast.AST, str, bool]]:
    """Yield the code of a file that may run after construction, with the name of `self`, or "".

    And whether it is of a class in `class_names`, whose own writes are known already.
    """
    yield tree, "", False
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            yield from ((code, "", False) for code in _list_later_code(statement))
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for method in cls.body:
            if isinstance(method, ast.FunctionDef):
                self_name = next(iter(list_parameters(method)), "")
                is_analyzed = cls.name in class_names
                yield from ((code, self_name, is_analyzed) for code in _list_later_code(method))


def _list_later_code(function: ast.FunctionDef) -> Sequence[ast.AST]:
    """Return the function, or of one that gives first values only the hooks that it defines."""
    name = function.name.strip("_")
    if name.startswith(_INITIALIZERS):
        return find_deferred_functions(function)
    return [function]


def _list_imported_names(tree: ast.Module) -> frozenset[str]:
    return frozenset(
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    )


def _list_returned_names(code: ast.AST) -> set[str]:
    """Return the variables that a function returns and does not get: it may have made them."""
    if not isinstance(code, ast.FunctionDef):
        return set()
    returned_names = {
        node.value.id
        for node in ast.walk(code)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)
    }
    return returned_names - {*list_parameters(code)}


def _list_patterns(path: Path) -> Iterable[Path]:
    """Return a path and, where it ends in an index of a tensor, the path without it."""
    stripped_path = strip_index(path)
    return (path,) if stripped_path == path or not stripped_path else (path, stripped_path)


def _match_from_end(pattern: Path, path: Path) -> bool:
    """Whether the last segments of both fit, as far as the shorter one goes."""
    if ANY_DEPTH in pattern:
        start = len(pattern) - 1 - pattern[::-1].index(ANY_DEPTH)
        pattern = pattern[start + 1 :]
    length = min(len(pattern), len(path))
    return match_path(pattern[-length:], path[-length:])
