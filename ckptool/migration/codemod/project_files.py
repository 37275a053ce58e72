"""Folder of a project -> its Python files, their classes and the bindings of an attribute."""

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ckptool.errors import PlanError
from ckptool.migration.codemod.assignments import AttributeBinding, find_bindings

_MAX_FILES: Final = 5000
"""Python files of a project that are read."""
_MAX_FILE_NBYTES: Final = 4 << 20
_OTHER_CODE: Final = frozenset(
    {"site-packages", "dist-packages", "node_modules", "__pycache__", "build", "dist", "venv"}
)
"""Folders whose files are not the project's source."""
_CLASS_STATEMENT: Final = re.compile(
    r"^[ \t]*class[ \t]+(\w+)[ \t]*(?:\[[^\]]*\])?[ \t]*\(([^)]*)\)", re.MULTILINE
)
"""Name and bases of a class; type parameters between them are skipped."""
_SUBSCRIPT: Final = re.compile(r"\[[^\[\]]*\]")


def is_own_source(path: Path, root: Path) -> bool:
    """Whether a file is source of the project at `root`, and not of a package installed in it."""
    if not path.is_relative_to(root):
        return False
    folders = path.relative_to(root).parts[:-1]
    return not any(name in _OTHER_CODE or name.startswith(".") for name in folders)


def decode_source(content: bytes) -> tuple[str, str]:
    """Return the text of a Python file, its line ends as they are, and its encoding.

    Raises:
        PlanError: the encoding is unknown, or the bytes are not of that encoding.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding), encoding
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise PlanError(f"the file cannot be decoded: {error}") from error


@dataclass(slots=True)
class ProjectFiles:
    """Python files of a project, read once."""

    root: Path
    """Resolved folder."""
    _texts: dict[Path, str] | None = None
    _trees: dict[Path, ast.Module | None] = field(default_factory=dict)
    _bases: dict[tuple[Path, str], set[tuple[Path, str]]] = field(default_factory=dict)
    is_cut: bool = False
    """Whether there are more files than are read."""

    def find_tree(self, path: Path) -> ast.Module | None:
        """Return the AST of a file, None if it is not Python or not of the project."""
        if path not in self._trees:
            try:
                self._trees[path] = ast.parse(self._read_texts()[path])
            except (KeyError, SyntaxError, ValueError, RecursionError):
                self._trees[path] = None
        return self._trees[path]

    def list_bindings_in(self, path: Path, attribute: str, set_line: int) -> list[AttributeBinding]:
        """Return the bindings of an attribute in a file; `set_line` as in `find_bindings`."""
        tree = self.find_tree(path)
        return find_bindings(tree, attribute, set_line) if tree is not None else []

    def iter_bindings(self, attribute: str) -> Iterator[tuple[Path, AttributeBinding]]:
        """Yield the bindings of an attribute, of any object, in all files."""
        for path, tree in self.iter_trees(rf"\b{re.escape(attribute)}\b|setattr|delattr"):
            for binding in find_bindings(tree, attribute):
                yield path, binding

    def iter_trees(self, pattern: str) -> Iterator[tuple[Path, ast.Module]]:
        """Yield the files in whose text a regular expression matches, with their ASTs."""
        word = re.compile(pattern)
        for path, text in self._read_texts().items():
            tree = self.find_tree(path) if word.search(text) else None
            if tree is not None:
                yield path, tree

    def find_callers(self, method: str) -> set[str]:
        """Return the names of all functions that use an attribute of the name of a method."""
        return {
            caller.name
            for _, tree in self.iter_trees(rf"\b{re.escape(method)}\b")
            for caller in ast.walk(tree)
            if isinstance(caller, ast.FunctionDef)
            for node in ast.walk(caller)
            if isinstance(node, ast.Attribute) and node.attr == method
        }

    def get_text(self, path: Path) -> str:
        """Return the text of a file, "" if it is not one of the project."""
        return self._read_texts().get(path, "")

    def find_related_classes(self, path: Path, class_name: str) -> set[tuple[Path, str]]:
        """Return (file, name) of a class, of its bases and of those that derive from it."""
        bases = self._find_bases()
        own = path, class_name
        related = {own, *_close(bases, {own})}
        return related | {other for other in bases if own in _close(bases, {other})}

    def _find_bases(self) -> dict[tuple[Path, str], set[tuple[Path, str]]]:
        """Return the bases of each class: those of its file by this name, else of any other."""
        if not self._bases:
            statements = [
                (path, name, re.findall(r"(\w+)\s*(?:,|$)", _remove_subscripts(arguments)))
                for path, text in self._read_texts().items()
                for name, arguments in _CLASS_STATEMENT.findall(text)
            ]
            homes: dict[str, set[Path]] = {}
            for path, name, _ in statements:
                homes.setdefault(name, set()).add(path)
            for path, name, base_names in statements:
                places = self._bases.setdefault((path, name), set())
                for base in base_names:
                    files = homes.get(base, set())
                    is_here = path in files and base != name
                    places |= {(file, base) for file in ({path} if is_here else files - {path})}
        return self._bases

    def may_use_class(self, file: Path, path: Path, class_name: str) -> bool:
        """Whether a file may hold instances of the class in `path`: it is the file, or names it.

        A file that defines a class of this name itself has to name the module.
        """
        if file == path:
            return True
        text = self._read_texts().get(file, "")
        is_defined = (file, class_name) in self._find_bases()
        names = [path.stem] if is_defined else [path.stem, class_name]
        return any(re.search(rf"\b{re.escape(name)}\b", text) for name in names)

    def find_text(self, pattern: str) -> int:
        """Return how often a regular expression matches in all files."""
        return sum(len(re.findall(pattern, text)) for text in self._read_texts().values())

    def _read_texts(self) -> dict[Path, str]:
        if self._texts is None:
            self._texts = {}
            for path in self._iter_paths():
                if len(self._texts) >= _MAX_FILES:
                    self.is_cut = True
                    break
                try:
                    if path.stat().st_size <= _MAX_FILE_NBYTES:
                        self._texts[path.resolve()] = decode_source(path.read_bytes())[0]
                except (OSError, PlanError):
                    continue
        return self._texts

    def _iter_paths(self) -> Iterator[Path]:
        for folder, names, files in os.walk(self.root):
            names[:] = sorted(
                name for name in names if name not in _OTHER_CODE and not name.startswith(".")
            )
            for name in sorted(files):
                if name.endswith(".py"):
                    yield Path(folder, name)


def _remove_subscripts(bases: str) -> str:
    """Return the text of bases without subscripts: `Base[dict[str, int]], Mixin` without types."""
    while (shorter := _SUBSCRIPT.sub("", bases)) != bases:
        bases = shorter
    return bases


def _close(
    bases: dict[tuple[Path, str], set[tuple[Path, str]]], classes: set[tuple[Path, str]]
) -> set[tuple[Path, str]]:
    """Return all bases of classes."""
    closed: set[tuple[Path, str]] = set()
    while classes := {base for name in classes for base in bases.get(name, ())} - closed:
        closed |= classes
    return closed
