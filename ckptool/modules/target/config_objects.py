"""Constructor arguments: a dict for a parameter that is a config object -> that object."""

import argparse
import ast
import dataclasses
import importlib
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from ckptool.formats.python_text import parse_module
from ckptool.phrases import join_limited

_UNIONS: Final = (typing.Union, types.UnionType)
_PLAIN_CLASSES: Final = (str, bytes, int, float, complex, bool, type(None), object)


def build_config_objects(
    function: Callable[..., Any],
    kwargs: Mapping[str, object],
    announce: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """Return the keyword arguments with each dict for a config object replaced by that object.

    A parameter is one if its annotation, or the class of its default, is a dataclass, a NamedTuple,
    or a class of pydantic, attrs, msgspec or OmegaConf, or another class that takes the keys as
    keyword arguments. Without either, a dict becomes an `argparse.Namespace` if the constructor
    reads attributes of the parameter.

    Args:
        function: the class or function to call.
        kwargs: its arguments, as given.
        announce: called with the name of each parameter that becomes a Namespace.

    Raises:
        TypeError: a dict does not fit the class.
    """
    arguments = dict(kwargs)
    hints = _read_hints(function)
    for name, value in kwargs.items():
        hint = hints.get(name)
        if hint is not None:
            arguments[name] = _convert_value(value, hint, name)
        elif isinstance(value, Mapping) and list_read_attributes(function, name):
            if announce is not None:
                announce(name)
            arguments[name] = _make_namespace(value)
    return arguments


def find_config_class(function: Callable[..., Any], name: str) -> type | None:
    """Return the class of the config object that a parameter takes; None if it takes none."""
    hint = _read_hints(function).get(name)
    return None if hint is None else next(iter(_list_config_classes(hint)), None)


def describe_fields(config_class: type) -> dict[str, str]:
    """Return the fields of a config class and their defaults in source form; "" if required."""
    try:
        parameters = inspect.signature(config_class).parameters.values()
    except (ValueError, TypeError):
        return {}
    return {
        parameter.name: "" if parameter.default is parameter.empty else repr(parameter.default)
        for parameter in parameters
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    }


def _read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotation of each parameter, or the class of its default; as far as known."""
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return {}
    hints = {
        name: type(parameter.default)
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty and _is_config_class(type(parameter.default))
    }
    for name, annotation in _read_annotations(function):
        resolved = _resolve_annotation(annotation, function)
        if resolved is not None and name in parameters:
            hints[name] = resolved
    return hints


def _read_annotations(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    """Yield annotations of the fields of a class, base classes first, and of its constructor."""
    for base_class in reversed(function.__mro__ if isinstance(function, type) else ()):
        yield from vars(base_class).get("__annotations__", {}).items()
    yield from getattr(_get_constructor(function), "__annotations__", {}).items()


def _get_constructor(function: Callable[..., Any]) -> Any:
    """Return the function whose parameters are those of a class, or of the function itself."""
    return inspect.getattr_static(function, "__init__") if isinstance(function, type) else function


def _resolve_annotation(annotation: object, function: Any) -> Any:
    """Return an annotation that may be a string; None if its names exist for type checkers only."""
    if not isinstance(annotation, str):
        return annotation
    module = sys.modules.get(getattr(function, "__module__", ""))
    names = {**vars(module)} if module is not None else {}
    names |= getattr(inspect.unwrap(_get_constructor(function)), "__globals__", {})
    holder = types.SimpleNamespace(__annotations__={"value": annotation})
    try:
        return typing.get_type_hints(holder, globalns=names)["value"]
    except Exception:  # noqa: BLE001 - an annotation is an expression of the user
        return None


def _convert_value(value: Any, hint: Any, place: str) -> Any:
    """Convert dicts in `value` to the classes of `hint`; `place` names the value in errors."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if args and isinstance(origin, type) and issubclass(origin, Sequence):
            items = [_convert_value(v, args[0], f"{place}[{n}]") for n, v in enumerate(value)]
            return tuple(items) if isinstance(value, tuple) else items
        return value
    if not isinstance(value, Mapping):
        return value
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(args) == 2:
        return {k: _convert_value(v, args[1], f"{place}.{k}") for k, v in value.items()}
    config_class = next(iter(_list_config_classes(hint)), None)
    return value if config_class is None else _build_object(config_class, value, place)


def _list_config_classes(hint: Any) -> list[type]:
    origin = typing.get_origin(hint)
    if origin in _UNIONS:
        return [c for member in typing.get_args(hint) for c in _list_config_classes(member)]
    if origin is typing.Annotated:
        return _list_config_classes(typing.get_args(hint)[0])
    is_class = isinstance(hint, type) and origin is None and not typing.is_typeddict(hint)
    if not is_class or hint in _PLAIN_CLASSES or issubclass(hint, Mapping):
        return []
    return [hint]


def _is_config_class(config_class: type) -> bool:
    """Whether a class is known to hold fields: one whose instance is a parameter's default."""
    marks = ("__attrs_attrs__", "__struct_fields__", "model_fields", "__fields__", "_fields")
    return (
        dataclasses.is_dataclass(config_class)
        or any(hasattr(config_class, mark) for mark in marks)
        or issubclass(config_class, argparse.Namespace | types.SimpleNamespace)
    )


def _build_object(config_class: Any, value: Mapping[Any, Any], place: str) -> Any:
    """Return an instance of `config_class` with the fields of `value`.

    Raises:
        TypeError: the fields do not fit.
    """
    validate = getattr(config_class, "model_validate", None) or getattr(
        config_class, "parse_obj", None
    )
    if validate is not None:
        return validate(dict(value))
    if config_class.__name__ == "DictConfig":
        return importlib.import_module("omegaconf").OmegaConf.create(dict(value))
    hints = _read_hints(config_class)
    fields = {k: _convert_value(v, hints.get(k), f"{place}.{k}") for k, v in value.items()}
    try:
        return config_class(**fields)
    except TypeError as error:
        raise TypeError(_explain_fields(config_class, fields, place, error)) from error


def _explain_fields(
    config_class: type, fields: Mapping[str, object], place: str, error: TypeError
) -> str:
    defaults = describe_fields(config_class)
    unknown = next((name for name in fields if name not in defaults), None)
    if not defaults or unknown is None:
        return f"`{place}`: {error}"
    close = get_close_matches(unknown, defaults, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    names = join_limited([f"{n}={d}" if d else n for n, d in defaults.items()], 8)
    return f"`{place}`: {config_class.__name__} has no field {unknown!r}{hint} It has {names}"


def _make_namespace(value: Any) -> Any:
    """Return a dict, and the dicts in it, as objects with attributes."""
    if isinstance(value, Mapping):
        fields = {str(name): _make_namespace(child) for name, child in value.items()}
        return argparse.Namespace(**fields)
    return [_make_namespace(child) for child in value] if isinstance(value, list) else value


def list_read_attributes(function: Any, name: str) -> set[str]:
    """Return the attributes of a parameter that the source of a constructor reads.

    Empty if it reads items of it as well: it is a mapping then.
    """
    constructor = _get_constructor(function)
    try:
        tree = parse_module(textwrap.dedent(inspect.getsource(inspect.unwrap(constructor))))
    except (OSError, TypeError, SyntaxError):
        return set()
    reads = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    ]
    if any(isinstance(node, ast.Subscript) for node in reads):
        return set()
    return {node.attr for node in reads if isinstance(node, ast.Attribute)} - {*dir(dict)}
