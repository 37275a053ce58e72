"""Qualified class name from a pickle -> whether it is importable here, without importing."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path


def class_exists(module: str, name: str, search_paths: tuple[Path, ...] = ()) -> bool | None:
    """Return whether `from module import name` could succeed, None if that is unknown.

    Args:
        module: dotted module name from a pickle; untrusted.
        name: name in the module; of a dotted name only the first part is looked up.
        search_paths: directories searched before sys.path.
    """
    if module == "__main__":
        return hasattr(sys.modules["__main__"], name)
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    spec = _find_package(parts[0], search_paths)
    if spec is None:
        return False
    source = _find_source(spec, parts[1:])
    return _defines_name(source, name.partition(".")[0]) if isinstance(source, Path) else source


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
    """Return the source file of the module `parts` below `spec`.

    Without a source file, return the answer of `class_exists`: False or None.
    """
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


def _defines_name(file: Path, name: str) -> bool | None:
    stat = file.stat()
    names = _read_defined_names(file, stat.st_mtime_ns, stat.st_size)
    if names is None:
        return None
    if name in names:
        return True
    return None if names & {"*", "__getattr__"} else False


@lru_cache(maxsize=256)
def _read_defined_names(file: Path, _mtime_ns: int, _size: int) -> frozenset[str] | None:
    """Return the names defined at the top level of a source file, None if it cannot be parsed.

    Contains "*" if further names may be defined dynamically.
    """
    try:
        text = file.read_bytes()
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return None
    dynamic_names = {"*"} if b"globals()" in text else set()
    return frozenset({*_iter_bound_names(tree.body), *dynamic_names})


def _iter_bound_names(body: list[ast.stmt]) -> Iterator[str]:
    for statement in body:
        match statement:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield statement.name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
            case ast.Assign(targets=targets):
                yield from _iter_assigned_names(targets)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                yield from _iter_assigned_names([target])
            case ast.If() | ast.Try() | ast.TryStar() | ast.With() | ast.For() | ast.While():
                yield from _iter_bound_names(_list_nested_statements(statement))
            case _:
                pass


def _iter_assigned_names(targets: list[ast.expr]) -> Iterator[str]:
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _list_nested_statements(statement: ast.stmt) -> list[ast.stmt]:
    """Return the statements of all branches of a compound statement."""
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    blocks += [handler.body for handler in getattr(statement, "handlers", [])]
    return [nested for block in blocks for nested in block]
