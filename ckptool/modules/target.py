"""ModuleSpec -> the class, factory or instance that its target names."""

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from ckptool.errors import ModuleError
from ckptool.modules.usercode import UserCodeError, user_code


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """Import target of a class, a factory or an instance, and its arguments."""

    target: str
    """"package.module:Name"; the name may be dotted: "package.module:Class.build"."""
    kwargs: Mapping[str, object] = field(default_factory=dict)
    search: tuple[Path, ...] = ()
    """Directories prepended to sys.path during import and construction."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Arguments for parameters of the signature that are not in `kwargs`."""


@contextmanager
def importable(spec: ModuleSpec) -> Iterator[None]:
    """Prepend `spec.search_paths` to sys.path; restore it on exit.

    A module of the same name that was imported from another file is removed from sys.modules until
    exit: Python would return it again, and the report would describe the wrong code.
    """
    before = list(sys.path)
    package = spec.target.partition(":")[0].partition(".")[0]
    search = [str(path.absolute()) for path in spec.search]
    aside = _loaded(package) if _is_shadowed(package, search) else {}
    for name in aside:
        del sys.modules[name]
    sys.path[:0] = search
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        if aside:
            for name in _loaded(package):
                del sys.modules[name]
            sys.modules.update(aside)


def resolve(spec: ModuleSpec) -> Any:
    """Import and return the object that `spec.target` names.

    Raises:
        ModuleError: the target is malformed, or cannot be imported or found.
    """
    name, colon, path = spec.target.partition(":")
    dotted = all(part.isidentifier() for part in (*name.split("."), *path.split(".")))
    if not (colon and dotted):
        raise ModuleError(spec.target, _form(spec.target))
    found: Any = _imported(spec.target, name)
    where = name
    for part in path.split("."):
        try:
            with user_code():
                found = getattr(found, part)
        except UserCodeError as error:
            if isinstance(error.error, AttributeError):
                raise ModuleError(spec.target, _no_attribute(found, where, part)) from error
            raise ModuleError(spec.target, f"looking up {part!r} raised {error}") from error
        where = f"{where}.{part}"
    return found


def arguments(spec: ModuleSpec, function: Any) -> dict[str, object]:
    """Return the keyword arguments for `function`.

    Raises:
        ModuleError: they do not match its signature; the message shows the signature.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return dict(spec.kwargs)
    fitting = {k: v for k, v in spec.defaults.items() if k in signature.parameters}
    given = {**fitting, **spec.kwargs}
    try:
        signature.bind(**given)
    except TypeError as error:
        reason = _misspelled(spec.kwargs, signature) or str(error)
        raise ModuleError(spec.target, _misfit(function, reason)) from error
    return given


def _misspelled(kwargs: Mapping[str, object], signature: inspect.Signature) -> str:
    """Explain the first name in `kwargs` that the signature lacks, "" if there is none."""
    names = signature.parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in names.values()):
        return ""
    unknown = next((name for name in kwargs if name not in names), "")
    close = get_close_matches(unknown, names, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"got an unexpected keyword argument {unknown!r}{meant}" if unknown else ""


def failure(spec: ModuleSpec, function: Any, error: UserCodeError) -> ModuleError:
    """Return the ModuleError for a constructor that raised `error`."""
    text = str(error.error)
    about_arguments = "argument" in text and ("missing" in text or "unexpected" in text)
    if isinstance(error.error, TypeError) and about_arguments:
        return ModuleError(spec.target, _misfit(function, text.splitlines()[0]))
    return ModuleError(spec.target, f"building it raised {error}")


def _loaded(package: str) -> dict[str, ModuleType]:
    inside = f"{package}."
    return {n: m for n, m in sys.modules.items() if n == package or n.startswith(inside)}


def _is_shadowed(package: str, search: list[str]) -> bool:
    """Whether `package` was imported from another file than `search_paths` contains."""
    loaded = sys.modules.get(package)
    found = PathFinder.find_spec(package, search) if search and loaded else None
    if found is None or found.origin is None:
        return False
    file = getattr(loaded, "__file__", None)
    return file is None or Path(file).resolve() != Path(found.origin).resolve()


def _form(target: str) -> str:
    file, _, name = target.partition(":")
    if file.endswith(".py") or "/" in file:
        module = file.removesuffix(".py").strip("./").replace("/", ".")
        return f"is a path; name the module instead: {module}:{name or 'Name'}"
    said = target.strip(":")
    head, dot, last = said.rpartition(".")
    if target.startswith(":") or not said:
        example = f"package.module:{said or 'Name'}"
    else:
        example = f"{head}:{last}" if dot and last[:1].isupper() else f"{said}:Name"
    return f"expected package.module:Name, for example {example}"


def _imported(target: str, name: str) -> ModuleType:
    try:
        with user_code():
            return importlib.import_module(name)
    except UserCodeError as error:
        raise ModuleError(target, _not_imported(name, error)) from error


def _not_imported(name: str, error: UserCodeError) -> str:
    cause = error.error
    if not isinstance(cause, ModuleNotFoundError) or not cause.name:
        return f"importing {name} raised {error}"
    if name == cause.name or name.startswith(f"{cause.name}."):
        if name.endswith(".py"):
            return f"names a file; name the module instead: {name.removesuffix('.py')}"
        return (
            f"there is no module {cause.name!r} here: run from the directory that holds it, "
            "or install its package"
        )
    return f"importing {name} failed: it imports {cause.name!r}, which is not installed here"


def _no_attribute(holder: Any, where: str, name: str) -> str:
    names = (
        [n for n in vars(holder) if not n.startswith("_")] if hasattr(holder, "__dict__") else []
    )
    close = get_close_matches(name, names, n=1)
    if close:
        return f"{where} has no {name!r}; did you mean {close[0]!r}?"
    classes = [n for n in names if isinstance(vars(holder)[n], type)]
    choice = f"; it has {', '.join(classes[:8])}" if classes else ""
    return f"{where} has no {name!r}{choice}"


def _misfit(function: Any, reason: str) -> str:
    name = getattr(function, "__name__", "it")
    try:
        shown = f"{name}{inspect.signature(function)}"
    except (ValueError, TypeError):
        shown = name
    return f"{reason}: give arguments with -k name=value; the signature is {shown}"
