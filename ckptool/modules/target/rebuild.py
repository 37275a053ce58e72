"""Live module -> ModuleRebuild: how another one like it is built, where that can be known."""

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ckptool.modules.user_code import UserCodeError, user_code

UNKNOWN_ARGUMENTS: Final = (
    "the arguments of its constructor are not known: give kwargs={...} or fresh=lambda: ..."
)
_STORED_CONFIGS: Final = ("hparams", "config", "cfg", "args")
"""Attributes that may have the constructor's arguments, or be the one that it takes."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleRebuild:
    """A class or function, and the arguments with which it builds a module like a live one."""

    function: Callable[..., Any]
    kwargs: Mapping[str, object] = field(default_factory=dict)
    is_guess: bool = False
    """Whether the arguments were read from the module, and may be others than it was built with."""

    def build_module(self) -> Any:
        """Return a new module; the arguments are copied, so that no build changes another's."""
        return self.function(**copy.deepcopy(dict(self.kwargs)))


def find_rebuild(
    module: Any, kwargs: Mapping[str, object] | None, fresh: Callable[[], Any] | None
) -> ModuleRebuild | None:
    """Return how to build another module like `module`; None if its arguments are not known.

    By `fresh`, else with `kwargs`, else with the arguments that the module stores: in `hparams` or
    `config`, or as attributes of the parameters' names.
    """
    if fresh is not None:
        return ModuleRebuild(fresh)
    if kwargs is not None:
        return ModuleRebuild(type(module), kwargs)
    parameters = _list_parameters(type(module))
    if parameters is None:
        return None
    stored_arguments = _read_stored_arguments(module, parameters)
    required_names = {
        name for name, parameter in parameters.items() if parameter.default is parameter.empty
    }
    is_certain = stored_arguments.keys() >= parameters.keys()
    attributes: Mapping[str, object] = {}
    if not is_certain:
        attributes = _read_attributes(module, parameters.keys() - stored_arguments.keys())
    arguments = {**attributes, **stored_arguments}
    if not required_names <= arguments.keys():
        return None
    return ModuleRebuild(type(module), arguments, is_guess=not is_certain)


def collect_key_shapes(state_dict: Mapping[str, Any]) -> set[tuple[str, object]]:
    """Return the keys of a state_dict, each with the shape of its tensor, None for other values."""
    return {(key, _get_shape(value)) for key, value in state_dict.items()}


def _get_shape(value: Any) -> object:
    try:
        return value.shape
    except (AttributeError, RuntimeError):  # RuntimeError: an uninitialized parameter
        return None


def builds_other_state(rebuild: ModuleRebuild, module: Any) -> bool:
    """Whether building, on meta, gives other keys or shapes; False if it cannot be built there."""
    import torch

    from ckptool.modules.build import preserve_random_state

    with suppress(UserCodeError), preserve_random_state(), user_code(), torch.device("meta"):
        other_state = rebuild.build_module().state_dict()
        return collect_key_shapes(other_state) != collect_key_shapes(module.state_dict())
    return False


def _list_parameters(cls: type) -> dict[str, inspect.Parameter] | None:
    """Return the named parameters of a constructor; None if it has no signature."""
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return None
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    }


def _read_stored_arguments(
    module: Any, parameters: Mapping[str, inspect.Parameter]
) -> dict[str, object]:
    """Return the arguments in Lightning's `hparams`, and `config` where the constructor takes it.

    These are kept as the constructor got them.
    """
    arguments: dict[str, object] = {}
    with suppress(UserCodeError), user_code():
        hparams = getattr(module, "hparams", None)
        arguments = {
            name: value for name, value in dict(hparams or {}).items() if name in parameters
        }
        for name in _STORED_CONFIGS:
            value = vars(module).get(name, getattr(module, name, None))
            if name in parameters and name not in arguments and not _holds_tensors(value):
                arguments |= {} if value is None else {name: value}
    return arguments


def _read_attributes(module: Any, names: set[str]) -> dict[str, object]:
    """Return the attributes of these names that hold no tensor and no module."""
    values = {name: vars(module)[name] for name in sorted(names & vars(module).keys())}
    return {name: value for name, value in values.items() if not _holds_tensors(value)}


def _holds_tensors(value: object) -> bool:
    """Whether a value is a tensor, a module, or a container of them: no two builds may share it."""
    from torch import Tensor, nn

    if isinstance(value, Tensor | nn.Module):
        return True
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, list | tuple | set) and any(map(_holds_tensors, value))
