"""ModuleInfo x path of a sub-module -> ModuleInfo of that sub-module alone."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from msgspec.structs import replace

from ckptool.errors import UsageError
from ckptool.model import ModuleInfo, ModuleTensor, natural_sort_key
from ckptool.phrases import join_limited, quote_code

T = TypeVar("T")

_MAX_NAMES = 6


def restrict_to_submodule(module_info: ModuleInfo, path: str) -> ModuleInfo:
    """Return the description with the sub-module at `path` only, under the whole module's keys.

    Raises:
        UsageError: there is no such sub-module, or it has no state.
    """
    prefix = f"{path}."

    def select(values: Mapping[str, T]) -> dict[str, T]:
        return {key: value for key, value in values.items() if key.startswith(prefix)}

    tensors = select(module_info.tensors)
    if path not in module_info.modules or not tensors:
        raise UsageError(f"--into {path}: {_explain_unknown_path(module_info, path)}")
    root = {path: module_info.modules[path]}
    return replace(
        module_info,
        submodule=path,
        tensors=tensors,
        non_tensors=select(module_info.non_tensors),
        none_buffers=select(module_info.none_buffers),
        none_buffer_writes=select(module_info.none_buffer_writes),
        modules=root | select(module_info.modules),
        hidden_modules=select(module_info.hidden_modules),
        own_load_error="",
    )


def select_submodule(module_info: ModuleInfo, path: str) -> ModuleInfo:
    """Return the description of the sub-module at `path`, under the sub-module's own keys.

    Raises:
        UsageError: there is no such sub-module, or it has no state.
    """
    restricted = restrict_to_submodule(module_info, path)
    prefix = f"{path}."

    def strip(values: Mapping[str, T]) -> dict[str, T]:
        return {key.removeprefix(prefix): value for key, value in values.items()}

    return replace(
        restricted,
        tensors={
            key: _strip_keys(module_tensor, prefix)
            for key, module_tensor in strip(restricted.tensors).items()
        },
        non_tensors=strip(restricted.non_tensors),
        none_buffers=strip(restricted.none_buffers),
        none_buffer_writes=strip(restricted.none_buffer_writes),
        modules={
            "" if key == path else key.removeprefix(prefix): value
            for key, value in restricted.modules.items()
        },
        hidden_modules=strip(restricted.hidden_modules),
    )


def _strip_keys(module_tensor: ModuleTensor, prefix: str) -> ModuleTensor:
    """Return the tensor under the sub-module's key; an alias outside of it is none."""
    alias = module_tensor.alias_of
    return replace(
        module_tensor,
        tensor=replace(module_tensor.tensor, key=module_tensor.key.removeprefix(prefix)),
        alias_of=alias.removeprefix(prefix) if alias.startswith(prefix) else "",
    )


def _explain_unknown_path(module_info: ModuleInfo, path: str) -> str:
    if path in module_info.modules:
        return "that submodule has no state"
    paths = [name for name in module_info.modules if name]
    close_matches = get_close_matches(path, paths, n=1)
    if close_matches:
        return f"no submodule has that name: did you mean `{close_matches[0]}`?"
    children = sorted((name for name in paths if "." not in name), key=natural_sort_key)
    return f"no submodule has that name; there are {join_limited(children, _MAX_NAMES, quote_code)}"
