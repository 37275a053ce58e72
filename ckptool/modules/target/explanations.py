"""Why a target cannot be imported or found, and what would work instead."""

import inspect
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from ckptool.errors import ModuleError
from ckptool.modules.target.class_search import find_modules, iter_project_files
from ckptool.modules.target.config_objects import (
    describe_fields,
    find_config_class,
    list_read_attributes,
)
from ckptool.modules.target.expression import MissingNameError
from ckptool.modules.target.python_source import PythonSource, is_python_file
from ckptool.modules.user_code import UserCodeError
from ckptool.phrases import cut_middle, join_limited

_MAX_VALUE_CHARS = 40
_MAX_SEARCHED = 2000
"""Files of a project among which a module is looked for."""
_MAX_TARGETS = 3
_MAX_FIELDS = 8
"""Fields of a config object that an error lists."""
_EXPRESSION_FORMS = "Name, Outer.Inner, REGISTRY[key], or make(Config(d=3))"


def split_target(target: str) -> tuple[str, str]:
    """Split a target at the colon after the module name or the file; "" if there is no colon."""
    head, py_colon, tail = target.partition(".py:")
    if py_colon:
        return f"{head}.py", tail
    source, _, expression = target.partition(":")
    return source, expression


def suggest_definitions(expression: str, other_than: str = "") -> str:
    """Return "; did you mean nets.py:GPT?" for a class or factory of the project, "" for none.

    Args:
        expression: what follows the colon of a target, or a name alone.
        other_than: file, relative to the current directory, that is not meant.
    """
    name = re.match(r"\w*", expression)
    modules, _ = find_modules(Path())
    targets = [
        module.target
        for module in modules
        if name is not None
        and module.name == name[0]
        and module.file != other_than
        and module.is_importable
    ]
    return f"; did you mean {' or '.join(targets[:_MAX_TARGETS])}?" if targets else ""


def explain_target_syntax(target: str) -> str:
    """Return why a target is malformed, with an example of what is meant."""
    source, expression = split_target(target)
    if source.endswith(".ipynb"):
        script = f"{source.removesuffix('.ipynb')}.py"
        return (
            f"is a notebook: export its code with `jupyter nbconvert --to script {source}` and "
            f"name {script}:{expression or 'Name'}"
        )
    if is_python_file(source) and not expression:
        modules, _ = find_modules(Path())
        names = [module.name for module in modules if module.file == Path(source).as_posix()]
        choice = f"; it has {join_limited(names, 8)}" if names else ""
        return f"does not name a class: write {source}:{names[0] if names else 'Name'}{choice}"
    if is_python_file(source):
        return f"{expression!r} is not one of {_EXPRESSION_FORMS}"
    if "/" in source:
        return f"is a path, but not of a Python file: write {source}.py:{expression or 'Name'}"
    return _explain_dotted_name(target, source, expression)


def _explain_dotted_name(target: str, source: str, expression: str) -> str:
    dotted_name = target.strip(":")
    head, dot, last_part = dotted_name.rpartition(".")
    if expression and source and all(part.isidentifier() for part in source.split(".")):
        return f"{expression!r} is not one of {_EXPRESSION_FORMS}"
    definitions = suggest_definitions(last_part) if not expression else ""
    if definitions:
        return f"expected package.module:Name or path/to/file.py:Name{definitions}"
    if target.startswith(":") or not dotted_name:
        example = f"package.module:{dotted_name or 'Name'}"
    elif expression:
        example = f"path/to/{source}.py:{expression}, if it is a file"
    else:
        example = (
            f"{head}:{last_part}" if dot and last_part[:1].isupper() else f"{dotted_name}:Name"
        )
    return f"expected package.module:Name or path/to/file.py:Name, for example {example}"


