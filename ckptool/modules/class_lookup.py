"""Qualified class name from a pickle -> whether it is importable here, without importing."""

import ast
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ckptool.formats.pickle.module_source import find_module_source, iter_statements, parse_source


def class_exists(module: str, name: str, search_paths: tuple[Path, ...] = ()) -> bool | None:
    """Return whether `from module import name` could succeed, None if that is unknown.

    Args:
        module: dotted module name from a pickle; untrusted.
        name: name in the module; of a dotted name only the first part is looked up.
        search_paths: directories searched before sys.path.
    """
    if module == "__main__":
        return hasattr(sys.modules["__main__"], name)
    source = find_module_source(module, search_paths)
    return _defines_name(source, name.partition(".")[0]) if isinstance(source, Path) else source


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
    parsed = parse_source(file)
    if parsed is None:
        return None
    body, text = parsed
    dynamic_names = {"*"} if b"globals()" in text else set()
    return frozenset({*_iter_bound_names(body), *dynamic_names})


def _iter_bound_names(body: list[ast.stmt]) -> Iterator[str]:
    for statement in iter_statements(body):
        match statement:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield statement.name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
            case ast.Assign(targets=targets):
                yield from _iter_assigned_names(targets)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                yield from _iter_assigned_names([target])
            case _:
                pass


def _iter_assigned_names(targets: list[ast.expr]) -> Iterator[str]:
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
