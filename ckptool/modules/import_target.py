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
from typing import Any, Final

from ckptool.config import TRUST_RULE
from ckptool.errors import ModuleError
from ckptool.modules.caller_state import use_world
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.phrases import cut_middle, join_limited, summarize_message

_MAX_VALUE_CHARS: Final = 80
"""Characters of a constructor argument of a file that are shown."""


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """Import target of a class, a factory or an instance, and its arguments."""

    target: str
    """"package.module:Name"; the name may be dotted: "package.module:Class.build"."""
    kwargs: Mapping[str, object] = field(default_factory=dict)
    search_paths: tuple[Path, ...] = ()
    """Directories prepended to sys.path during import and construction."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Arguments for parameters of the signature that are not in `kwargs`."""


@contextmanager
def prepend_search_paths(spec: ModuleSpec) -> Iterator[None]:
    """Prepend `spec.search_paths` to sys.path; restore it on exit.

    A module of the same name that was imported from another file is removed from sys.modules until
    exit: Python would return it again, and the report would describe the wrong code.
    """
    original_path = list(sys.path)
    package = spec.target.partition(":")[0].partition(".")[0]
    search_paths = [str(path.absolute()) for path in spec.search_paths]
    shadowed_modules = _find_loaded_modules(package) if _is_shadowed(package, search_paths) else {}
    for name in shadowed_modules:
        del sys.modules[name]
    sys.path[:0] = search_paths
    importlib.invalidate_caches()
    try:
        with use_world(spec.target.partition(":")[0]):
            yield
    finally:
        sys.path[:] = original_path
        if shadowed_modules:
            for name in _find_loaded_modules(package):
                del sys.modules[name]
            sys.modules.update(shadowed_modules)


def resolve_target(spec: ModuleSpec) -> Any:
    """Import and return the object that `spec.target` names.

    Raises:
        ModuleError: the target is malformed, or cannot be imported or found.
    """
    name, colon, path = spec.target.partition(":")
    is_valid = all(part.isidentifier() for part in (*name.split("."), *path.split(".")))
    if not (colon and is_valid):
        raise ModuleError(spec.target, _explain_target_syntax(spec.target))
    target_object: Any = _import_module(spec.target, name)
    parent_name = name
    for part in path.split("."):
        try:
            with user_code():
                target_object = getattr(target_object, part)
        except UserCodeError as error:
            if isinstance(error.error, AttributeError):
                raise ModuleError(
                    spec.target, _explain_missing_attribute(target_object, parent_name, part)
                ) from error
            raise ModuleError(spec.target, f"looking up {part!r} raised {error}") from error
        parent_name = f"{parent_name}.{part}"
    return target_object


def bind_arguments(spec: ModuleSpec, function: Any) -> dict[str, object]:
    """Return the keyword arguments for `function`.

    Raises:
        ModuleError: they do not match its signature; the message shows the signature.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return dict(spec.kwargs)
    matching_defaults = {
        k: v for k, v in spec.defaults.items() if k in signature.parameters and k not in spec.kwargs
    }
    announce = TRUST_RULE.get().announce_file_kwargs
    if matching_defaults and announce is not None:
        texts = {k: cut_middle(repr(v), _MAX_VALUE_CHARS) for k, v in matching_defaults.items()}
        announce(spec.target, texts)
    kwargs = {**matching_defaults, **spec.kwargs}
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        reason = _explain_unknown_argument(spec.kwargs, signature) or str(error)
        raise ModuleError(spec.target, _explain_signature_mismatch(function, reason)) from error
    return kwargs


def _explain_unknown_argument(kwargs: Mapping[str, object], signature: inspect.Signature) -> str:
    """Explain the first name in `kwargs` that the signature lacks, "" if there is none."""
    names = signature.parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in names.values()):
        return ""
    unknown = next((name for name in kwargs if name not in names), "")
    close = get_close_matches(unknown, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"got an unexpected keyword argument {unknown!r}{hint}" if unknown else ""


def make_build_error(spec: ModuleSpec, function: Any, error: UserCodeError) -> ModuleError:
    """Return the ModuleError for a constructor that raised `error`."""
    text = error.text
    about_arguments = "argument" in text and ("missing" in text or "unexpected" in text)
    if isinstance(error.error, TypeError) and about_arguments:
        return ModuleError(
            spec.target, _explain_signature_mismatch(function, summarize_message(text))
        )
    return ModuleError(spec.target, f"building it raised {error}")


def _find_loaded_modules(package: str) -> dict[str, ModuleType]:
    prefix = f"{package}."
    return {n: m for n, m in sys.modules.items() if n == package or n.startswith(prefix)}


def _is_shadowed(package: str, search_paths: list[str]) -> bool:
    """Whether `package` was imported from another file than `search_paths` contains."""
    loaded_module = sys.modules.get(package)
    search_spec = (
        PathFinder.find_spec(package, search_paths) if search_paths and loaded_module else None
    )
    if search_spec is None or search_spec.origin is None:
        return False
    file = getattr(loaded_module, "__file__", None)
    return file is None or Path(file).resolve() != Path(search_spec.origin).resolve()


def _explain_target_syntax(target: str) -> str:
    file, _, name = target.partition(":")
    if file.endswith(".py") or "/" in file:
        module = file.removesuffix(".py").strip("./").replace("/", ".")
        return f"is a path; name the module instead: {module}:{name or 'Name'}"
    dotted_name = target.strip(":")
    head, dot, last_part = dotted_name.rpartition(".")
    if target.startswith(":") or not dotted_name:
        example = f"package.module:{dotted_name or 'Name'}"
    else:
        example = (
            f"{head}:{last_part}" if dot and last_part[:1].isupper() else f"{dotted_name}:Name"
        )
    return f"expected package.module:Name, for example {example}"


def _import_module(target: str, name: str) -> ModuleType:
    try:
        with user_code():
            return importlib.import_module(name)
    except UserCodeError as error:
        raise ModuleError(target, _explain_import_error(name, error)) from error


def _explain_import_error(name: str, error: UserCodeError) -> str:
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


def _explain_missing_attribute(parent: Any, parent_name: str, name: str) -> str:
    names = (
        [n for n in vars(parent) if not n.startswith("_")] if hasattr(parent, "__dict__") else []
    )
    close = get_close_matches(name, names, n=1)
    if close:
        return f"{parent_name} has no {name!r}; did you mean {close[0]!r}?"
    classes = [n for n in names if isinstance(vars(parent)[n], type)]
    choice = f"; it has {join_limited(classes, 8, more='')}" if classes else ""
    return f"{parent_name} has no {name!r}{choice}"


def _explain_signature_mismatch(function: Any, reason: str) -> str:
    name = getattr(function, "__name__", "it")
    try:
        signature_text = f"{name}{inspect.signature(function)}"
    except (ValueError, TypeError):
        signature_text = name
    return f"{reason}: give arguments with -k name=value; the signature is {signature_text}"