def explain_import_error(source: PythonSource, error: UserCodeError, expression: str) -> str:
    """Return why importing the module of a target failed; `expression` follows its colon."""
    cause, name = error.error, str(source.file or source.name)
    if isinstance(cause, SystemExit):
        file = f"{source.name.replace('.', '/')}.py"
        return (
            f"importing {name} ended the process ({error}): move code that runs on import, such as "
            'argument parsing, below `if __name__ == "__main__":`'
            f"{suggest_definitions(expression, other_than=file)}"
        )
    if not isinstance(cause, ModuleNotFoundError) or not cause.name:
        return f"importing {name} raised {error}"
    if source.name == cause.name or source.name.startswith(f"{cause.name}."):
        return f"no module {cause.name!r} was found: {_suggest_path(source.name, expression)}"
    return (
        f"importing {name} failed: it imports {cause.name!r}, which is not installed; if it is a "
        f"module of your project, {_suggest_folder(cause.name)}"
    )


def _suggest_path(name: str, expression: str) -> str:
    """Return how a module that Python does not find can be named, with its file if it is here."""
    folder = _find_folder(name)
    if folder is None:
        return (
            "run from the directory that contains it, give its file (path/to/file.py:Name), pass "
            f"--path DIR, or set PYTHONPATH{suggest_definitions(expression)}"
        )
    file = (folder / name.replace(".", "/")).with_suffix(".py")
    named = f"give its file, {file.as_posix()}:Name, or " if file.is_file() else ""
    return f"it is in {folder.as_posix()}/: {named}{_suggest_folder(name)}"


def _suggest_folder(name: str) -> str:
    folder = _find_folder(name)
    text = "DIR" if folder is None else folder.as_posix()
    return f"pass --path {text} or set PYTHONPATH" + ("" if folder is None else f"={text}")


def _find_folder(name: str) -> Path | None:
    """Return the folder below the current one that has a module, the nearest; None if none has."""
    ends = (f"/{name.replace('.', '/')}.py", f"/{name.replace('.', '/')}/__init__.py")
    files = islice(iter_project_files(Path(), (".py",)), _MAX_SEARCHED)
    folders = (
        (path.as_posix().removesuffix(end), len(path.parts))
        for path in files
        for end in ends
        if path.as_posix().endswith(end)
    )
    nearest = min(folders, key=lambda pair: (pair[1], pair[0]), default=None)
    return None if nearest is None else Path(nearest[0])


def make_lookup_error(target: str, source: PythonSource, error: UserCodeError) -> ModuleError:
    """Return the ModuleError for an expression of a target that cannot be evaluated."""
    cause = error.error
    if not isinstance(cause, MissingNameError):
        return ModuleError(target, f"looking it up raised {error}")
    parent_text = ".".join(filter(None, (source.name, cause.parent_text)))
    return ModuleError(target, _explain_missing_name(cause.parent, parent_text, cause.name))


def _explain_missing_name(parent: Any, parent_text: str, name: object) -> str:
    if isinstance(parent, Mapping):
        names = [key for key in parent if isinstance(key, str)]
        classes = names
    else:
        attributes = vars(parent) if hasattr(parent, "__dict__") else {}
        names = [n for n in attributes if not n.startswith("_")]
        classes = [n for n in names if isinstance(attributes[n], type)]
    same = [n for n in names if n.lower() == str(name).lower()]
    close = same or get_close_matches(str(name), names, n=1)
    if close:
        return f"{parent_text} has no {name!r}; did you mean {close[0]!r}?"
    choice = f"; it has {join_limited(classes, 8, more='')}" if classes else ""
    definitions = suggest_definitions(str(name)) if isinstance(parent, ModuleType) else ""
    return f"{parent_text} has no {name!r}{choice}{definitions}"


