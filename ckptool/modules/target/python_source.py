"""The part of a target before the colon: a dotted module name, or a Python file -> the module."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True, slots=True)
class PythonSource:
    """A Python module to import, by its name or from a file."""

    name: str
    """Dotted name that it is imported under."""
    file: Path | None = None
    """The file, if the target names one."""
    search_path: Path | None = None
    """Folder that `name` is relative to; of a file only."""

    @property
    def package(self) -> str:
        """Name of its topmost package."""
        return self.name.partition(".")[0]

    @property
    def search_paths(self) -> tuple[Path, ...]:
        """Folders that its own imports may need: those of its package, and its own."""
        if self.file is None or self.search_path is None:
            return ()
        return (self.search_path, self.file.parent)


def locate_source(text: str, folders: Sequence[Path]) -> PythonSource | None:
    """Return what `text` names, "package.module" or a path that ends in .py; None if neither.

    A file is a module of the package that it lies in (folders with `__init__.py`), else of the
    folders between it and the first of `folders` that contains it, else one by itself.

    Args:
        text: the part of a target before the colon.
        folders: a relative path is looked for in these, in turn.

    Raises:
        FileNotFoundError: `text` names a file that none of `folders` has.
    """
    if not is_python_file(text):
        is_name = all(part.isidentifier() for part in text.split("."))
        return PythonSource(text) if is_name and not text.endswith(".ipynb") else None
    candidates = (folder / text for folder in folders)
    file = next((path.resolve() for path in candidates if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(text)
    root = _find_package_root(file)
    if root == file.parent:
        roots = (folder.resolve() for folder in folders)
        root = next((f for f in roots if file.is_relative_to(f) and _is_name(file, f)), root)
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts) if _is_name(file, root) else re.sub(r"\W", "_", file.stem)
    # A script may be named random.py; the standard library's module stays what it is.
    return PythonSource(f"{name}_" if name in sys.stdlib_module_names else name, file, root)


def is_python_file(text: str) -> bool:
    """Whether the part of a target before the colon is the path of a Python file."""
    return text.endswith(".py")


def import_source(source: PythonSource) -> ModuleType:
    """Import a module; one that was imported from the same file before is returned again.

    Raises:
        BaseException: what the import raises.
    """
    if source.file is None:
        return importlib.import_module(source.name)
    loaded_module = sys.modules.get(source.name)
    if loaded_module is not None and _is_same_file(loaded_module, source.file):
        return loaded_module
    name = source.name if _can_import_parent(source) else source.name.rpartition(".")[2]
    spec = importlib.util.spec_from_file_location(name, source.file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source.file} is not a Python source file")
    module = importlib.util.module_from_spec(spec)
    shadowed_module = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        if shadowed_module is not None:
            sys.modules[name] = shadowed_module
        raise
    return module


@contextmanager
def hide_command_line(name: str) -> Iterator[None]:
    """Have sys.argv hold the module's name alone: our arguments are not those of a script."""
    original_argv = sys.argv
    sys.argv = [name]
    try:
        yield
    finally:
        sys.argv = original_argv


def _find_package_root(file: Path) -> Path:
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        folder = folder.parent
    return folder


def _is_name(file: Path, root: Path) -> bool:
    return all(part.isidentifier() for part in file.relative_to(root).with_suffix("").parts)


def _can_import_parent(source: PythonSource) -> bool:
    """Whether the package of a file is the one that Python imports by that name."""
    parent_name = source.name.rpartition(".")[0]
    if not parent_name or source.file is None:
        return True
    try:
        parent = importlib.import_module(parent_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{parent_name}.".startswith(f"{error.name}."):
            raise
        return False
    folders = [Path(path).resolve() for path in getattr(parent, "__path__", ())]
    return source.file.parent in folders


def _is_same_file(module: ModuleType, file: Path) -> bool:
    module_file = getattr(module, "__file__", None)
    return module_file is not None and Path(module_file).resolve() == file
