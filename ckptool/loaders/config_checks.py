"""Configuration of a framework's folder -> the same, if it chooses no code, file or absurd size."""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from ckptool.errors import ModuleError
from ckptool.loaders.model_folder import iter_fields, read_config
from ckptool.locations import Location
from ckptool.phrases import cut_middle, join_limited, quote_code

REMOTE_CODE_FIELD: Final = "auto_map"
"""Field of the classes that a folder brings itself, which are used with trust_remote_code alone."""
CODE_FIELDS: Final = (
    REMOTE_CODE_FIELD,
    "custom_pipelines",
    "custom_generate",
    "fusion_config",
    "megatron_config",
)
"""Fields by which a configuration names code of its own, or changes a framework's classes."""
PATH_FIELDS: Final = ("transformers_weights", "configuration_files")
"""Fields by which a configuration names other files."""
_KERNEL_FIELDS: Final = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
)
"""Fields whose value may name a kernel on the Hub: "owner/name"."""
_DTYPE_FIELDS: Final = ("dtype", "torch_dtype")
_DTYPE: Final = re.compile(r"(torch\.)?(auto|bool|half|double|long|(b?float|u?int|complex)\d+\w*)")
_COUNT_FIELD: Final = re.compile(r"label|layer|block|stage|head|expert|depth|group")
"""Fields of which a framework makes that many modules or entries of a list."""
MAX_COUNT: Final = 1_000_000
_MAX_LISTED_NUMBER: Final = 10**12
"""Maximum size of any integer: products of two still are one that torch can hold."""


def read_model_config(folder: Location, name: str, ignored_field: str = "") -> dict[str, Any]:
    """Return the fields of a configuration that a framework may read.

    Args:
        folder: of the configuration.
        name: its file name.
        ignored_field: a field at the top level that is left out, "" for none.

    Raises:
        ReadError: it is no JSON object, is too large or nested too deeply.
        ModuleError: it names code or files, or a number that no model has.
    """
    fields = read_config(folder / name)
    fields.pop(ignored_field, None)
    require_usable_fields(str(folder), name, fields)
    return fields


def find_model_class(
    library: ModuleType, base: type, class_name: str, folder: str, config_name: str
) -> Any:
    """Return the class of models of a library that a folder's configuration names.

    Args:
        library: the framework, imported.
        base: class of all its models.
        class_name: text of the configuration.
        folder: of the configuration.
        config_name: file name of the configuration.

    Raises:
        ModuleError: the library has no such class of models.
    """
    cls = getattr(library, class_name, None) if class_name.isidentifier() else None
    is_model = isinstance(cls, type) and issubclass(cls, base)
    if cls is None or not is_model or not cls.__module__.startswith(f"{library.__name__}."):
        raise ModuleError(
            folder,
            f"{config_name} names {cut_middle(repr(class_name))}, but {library.__name__}"
            f" {library.__version__} has no such model: give your own class with -m"
            " package.module:Name",
        )
    return cls


def require_usable_fields(folder: str, name: str, fields: Mapping[str, Any]) -> None:
    """Raise ModuleError if the fields name code or files, or a number that no model has."""
    refused = find_refused_fields(fields)
    if refused:
        raise ModuleError(folder, _describe_refused_fields(name, refused))
    for reason in _iter_odd_values(fields):
        raise ModuleError(folder, f"{name}: {reason}")


def _iter_odd_values(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values of dtypes and counts, at any depth."""
    for name, value, _ in iter_fields(fields):
        if name in _DTYPE_FIELDS and not _is_dtype(value):
            yield f"{quote_code(name)} is {cut_middle(repr(value))}, which is not a torch dtype"
        limit = MAX_COUNT if _COUNT_FIELD.search(name) else _MAX_LISTED_NUMBER
        if isinstance(value, int) and abs(value) > limit:
            text = cut_middle(str(value)) if abs(value) < 10**100 else "a number of 100 digits"
            yield f"{quote_code(cut_middle(name))} is {text}, and no model has so many"


def _is_dtype(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(v, str) and _DTYPE.fullmatch(v) for v in value.values())
    return value is None or (isinstance(value, str) and _DTYPE.fullmatch(value) is not None)


def find_refused_fields(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields, at any depth, by which a configuration chooses code or other files."""
    refused = (*CODE_FIELDS, *PATH_FIELDS)
    names = (
        name
        for name, value, _ in iter_fields(config)
        if (name in refused and value)
        or (name in _KERNEL_FIELDS and isinstance(value, str) and "/" in value)
    )
    return tuple(dict.fromkeys(names))


def _describe_refused_fields(config_name: str, fields: Sequence[str]) -> str:
    """Return the sentence that refuses a configuration, and what to do."""
    names = join_limited(fields, 3, quote_code)
    return (
        f"{config_name} has {names}: code or files selected by a checkpoint are never used."
        " Give your own module with -m package.module:Name"
    )
