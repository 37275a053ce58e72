"""(module, name) of a pickle -> where the object is defined, read from source, never imported.

`torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.Popen` is
`subprocess.Popen`: what a name is spelled like says nothing of what it is.
"""

import ast
import sys
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.formats.pickle.module_source import find_module_source, iter_statements, parse_source


class OriginKind(StrEnum):
    """What a name is bound to where it is defined."""

    CLASS = "class"
    FUNCTION = "function"
    MODULE = "module"
    VALUE = "value"
    """The result of an expression."""
    STANDARD = "standard library"
    """An object of the standard library, whose source is not read."""
    UNRESOLVED = "unresolved"
    """Compiled, made at import time, or of a package that is not installed here."""


class NameOrigin(Struct, frozen=True):
    """Definition of an object: `module.name`, after all re-exports."""

    module: str
    name: str
    """"" for a module."""
    kind: OriginKind
    bases: tuple[tuple[str, str], ...] = ()
    """(module, name) of each base class that is imported by name."""


class _SourceBudgetSpentError(Exception):
    """More source would have to be parsed than one checkpoint may cause."""


class SourceBudget:
    """Bytes of source that may still be parsed: a pickle can name every module of every package."""

    def __init__(self) -> None:
        self.remaining = _MAX_PARSED_BYTES

    def reset(self) -> None:
        """Begin a new checkpoint."""
        self.remaining = _MAX_PARSED_BYTES

    def spend(self, nbytes: int) -> None:
        if nbytes > self.remaining:
            raise _SourceBudgetSpentError
        self.remaining -= nbytes


_MAX_PARSED_BYTES: Final = 6 << 20
"""Bytes of source that the names of one checkpoint may have parsed; a second or two of work."""
SOURCE_BUDGET: Final = SourceBudget()
_MAX_STEPS: Final = 16
"""Re-exports of one name that are followed."""


def resolve_origin(module: str, name: str) -> NameOrigin:
    """Return where `module.name` is defined, following the imports of installed packages."""
    try:
        return _follow_imports(module, name)
    except _SourceBudgetSpentError:
        return NameOrigin(module, name, OriginKind.UNRESOLVED)


def _follow_imports(module: str, name: str) -> NameOrigin:
    for _ in range(_MAX_STEPS):
        if module.partition(".")[0] in sys.stdlib_module_names:
            return NameOrigin(module, name, OriginKind.STANDARD)
        names = _read_names(module)
        binding = names.get(name) if names is not None else None
        if binding is None:
            starred = _find_starred(module, name, names or {})
            if starred is None:
                return _find_submodule(module, name)
            module = starred
        elif binding.kind is OriginKind.UNRESOLVED:
            if not binding.name or _is_module(binding.module, binding.name):
                module_name = ".".join(filter(None, (binding.module, binding.name)))
                return NameOrigin(module_name, "", OriginKind.MODULE)
            module, name = binding.module, binding.name
        else:
            return binding
    return NameOrigin(module, name, OriginKind.UNRESOLVED)


def _find_submodule(module: str, name: str) -> NameOrigin:
    if _is_module(module, name):
        return NameOrigin(f"{module}.{name}", "", OriginKind.MODULE)
    return NameOrigin(module, name, OriginKind.UNRESOLVED)


def _is_module(module: str, name: str) -> bool:
    """Whether `module.name` is a module with a source file, and `module` binds no such name."""
    names = _read_names(module)
    is_bound = names is not None and name in names
    return not is_bound and isinstance(find_module_source(f"{module}.{name}"), Path)


def _find_starred(module: str, name: str, names: Mapping[str, NameOrigin]) -> str | None:
    """Return the module from which `from ... import *` of `module` takes `name`, or None."""
    for key, binding in names.items():
        if key.startswith("*") and binding.module != module:
            star_names = _read_names(binding.module)
            if star_names is not None and name in star_names:
                return binding.module
    return None


def _read_names(module: str) -> Mapping[str, NameOrigin] | None:
    """Return what each top-level name of a module is bound to, None without a source file.

    A binding of kind UNRESOLVED is an import or an alias, and names its source. Keys that begin
    with "*" are the modules of `from ... import *`.
    """
    file = find_module_source(module)
    if not isinstance(file, Path):
        return None
    stat = file.stat()
    return _parse_names(module, file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _parse_names(
    module: str, file: Path, _mtime_ns: int, size: int
) -> Mapping[str, NameOrigin] | None:
    SOURCE_BUDGET.spend(size)
    parsed = parse_source(file)
    if parsed is None:
        return None
    package = module if file.stem == "__init__" else module.rpartition(".")[0]
    names: dict[str, NameOrigin] = {}
    for statement in iter_statements(parsed[0]):
        match statement:
            case ast.ClassDef():
                names[statement.name] = _describe_class(module, statement, names)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names[statement.name] = NameOrigin(module, statement.name, OriginKind.FUNCTION)
            case ast.Import():
                for alias in statement.names:
                    target = alias.name if alias.asname else alias.name.partition(".")[0]
                    names[alias.asname or target] = NameOrigin(target, "", OriginKind.UNRESOLVED)
            case ast.ImportFrom():
                _add_imports(names, statement, package)
            case ast.Assign() | ast.AnnAssign():
                _add_assignments(names, statement, module)
            case _:
                pass
    return names


def _add_imports(names: dict[str, NameOrigin], statement: ast.ImportFrom, package: str) -> None:
    parents = package.split(".")
    base = ".".join(parents[: len(parents) - statement.level + 1]) if statement.level else ""
    source = ".".join(filter(None, (base, statement.module)))
    for alias in statement.names:
        name = f"*{source}" if alias.name == "*" else alias.asname or alias.name
        # A second import under the same name, as in try: ... except ImportError:, is a stub.
        names.setdefault(name, NameOrigin(source, alias.name, OriginKind.UNRESOLVED))


def _add_assignments(
    names: dict[str, NameOrigin], statement: ast.Assign | ast.AnnAssign, module: str
) -> None:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    for target in targets:
        if isinstance(target, ast.Name) and statement.value is not None:
            name = target.id
            alias = _resolve_expression(statement.value, names, module)
            names[name] = alias or names.get(name) or NameOrigin(module, name, OriginKind.VALUE)


def _resolve_expression(
    node: ast.expr, names: Mapping[str, NameOrigin], module: str
) -> NameOrigin | None:
    """Return the binding of `name` or `module.attribute`, None for other expressions."""
    steps: list[str] = []
    while isinstance(node, ast.Attribute):
        steps.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    root = names.get(node.id)
    if root is None or not steps:
        return root
    if root.kind is not OriginKind.UNRESOLVED:
        return NameOrigin(module, node.id, OriginKind.VALUE)
    source = ".".join(filter(None, (root.module, root.name, *steps[:-1])))
    return NameOrigin(source, steps[-1], OriginKind.UNRESOLVED)


def _describe_class(
    module: str, statement: ast.ClassDef, names: Mapping[str, NameOrigin]
) -> NameOrigin:
    resolved = (_resolve_expression(base, names, module) for base in statement.bases)
    bases = tuple((base.module, base.name) for base in resolved if base is not None)
    return NameOrigin(module, statement.name, OriginKind.CLASS, bases)
