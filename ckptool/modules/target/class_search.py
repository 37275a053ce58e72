"""Folder of a project -> its classes that are modules, by their source; nothing is imported."""

import ast
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptool.python_text import parse_module

_MAX_FILES: Final = 2000
_MAX_NBYTES: Final = 1_000_000
_OTHER_FOLDERS: Final = frozenset(
    {"site-packages", "node_modules", "build", "dist", "venv", "env", "tests", "test", "docs"}
)
_BASE_NAMES: Final = frozenset({"Module", "LightningModule", "PreTrainedModel", "ModelMixin"})
"""Last names of classes of libraries that are modules."""
_QUIET_CALLS: Final = ("add_argument", "set_defaults", "manual_seed", "filterwarnings", "insert",
                       "append", "basicConfig", "set_float32_matmul_precision")  # fmt: skip
"""Calls of a script that only prepare what follows."""


@dataclass(frozen=True, slots=True)
class FoundClass:
    """A class of a project that is a module, by its source."""

    file: str
    """Path relative to the folder."""
    name: str
    parameters: tuple[str, ...]
    """Names of its constructor's parameters; those of a base in the project if it has none."""
    required: tuple[str, ...]
    """Those without a default."""
    is_importable: bool
    """Whether its file only defines things, so that importing it does not start a training."""

    @property
    def target(self) -> str:
        return f"{self.file}:{self.name}"


@dataclass(frozen=True, slots=True)
class _ClassNode:
    file: str
    node: ast.ClassDef
    bases: tuple[str, ...]
    is_importable: bool


def find_module_classes(folder: Path) -> tuple[tuple[FoundClass, ...], tuple[str, ...]]:
    """Return the module classes of a folder, and the files that could not be looked at."""
    nodes: dict[str, _ClassNode] = {}
    unread: list[str] = []
    for count, path in enumerate(iter_project_files(folder, (".py",))):
        name = path.relative_to(folder).as_posix()
        if count >= _MAX_FILES:
            unread.append(f"{name} and what follows: more than {_MAX_FILES} files")
            break
        if path.name.startswith("test_") or path.name == "conftest.py":
            continue
        tree = _parse_file(path)
        if tree is None:
            unread.append(f"{name}: no Python source that can be read")
            continue
        is_importable = all(map(_is_definition, tree.body))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = tuple(ast.unparse(base) for base in node.bases)
                nodes.setdefault(node.name, _ClassNode(name, node, bases, is_importable))
    known_names = _find_modules(nodes)
    classes = [_describe_class(nodes, name) for name in nodes if name in known_names]
    return tuple(sorted(classes, key=lambda c: (c.file, c.name))), tuple(unread)


def iter_project_files(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yield the files of a project with these suffixes; not those of environments and caches."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith((".", "__"))
            and name not in _OTHER_FOLDERS
            and not (Path(parent) / name / "pyvenv.cfg").exists()
        )
        yield from (Path(parent) / name for name in sorted(files) if name.endswith(tuple(suffixes)))


def _parse_file(path: Path) -> ast.Module | None:
    try:
        content = path.read_bytes()
        return parse_module(content) if len(content) <= _MAX_NBYTES else None
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _find_modules(nodes: dict[str, _ClassNode]) -> set[str]:
    """Return the names of the classes that have a module of a library among their bases."""
    module_names = {name for name, node in nodes.items() if any(map(_is_library_base, node.bases))}
    while True:
        added = {
            name
            for name, node in nodes.items()
            if name not in module_names
            and any(base.rpartition(".")[2] in module_names for base in node.bases)
        }
        if not added:
            return module_names
        module_names |= added


def _is_library_base(base: str) -> bool:
    return base.startswith(("nn.", "torch.nn.")) or base.rpartition(".")[2] in _BASE_NAMES


def _describe_class(nodes: dict[str, _ClassNode], name: str) -> FoundClass:
    node = nodes[name]
    constructor = _find_constructor(nodes, name)
    if constructor is None:
        return FoundClass(node.file, name, (), (), node.is_importable)
    arguments = constructor.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)][1:]
    required = positional[: len(positional) - len(arguments.defaults)]
    keywords = [argument.arg for argument in arguments.kwonlyargs]
    required += [
        name for name, default in zip(keywords, arguments.kw_defaults, strict=True) if not default
    ]
    return FoundClass(
        node.file, name, (*positional, *keywords), tuple(required), node.is_importable
    )


def _find_constructor(nodes: dict[str, _ClassNode], name: str) -> ast.FunctionDef | None:
    """Return the `__init__` of a class or of its first base in the project that has one."""
    visited_names: set[str] = set()
    while name in nodes and name not in visited_names:
        visited_names.add(name)
        for statement in nodes[name].node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                return statement
        name = next(iter(nodes[name].bases), "").rpartition(".")[2]
    return None


def _is_definition(statement: ast.stmt) -> bool:
    """Whether a statement of a file defines or prepares something, and runs nothing."""
    match statement:
        case ast.If(test=test, body=body, orelse=orelse):
            return "__name__" in ast.unparse(test) or all(map(_is_definition, (*body, *orelse)))
        case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
            parts = (*body, *orelse, *final, *(part for h in handlers for part in h.body))
            return all(map(_is_definition, parts))
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))):
            return name in _QUIET_CALLS
        case ast.Expr(value=value):
            return isinstance(value, ast.Constant)
        case ast.For() | ast.While() | ast.With() | ast.AsyncFor() | ast.AsyncWith():
            return False
        case _:
            return True
