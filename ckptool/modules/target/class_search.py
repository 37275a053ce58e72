"""Folder of a project -> its module classes, factories and instances; nothing is imported."""

import ast
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptool.formats.python_text import parse_module

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
class FoundModule:
    """A class of a project that is a module, a function that only builds one, or an instance."""

    file: str
    """Path relative to the folder."""
    name: str
    parameters: tuple[str, ...]
    """Names of its parameters; of a class those of the constructor, also of one that it inherits.
    """
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

    @property
    def key(self) -> tuple[str, str]:
        """The file and the name: two files may define classes of one name."""
        return self.file, self.node.name


class _ProjectClasses:
    """Classes of a project, found by the name that a class statement uses for its base."""

    def __init__(self, nodes: Sequence[_ClassNode]) -> None:
        self.nodes = nodes
        self._by_name: dict[str, list[_ClassNode]] = {}
        for node in nodes:
            self._by_name.setdefault(node.node.name, []).append(node)

    def find_bases(self, node: _ClassNode) -> Iterator[_ClassNode]:
        """Yield the bases that the project defines: of the same file, or else the first found."""
        for base in node.bases:
            namesakes = self._by_name.get(base.rpartition(".")[2], ())
            others = [other for other in namesakes if other is not node]
            yield from [*(other for other in others if other.file == node.file), *others][:1]

    def find_modules(self) -> dict[tuple[str, str], _ClassNode]:
        """Return the classes with a module of a library among their bases, by key."""
        modules = {n.key: n for n in self.nodes if any(map(_is_library_base, n.bases))}
        while True:
            subclasses = {
                node.key: node
                for node in self.nodes
                if node.key not in modules
                and any(base.key in modules for base in self.find_bases(node))
            }
            if not subclasses:
                return modules
            modules |= subclasses

    def find_constructor(self, node: _ClassNode) -> ast.FunctionDef | None:
        """Return the `__init__` of a class or of its first base with one, or None."""
        visited: set[tuple[str, str]] = set()
        current: _ClassNode | None = node
        while current is not None and current.key not in visited:
            visited.add(current.key)
            for statement in current.node.body:
                if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                    return statement
            current = next(self.find_bases(current), None)
        return None


def find_modules(folder: Path) -> tuple[tuple[FoundModule, ...], tuple[str, ...]]:
    """Return what makes a module in a folder, and the files that could not be looked at.

    Classes first, then functions that build one and return it, then instances.
    """
    nodes: list[_ClassNode] = []
    trees: dict[str, ast.Module] = {}
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
        trees[name] = tree
        is_importable = all(map(_is_definition, tree.body))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = tuple(ast.unparse(base) for base in node.bases)
                nodes.append(_ClassNode(name, node, bases, is_importable))
    project_classes = _ProjectClasses(nodes)
    module_nodes = project_classes.find_modules()
    known_names = {name for _, name in module_nodes}
    classes = [
        _describe_class(node, project_classes.find_constructor(node))
        for node in module_nodes.values()
    ]
    makers = [
        module
        for name, tree in trees.items()
        for statement in tree.body
        for module in _find_makers(name, tree, statement, known_names)
    ]
    ordered = [
        *sorted(classes, key=lambda module: (module.file, module.name)),
        *sorted(makers, key=lambda module: (not module.parameters, module.file, module.name)),
    ]
    return tuple(ordered), tuple(unread)


def _find_makers(
    file: str, tree: ast.Module, statement: ast.stmt, known_names: set[str]
) -> Iterator[FoundModule]:
    """Yield the factory, or the instance, that a statement of a file makes."""
    is_importable = all(map(_is_definition, tree.body))
    match statement:
        case ast.FunctionDef(name=name) if not name.startswith(("_", "test_")):
            if _is_factory(statement, known_names):
                parameters, required = _list_parameters(statement.args)
                yield FoundModule(file, name, parameters, required, is_importable)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            if not name.startswith("_") and _makes_module(value, known_names):
                yield FoundModule(file, name, (), (), is_importable)
        case _:
            pass


def _is_factory(function: ast.FunctionDef, known_names: set[str]) -> bool:
    """Whether a function builds a module and returns it, and its statements do nothing else."""
    if function.decorator_list or not all(map(_only_builds, function.body)):
        return False
    modules = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _makes_module(node.value, known_names)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    return bool(returned) and all(
        (isinstance(value, ast.Name) and value.id in modules) or _makes_module(value, known_names)
        for value in returned
    )


def _only_builds(statement: ast.stmt) -> bool:
    match statement:
        case ast.If(body=body, orelse=orelse):
            return all(map(_only_builds, (*body, *orelse)))
        case ast.Expr(value=value):
            return isinstance(value, ast.Constant)
        case _:
            kinds = (ast.Assign, ast.AnnAssign, ast.Return, ast.Raise, ast.Assert, ast.Pass)
            return isinstance(statement, (*kinds, ast.Import, ast.ImportFrom))


def _makes_module(value: ast.expr | None, known_names: set[str]) -> bool:
    """Whether an expression calls a module class of the project or of torch.nn."""
    if not isinstance(value, ast.Call):
        return False
    name = ast.unparse(value.func)
    last_name = name.rpartition(".")[2]
    is_of_torch = name.startswith(("nn.", "torch.nn.")) and name.count(".") < 3
    return last_name in known_names or (is_of_torch and last_name[:1].isupper())


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


def is_project_path(name: str) -> bool:
    """Whether a relative path is not in a folder of environments, caches, builds or tests."""
    return not any(
        part.startswith((".", "__")) or part in _OTHER_FOLDERS for part in name.split("/")[:-1]
    )


def _parse_file(path: Path) -> ast.Module | None:
    try:
        content = path.read_bytes()
        return parse_module(content) if len(content) <= _MAX_NBYTES else None
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_library_base(base: str) -> bool:
    return base.startswith(("nn.", "torch.nn.")) or base.rpartition(".")[2] in _BASE_NAMES


def _describe_class(node: _ClassNode, constructor: ast.FunctionDef | None) -> FoundModule:
    if constructor is None:
        return FoundModule(*node.key, (), (), node.is_importable)
    parameters, required = _list_parameters(constructor.args)
    return FoundModule(*node.key, parameters[1:], required[1:], node.is_importable)


def _list_parameters(arguments: ast.arguments) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of all parameters, and of those without a default."""
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    required = positional[: len(positional) - len(arguments.defaults)]
    keywords = [argument.arg for argument in arguments.kwonlyargs]
    required += [
        name for name, default in zip(keywords, arguments.kw_defaults, strict=True) if not default
    ]
    return (*positional, *keywords), tuple(required)


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
