"""ModuleSpec -> the class, factory or instance that its target names, or that was given."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ckptool.config import TRUST_RULE
from ckptool.errors import ModuleError, ReadError
from ckptool.modules.lightning import select_open_arguments
from ckptool.modules.target.config_objects import build_config_objects
from ckptool.modules.target.explanations import (
    describe_attempts,
    explain_import_error,
    explain_signature_mismatch,
    explain_target_syntax,
    make_lookup_error,
    split_target,
    suggest_definitions,
)
from ckptool.modules.target.expression import (
    MissingNameError,
    TargetExpression,
    parse_expression,
)
from ckptool.modules.target.python_source import (
    PythonSource,
    hide_command_line,
    import_source,
    locate_source,
)
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.world.user_world import use_world
from ckptool.phrases import cut_middle, summarize_message

_MAX_VALUE_CHARS: Final = 80
"""Characters of a constructor argument of a file that are shown."""


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A class, a factory or an instance, by its import target or as an object; its arguments."""

    target: str
    """"package.module:Name" or "path/to/file.py:Name"; what follows the colon may be an expression
    of names, subscripts, calls and literals: "nets:REGISTRY[gpt]", "nets:make(Config(d=3))". With
    `python_object` it is a name for it."""
    kwargs: Mapping[str, object] = field(default_factory=dict)
    search_paths: tuple[Path, ...] = ()
    """Directories prepended to sys.path during import and construction."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Arguments for parameters of the signature that are not in `kwargs`."""
    loader: str | None = None
    """Name of the framework whose loader loads it; None for `load_state_dict`."""
    is_loader_required: bool = False
    """Whether the user named `loader`: else it is only taken for a module of that framework."""
    label: str = ""
    """What the module is called instead of `target`, "" for the target."""
    python_object: Any = None
    """The class, function or live module itself; None to import `target`."""
    fresh: Callable[[], Any] | None = None
    """Builds another module like the live one in `python_object`; None to call its class."""
    file_names: frozenset[str] = frozenset()
    """Names in `kwargs` whose values were taken from the checkpoint, as was asked for."""
    offers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the checkpoint has that may be arguments: place of a mapping -> its names."""
    find_arguments: Callable[[Any], Mapping[str, object]] | None = None
    """Gives the arguments of the class or factory where `kwargs` has none, as a framework's
    configuration beside the weights does; None asks nobody."""
    given_names: frozenset[str] = frozenset()
    """Names in `defaults` that the user gave, as against those of a checkpoint."""


@contextmanager
def prepend_search_paths(spec: ModuleSpec) -> Iterator[None]:
    """Prepend the folders of `spec` to sys.path and hide sys.argv; restore both on exit.

    A module of the same name that was imported from another file is removed from sys.modules until
    exit: Python would return it again, and the report would describe the wrong code.

    Raises:
        ModuleError: the target is malformed, or names a file that does not exist.
    """
    if spec.python_object is not None:
        yield
        return
    source, _ = _parse_target(spec)
    original_path = list(sys.path)
    search_paths = [str(path.absolute()) for path in (*spec.search_paths, *source.search_paths)]
    shadowed_modules = _find_shadowed_modules(source, search_paths)
    for name in shadowed_modules:
        del sys.modules[name]
    sys.path[:0] = search_paths
    importlib.invalidate_caches()
    try:
        name = str(source.file or source.name)
        with use_world(name, is_new=bool(shadowed_modules)), hide_command_line(name):
            yield
    finally:
        sys.path[:] = original_path
        if shadowed_modules:
            for name in _find_loaded_modules(source.package):
                del sys.modules[name]
            sys.modules.update(shadowed_modules)


def _parse_target(spec: ModuleSpec) -> tuple[PythonSource, TargetExpression]:
    """Return the two parts of the target: the Python module, and the expression in it.

    Raises:
        ModuleError: the target is malformed, or names a file that does not exist.
    """
    source_text, expression_text = split_target(spec.target)
    expression = parse_expression(expression_text)
    if expression is None:
        raise ModuleError(spec.target, explain_target_syntax(spec.target))
    try:
        source = locate_source(source_text, spec.search_paths or (Path.cwd(),))
    except FileNotFoundError as error:
        definitions = suggest_definitions(expression_text)
        raise ModuleError(spec.target, f"there is no file {source_text}{definitions}") from error
    if source is None:
        raise ModuleError(spec.target, explain_target_syntax(spec.target))
    return source, expression


def resolve_target(spec: ModuleSpec) -> Any:
    """Return the object that was given, or import it; of a call, a function that makes it.

    Raises:
        ModuleError: the target is malformed, or cannot be imported or found.
    """
    if spec.python_object is not None:
        return spec.python_object
    source, expression = _parse_target(spec)
    try:
        with user_code():
            namespace = import_source(source)
    except UserCodeError as error:
        raise ModuleError(
            spec.target, explain_import_error(source, error, split_target(spec.target)[1])
        ) from error
    if expression.is_call:
        return TargetCall(spec.target, expression, namespace)
    try:
        with user_code():
            return expression.evaluate(namespace)
    except UserCodeError as error:
        raise make_lookup_error(spec.target, source, error) from error


@dataclass(frozen=True, slots=True)
class TargetCall:
    """A function that evaluates the call in a target anew, each time that it is called."""

    target: str
    expression: TargetExpression
    namespace: ModuleType

    def __call__(self, **kwargs: object) -> Any:
        """Return what the call returns; if that is a class or a function, what it returns.

        Raises:
            ModuleError: a name in the call does not exist, or the call's result takes no arguments.
        """
        try:
            result = self.expression.evaluate(self.namespace)
        except MissingNameError as error:
            source = PythonSource(self.namespace.__name__)
            raise make_lookup_error(self.target, source, UserCodeError(error)) from error
        if isinstance(result, type) or inspect.isroutine(result):
            return result(**kwargs)
        if kwargs:
            reason = f"its arguments are those in the call: remove {', '.join(kwargs)}"
            raise ModuleError(self.target, reason)
        return result


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
        **match_defaults(spec, function),
        **_match_names(_find_more_arguments(spec, function), spec, function),
    }
    kwargs = {**matching_defaults, **spec.kwargs}
    file_names = [
        name
        for name in kwargs
        if name in spec.file_names or (name in matching_defaults and name not in spec.given_names)
    ]
    announce = TRUST_RULE.get().announce_file_kwargs
    if file_names and announce is not None:
        announce(
            spec.target, {n: cut_middle(repr(kwargs[n]), _MAX_VALUE_CHARS) for n in file_names}
        )
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        reason = _explain_unknown_argument(spec.kwargs, signature) or str(error)
        mismatch = explain_signature_mismatch(function, kwargs, reason, spec.offers)
        raise ModuleError(spec.target, mismatch) from error
    try:
        with user_code():
            return build_config_objects(function, kwargs, _announce_namespace(spec))
    except UserCodeError as error:
        raise ModuleError(spec.target, f"its arguments: {error}") from error


def match_defaults(spec: ModuleSpec, function: Any) -> dict[str, object]:
    """Return the arguments of `spec.defaults` that a function accepts and `spec.kwargs` lack."""
    open_arguments = select_open_arguments(function, spec.defaults)
    return {
        **{k: v for k, v in open_arguments.items() if k not in spec.kwargs},
        **_match_names(spec.defaults, spec, function),
    }


def _match_names(
    arguments: Mapping[str, object], spec: ModuleSpec, function: Any
) -> dict[str, object]:
    try:
        names = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return {}
    return {k: v for k, v in arguments.items() if k in names and k not in spec.kwargs}


def _find_more_arguments(spec: ModuleSpec, function: Any) -> Mapping[str, object]:
    """Return what `find_arguments` gives; {} where the user gave arguments.

    Raises:
        ModuleError: the configuration that it reads is refused.
    """
    if spec.find_arguments is None or spec.kwargs or not TRUST_RULE.get().uses_file_kwargs:
        return {}
    try:
        with user_code():
            return spec.find_arguments(function)
    except UserCodeError as error:
        if isinstance(error.error, ModuleError | ReadError):
            raise error.error from error
        raise ModuleError(spec.target, f"its configuration: {error}") from error


def _announce_namespace(spec: ModuleSpec) -> Callable[[str], None] | None:
    announce = TRUST_RULE.get().announce_namespace
    return None if announce is None else lambda name: announce(spec.target, name)


def _explain_unknown_argument(kwargs: Mapping[str, object], signature: inspect.Signature) -> str:
    """Explain the first name in `kwargs` that the signature lacks, "" if there is none."""
    names = signature.parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in names.values()):
        return ""
    unknown = next((name for name in kwargs if name not in names), "")
    close = get_close_matches(unknown, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"got an unexpected keyword argument {unknown!r}{hint}" if unknown else ""


def make_build_error(
    spec: ModuleSpec,
    function: Any,
    error: UserCodeError,
    tried_kwargs: Mapping[str, object] | None = None,
) -> ModuleError:
    """Return the ModuleError for a constructor that raised `error`.

    With `tried_kwargs`, it was called with these, with parameters on meta and with real ones.
    """
    if isinstance(error.error, ModuleError):
        return error.error
    text = error.text
    about_arguments = "argument" in text and ("missing" in text or "unexpected" in text)
    if isinstance(error.error, TypeError) and about_arguments:
        reason = summarize_message(text)
        arguments = {**spec.defaults, **spec.kwargs}
        mismatch = explain_signature_mismatch(function, arguments, reason, spec.offers)
        return ModuleError(spec.target, mismatch)
    reason = f"building it raised {error}"
    if tried_kwargs is not None and not spec.label:
        file_names = [n for n in tried_kwargs if n in spec.file_names or n not in spec.kwargs]
        reason = f"{reason}; {describe_attempts(tried_kwargs, file_names, spec.offers)}"
    return ModuleError(spec.label or spec.target, reason)


def _find_loaded_modules(package: str) -> dict[str, ModuleType]:
    prefix = f"{package}."
    return {n: m for n, m in sys.modules.items() if n == package or n.startswith(prefix)}


def _find_shadowed_modules(source: PythonSource, search_paths: list[str]) -> dict[str, ModuleType]:
    """Return the loaded modules of the package's name if they are not those of `source`."""
    loaded_module = sys.modules.get(source.package)
    if loaded_module is None or not search_paths:
        return {}
    search_spec = PathFinder.find_spec(source.package, search_paths)
    if search_spec is None or search_spec.origin is None:
        return {}
    file = getattr(loaded_module, "__file__", None)
    is_same = file is not None and Path(file).resolve() == Path(search_spec.origin).resolve()
    return {} if is_same else _find_loaded_modules(source.package)
