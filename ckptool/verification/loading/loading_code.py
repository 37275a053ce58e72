"""nn.Module -> its sub-modules that load or save by more than torch's own code."""

from typing import Final

import torch
from torch import nn

_NORM_MODULES: Final = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm")
_LOADING_METHODS: Final = (
    "load_state_dict", "_load_from_state_dict", "_save_to_state_dict", "state_dict"
)  # fmt: skip


def get_part(module: nn.Module, path: str) -> nn.Module:
    """Return the sub-module at a path, the module itself at ""; also of a ScriptModule."""
    if not path:
        return module
    if isinstance(module, torch.jit.ScriptModule):
        parts: dict[str, nn.Module] = dict(module.named_modules())
        return parts[path]
    return module.get_submodule(path)


def find_loading_code(module: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of sub-modules that load or save by more than nn.Module's own code.

    Without any, a state_dict is what is registered, and torch's comparison of keys and shapes is
    all that a load is.
    """
    members = list(module.named_modules())
    own_classes = {cls for cls in {type(part) for _, part in members} if _overrides_loading(cls)}
    return tuple(
        prefix
        for prefix, part in members
        if type(part) in own_classes or has_hooks(part) or _replaces_methods(part)
    )


def find_user_loading_code(module: nn.Module) -> tuple[str, ...]:
    """Return those of `find_loading_code` whose code is not torch's own."""
    return tuple(
        prefix
        for prefix in find_loading_code(module)
        if is_user_class(part := get_part(module, prefix))
        or has_hooks(part)
        or _replaces_methods(part)
    )


def loads_by_own_code(module: nn.Module) -> bool:
    """Whether code other than torch's copying takes part in a load whose keys and shapes match."""
    return not all(
        only_fills_keys(get_part(module, prefix)) for prefix in find_loading_code(module)
    )


def is_user_class(module: nn.Module) -> bool:
    """Whether its class is not one of torch's."""
    return not type(module).__module__.startswith("torch.")


def only_fills_keys(module: nn.Module) -> bool:
    """Whether it is one of torch's norm layers: their code acts only on keys that do not match."""
    return type(module).__module__ in _NORM_MODULES and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks take part when it is loaded or saved."""
    return bool(
        module._state_dict_hooks  # noqa: SLF001
        or module._load_state_dict_pre_hooks  # noqa: SLF001
        or module._load_state_dict_post_hooks  # noqa: SLF001
    )


def _replaces_methods(module: nn.Module) -> bool:
    """Whether the instance has methods of its own: `model.load_state_dict = function`."""
    return not vars(module).keys().isdisjoint(_LOADING_METHODS)


def _overrides_loading(cls: type[nn.Module]) -> bool:
    return cls.set_extra_state is not nn.Module.set_extra_state or any(
        getattr(cls, name) is not getattr(nn.Module, name) for name in _LOADING_METHODS
    )
