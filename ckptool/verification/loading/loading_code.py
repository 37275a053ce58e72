"""nn.Module -> its sub-modules that load or save by more than torch's own code."""

from typing import Final

from torch import nn

_NORM_MODULES: Final = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm")


def find_loading_code(module: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of sub-modules that load or save by more than nn.Module's own code.

    Without any, a state_dict is what is registered, and torch's comparison of keys and shapes is
    all that a load is.
    """
    members = list(module.named_modules())
    own_classes = {cls for cls in {type(part) for _, part in members} if _overrides_loading(cls)}
    return tuple(prefix for prefix, part in members if type(part) in own_classes or has_hooks(part))


def loads_by_own_code(module: nn.Module) -> bool:
    """Whether code other than torch's copying takes part in a load whose keys and shapes match."""
    return not all(
        only_fills_keys(module.get_submodule(prefix)) for prefix in find_loading_code(module)
    )


def is_user_class(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.")


def only_fills_keys(module: nn.Module) -> bool:
    """Whether it is one of torch's norm layers: their code acts only on keys that do not match."""
    return type(module).__module__ in _NORM_MODULES and not has_hooks(module)


def _overrides_loading(cls: type[nn.Module]) -> bool:
    return bool(
        cls._load_from_state_dict is not nn.Module._load_from_state_dict  # noqa: SLF001
        or cls.load_state_dict is not nn.Module.load_state_dict
        or cls.set_extra_state is not nn.Module.set_extra_state
        or cls._save_to_state_dict is not nn.Module._save_to_state_dict  # noqa: SLF001
        or cls.state_dict is not nn.Module.state_dict
    )


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._state_dict_hooks  # noqa: SLF001
        or module._load_state_dict_pre_hooks  # noqa: SLF001
        or module._load_state_dict_post_hooks  # noqa: SLF001
    )
