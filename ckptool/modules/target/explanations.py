"""Why a target cannot be imported or found, and what would work instead."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ckptool.errors import ModuleError
from ckptool.modules.target.config_objects import describe_fields, find_config_class
from ckptool.modules.target.expression import MissingNameError
from ckptool.modules.target.python_source import PythonSource, is_python_file
from ckptool.modules.user_code import UserCodeError
from ckptool.phrases import join_limited

_EXPRESSION_FORMS = "Name, Outer.Inner, REGISTRY[key], or make(Config(d=3))"


def split_target(target: str) -> tuple[str, str]:
    """Split a target at the colon after the module name or the file; "" if there is no colon."""
    head, py_colon, tail = target.partition(".py:")
    if py_colon:
        return f"{head}.py", tail
    source, _, expression = target.partition(":")
    return source, expression


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
        return f"does not name a class: write {source}:Name"
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
    if target.startswith(":") or not dotted_name:
        example = f"package.module:{dotted_name or 'Name'}"
    elif expression:
        example = f"path/to/{source}.py:{expression}, if it is a file"
    else:
        example = (
            f"{head}:{last_part}" if dot and last_part[:1].isupper() else f"{dotted_name}:Name"
        )
    return f"expected package.module:Name or path/to/file.py:Name, for example {example}"


def explain_import_error(source: PythonSource, error: UserCodeError) -> str:
    """Return why importing a module failed."""
    cause, name = error.error, str(source.file or source.name)
    if isinstance(cause, SystemExit):
        return (
            f"importing {name} ended the process ({error}): move code that runs on import, such as "
            'argument parsing, below `if __name__ == "__main__":`'
        )
    if not isinstance(cause, ModuleNotFoundError) or not cause.name:
        return f"importing {name} raised {error}"
    if source.name == cause.name or source.name.startswith(f"{cause.name}."):
        return (
            f"no module {cause.name!r} was found: run from the directory that contains it, "
            "give its file (path/to/file.py:Name), or pass --path DIR"
        )
    return (
        f"importing {name} failed: it imports {cause.name!r}, which is not installed; if it is a "
        "module of your project, pass --path DIR or set PYTHONPATH"
    )


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
    close = get_close_matches(str(name), names, n=1)
    if close:
        return f"{parent_text} has no {name!r}; did you mean {close[0]!r}?"
    choice = f"; it has {join_limited(classes, 8, more='')}" if classes else ""
    return f"{parent_text} has no {name!r}{choice}"


def explain_signature_mismatch(function: Any, kwargs: Mapping[str, object], reason: str) -> str:
    """Return the reason that a call fails, with the signature and the options that would fit."""
    name = getattr(function, "__name__", "it")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return f"{reason}: give arguments with -k name=value; the signature is {name}"
    options = _list_missing_options(function, signature, kwargs)
    advice = f"add {' '.join(options)}" if options else "give arguments with -k name=value"
    return f"{reason}: {advice}; the signature is {name}{signature}"


def _list_missing_options(
    function: Any, signature: inspect.Signature, kwargs: Mapping[str, object]
) -> list[str]:
    """Return a -k option for each parameter without a value: `-k d_in=<int>`, `-k cfg.d=<int>`."""
    options: list[str] = []
    for parameter in signature.parameters.values():
        is_named = parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        if not is_named or parameter.default is not parameter.empty or parameter.name in kwargs:
            continue
        config_class = find_config_class(function, parameter.name)
        fields = describe_fields(config_class) if config_class is not None else {}
        required = [field for field, default in fields.items() if default == ""]
        if required:
            options += [f"-k {parameter.name}.{field}=<value>" for field in required]
        elif fields:
            options.append(f"-k {parameter.name}='{{}}'")
        else:
            options.append(f"-k {parameter.name}=<{_format_annotation(parameter)}>")
    return options


def _format_annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return "value"
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "value")