def explain_signature_mismatch(
    function: Any,
    kwargs: Mapping[str, object],
    reason: str,
    offers: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the reason that a call fails, with the signature and the options that would fit.

    Args:
        function: the class or function.
        kwargs: the arguments that are known.
        reason: what Python says.
        offers: what the checkpoint has: place of a mapping -> its names.
    """
    name = getattr(function, "__name__", "it")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return f"{reason}: give arguments with -k name=value; the signature is {name}"
    missing_parameters = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        and parameter.default is parameter.empty
        and parameter.name not in kwargs
    ]
    options = _list_file_options(function, missing_parameters, offers or {})
    source = f"; the file has {_describe_offers(offers)}" if offers and missing_parameters else ""
    advice = f"add {' '.join(options)}" if options else "give arguments with -k name=value"
    fields = _describe_config_fields(function, missing_parameters)
    return f"{reason}: {advice}{source}{fields}; the signature is {name}{signature}"


def _describe_config_fields(function: Any, parameters: Sequence[inspect.Parameter]) -> str:
    """Return "; defaults of `cfg`: d=3, n=4 (-k cfg.d=3)", "" if no parameter has such fields."""
    for parameter in parameters:
        config_class = find_config_class(function, parameter.name)
        defaults = describe_fields(config_class) if config_class is not None else {}
        texts = [
            f"{name}={cut_middle(default, _MAX_VALUE_CHARS)}"
            for name, default in defaults.items()
            if default
        ]
        if texts:
            fields = join_limited(texts, _MAX_FIELDS)
            example = f"-k {parameter.name}.{texts[0]} sets one"
            return f"; defaults of `{parameter.name}`: {fields} ({example})"
    return ""


def _list_file_options(
    function: Any, parameters: Sequence[inspect.Parameter], offers: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the shortest options for parameters without a value, from the file where it has them.

    One place that has all of them is `--kwargs @place`.
    """
    names = {parameter.name for parameter in parameters}
    whole_place = next((place for place, fields in offers.items() if names <= {*fields}), None)
    if names and whole_place is not None:
        return [f"--kwargs @{whole_place}"]
    options: list[str] = []
    for parameter in parameters:
        options += _list_offered_options(function, parameter.name, offers) or _list_options(
            function, parameter
        )
    return options


def _list_offered_options(
    function: Any, name: str, offers: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the options that take one parameter from the file, none if the file lacks it.

    It has it as a field of the name; or, for a config object, as a mapping with the fields that
    are needed, one of the parameter's name first.
    """
    for place, names in offers.items():
        if name in names:
            return [f"-k {name}=@{place}.{name}"]
    config_class = find_config_class(function, name)
    fields = describe_fields(config_class) if config_class is not None else {}
    required_names = {field for field, default in fields.items() if not default}
    required_names |= list_read_attributes(function, name) if config_class is None else set()
    for place in sorted(offers, key=lambda place: place != name):
        known_names = {*offers[place]}
        if fields and required_names <= known_names and fields.keys() & known_names:
            if known_names <= fields.keys():
                return [f"-k {name}=@{place}"]
            return [f"-k {name}.{f}=@{place}.{f}" for f in fields if f in known_names]
        if not fields and (place == name or (required_names and required_names <= known_names)):
            return [f"-k {name}=@{place}"]
    return []


def describe_attempts(
    kwargs: Mapping[str, object], file_names: Sequence[str], offers: Mapping[str, Sequence[str]]
) -> str:
    """Return what was tried to build a module, and what the file has that was not.

    Args:
        kwargs: the arguments that it was called with.
        file_names: those that were taken from the file.
        offers: what the file has: place of a mapping -> its names.
    """
    arguments = join_limited(
        [
            f"{name}={cut_middle(repr(value), _MAX_VALUE_CHARS)}"
            f"{' (from the file)' if name in file_names else ''}"
            for name, value in kwargs.items()
        ],
        6,
    )
    with_arguments = f"with {arguments}" if arguments else "without arguments"
    tried = f"with parameters on meta and with real ones, {with_arguments}"
    is_untried = bool(offers) and not file_names
    place = next(iter(offers), "")
    hint = f"; the file has {_describe_offers(offers)}: --kwargs @{place}" if is_untried else ""
    return f"tried {tried}{hint}"


def _describe_offers(offers: Mapping[str, Sequence[str]]) -> str:
    texts = [f"`{place}` ({join_limited([*names], 6)})" for place, names in offers.items()]
    return join_limited(texts, 3)


def _list_options(function: Any, parameter: inspect.Parameter) -> list[str]:
    """Return -k options for a parameter without a value: `-k d_in=<int>`, `-k cfg.d=<int>`."""
    config_class = find_config_class(function, parameter.name)
    fields = describe_fields(config_class) if config_class is not None else {}
    required = [field for field, default in fields.items() if default == ""]
    if required:
        return [f"-k {parameter.name}.{field}=<value>" for field in required]
    if fields:
        return [f"-k {parameter.name}='{{}}'"]
    return [f"-k {parameter.name}=<{_format_annotation(parameter)}>"]


def _format_annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return "value"
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "value")
