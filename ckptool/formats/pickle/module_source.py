"""Dotted module name -> its source file and statements, found without importing anything."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path

from ckptool.formats.python_text import parse_module

_MAX_NAME_CHARACTERS = 1000
MAX_SOURCE_BYTES = 4 << 20
"""Maximum size of a source file that is parsed, in bytes; torch's largest has a tenth of it."""


def find_module_source(module: str, search_paths: tuple[Path, ...] = ()) -> Path | bool | None:
    """Return the source file of `module`; without one False if it cannot exist, None if unknown.

    Args:
        module: dotted module name from a pickle; untrusted.
        search_paths: directories searched before sys.path.
    """
    parts = module.split(".")
    if len(module) > _MAX_NAME_CHARACTERS or not all(part.isidentifier() for part in parts):
        return False
    try:
        spec = _find_package(parts[0], search_paths)
        return False if spec is None else _find_source(spec, parts[1:])
    except (OSError, ValueError):  # a name that the file system cannot have
        return False


def parse_source(file: Path) -> tuple[list[ast.stmt], bytes] | None:
    """Return the top-level statements and the text of a source file, None if it has none."""
    try:
        if file.stat().st_size > MAX_SOURCE_BYTES:
            return None
        text = file.read_bytes()
        return parse_module(text).body, text
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return None


def iter_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported, those in branches included."""
    for statement in body:
        match statement:
            case ast.If() | ast.Try() | ast.TryStar() | ast.With() | ast.For() | ast.While():
                yield from iter_statements(_list_nested_statements(statement))
            case _:
                yield statement


def _find_package(package: str, search_paths: tuple[Path, ...]) -> ModuleSpec | None:
    """Find a top-level package; finding a sub-module would import its parents."""
    spec = PathFinder.find_spec(package, [*map(str, search_paths), *sys.path])
    if spec is not None:
        return spec
    try:
        return importlib.util.find_spec(package)
    except ValueError:
        # Loaded without a spec: it was created dynamically, so its contents are unknown.
        return ModuleSpec(package, None, origin="unknown")


def _find_source(spec: ModuleSpec, parts: list[str]) -> Path | bool | None:
    """Return the source file of the module `parts` below `spec`, or False or None without one."""
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    file = Path(spec.origin) if spec.origin else None
    for part in parts:
        if not folders:
            # Not a package; but os.path and the like are put into sys.modules dynamically.
            return _answer_without_file(file)
        parent_file, file = file, _find_module_file(folders, part)
        folders = [folder / part for folder in folders if (folder / part).is_dir()]
        if file is None and not folders:
            return _answer_without_file(parent_file)
    if file is None:
        # A namespace package defines no names; a module without an origin is built in.
        return False if folders else None
    return file if file.suffix == ".py" and file.is_file() else None


def _find_module_file(folders: list[Path], name: str) -> Path | None:
    suffixes = (".py", *EXTENSION_SUFFIXES, ".pyc")
    for folder in folders:
        candidates = [folder / name / f"__init__{suffix}" for suffix in suffixes]
        candidates += [folder / f"{name}{suffix}" for suffix in suffixes]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    return None


def _answer_without_file(file: Path | None) -> bool | None:
    """Return False if `file` cannot create sub-modules dynamically, None if it may."""
    if file is None:
        return False
    if file.suffix != ".py" or not file.is_file():
        return None
    text = file.read_bytes()
    return None if b"sys.modules" in text or b"__path__" in text else False


def _list_nested_statements(statement: ast.stmt) -> list[ast.stmt]:
    """Return the statements of all branches of a compound statement."""
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    blocks += [handler.body for handler in getattr(statement, "handlers", [])]
    return [nested for block in blocks for nested in block]
