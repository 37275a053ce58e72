"""LightningModule -> how load_from_checkpoint builds it; Lightning itself is not imported."""

import inspect
from collections.abc import Mapping
from typing import Any, Final

_PACKAGES: Final = frozenset({"pytorch_lightning", "lightning"})


def find_lightning_class(function: Any) -> Any:
    """Return the LightningModule among the bases of a class; None without, and for a function."""
    for base in getattr(function, "__mro__", ()):
        if base.__name__ == "LightningModule" and base.__module__.partition(".")[0] in _PACKAGES:
            return base
    return None


def overrides_hook(module: Any, name: str) -> bool:
    """Whether the class of a module overrides a hook of LightningModule; False for others."""
    base = find_lightning_class(type(module))
    return base is not None and getattr(type(module), name) is not getattr(base, name)


def configure_module(module: Any) -> Any:
    """Return the module after its configure_model(), which load_from_checkpoint calls."""
    if overrides_hook(module, "configure_model"):
        module.configure_model()
    return module


def select_open_arguments(function: Any, arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the hyperparameters that a LightningModule takes by its `**kwargs`.

    load_from_checkpoint passes all of them to a constructor with `**kwargs`. {} for any other, and
    where one parameter takes them as a whole.
    """
    if find_lightning_class(function) is None:
        return {}
    parameters = inspect.signature(function).parameters
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    is_one_argument = any(
        name in parameters and value == {k: v for k, v in arguments.items() if k != name}
        for name, value in arguments.items()
    )
    if not is_open or is_one_argument:
        return {}
    return {name: value for name, value in arguments.items() if not name.startswith("_")}
