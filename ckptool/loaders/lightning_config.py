"""Configuration of LightningCLI near a checkpoint -> the module that it names, as a hint."""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ckptool.errors import ReadError
from ckptool.formats.files.source import open_source
from ckptool.locations import Location
from ckptool.phrases import format_literal, join_limited, quote_shell

CONFIG_NAME: Final = "config.yaml"
"""Name under which LightningCLI saves what a run was started with."""
_MAX_NBYTES: Final = 1 << 17
"""Size of the largest that is read: PyYAML reads some 100 KB per second."""
_MAX_LEVELS: Final = 2
"""Folders above the checkpoint that are looked at: it is in `checkpoints/` of the run's."""
_RUN_FIELDS: Final = frozenset({"trainer", "seed_everything", "data", "optimizer", "ckpt_path"})
"""Fields of a configuration of LightningCLI, of which one stands next to `model`."""
_CLASS_PATH: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)
_MAX_TEXT: Final = 400


def suggest_cli_module(location: Location) -> str:
    """Return a sentence with the class and arguments of a LightningCLI run, "" without.

    Nothing is imported or built from it: a folder does not choose the code that runs. The YAML is
    read as plain data; without PyYAML, it is not looked for.
    """
    if not isinstance(location, Path):
        return ""
    for folder in location.absolute().parents[:_MAX_LEVELS]:
        config = _read_yaml(folder / CONFIG_NAME)
        model = config.get("model")
        if isinstance(model, dict) and _RUN_FIELDS & config.keys():
            return _describe_model(folder / CONFIG_NAME, model)
    return ""


def _describe_model(path: Path, model: Mapping[object, object]) -> str:
    says = f". {quote_shell(str(path))} is of LightningCLI"
    class_path, arguments = model.get("class_path"), model.get("init_args", {})
    if not isinstance(class_path, str) or not _CLASS_PATH.fullmatch(class_path):
        names = [str(name) for name in model]
        return (
            f"{says}, whose module was built with {join_limited(names, 8)}: give its class with -m"
        )
    package, _, class_name = class_path.rpartition(".")
    target = f"{package}:{class_name}"
    literals = {str(k): format_literal(v) for k, v in _get_items(arguments)}
    call = f"{target}({', '.join(f'{name}={text}' for name, text in literals.items())})"
    is_literal = all(name.isidentifier() and text != "..." for name, text in literals.items())
    if literals and is_literal and len(call) <= _MAX_TEXT and not _has_class_path(arguments):
        return f"{says} and names {class_path}: if you trust it, -m {quote_shell(call)}"
    others = f", built with {join_limited(list(literals), 8)}" if literals else ""
    return f"{says} and names {class_path}{others}: if you trust it, -m {target}"


def _get_items(arguments: object) -> list[tuple[object, object]]:
    return list(arguments.items()) if isinstance(arguments, dict) else []


def _has_class_path(arguments: object) -> bool:
    """Whether an argument is an object that LightningCLI builds."""
    return any(isinstance(v, dict) and "class_path" in v for _, v in _get_items(arguments))


def _read_yaml(path: Path) -> dict[object, object]:
    """Return the mapping in a YAML file of plain data; {} if it is none, or cannot be read."""
    if not path.is_file() or path.stat().st_size > _MAX_NBYTES:
        return {}
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        return {}
    try:
        with open_source(path) as source:
            text = source.read_head(_MAX_NBYTES)
        # Aliases of aliases write out to billions of items.
        has_alias = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        content = None if has_alias else yaml.safe_load(text)
    except (ReadError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
