"""The call of a module's `load_state_dict`, whatever arguments an override takes."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from torch import nn


class LoadedKeys(Struct, frozen=True):
    """What `load_state_dict` returned."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def call_load_state_dict(
    module: "nn.Module", state_dict: Mapping[str, Any], *, strict: bool = True, assign: bool = False
) -> LoadedKeys:
    """Call `module.load_state_dict` with the arguments that it takes, and return its keys.

    Overrides written before torch 2.1 take no `assign`, and some take nothing but the state_dict.
    An override that returns nothing gives no keys. `assign=True` is always passed on.
    """
    method: Callable[..., Any] = module.load_state_dict
    arguments: dict[str, bool] = {"assign": True} if assign else {}
    if _takes(method, "strict"):
        arguments["strict"] = strict
    keys = method(state_dict, **arguments)
    return LoadedKeys(
        tuple(getattr(keys, "missing_keys", ())), tuple(getattr(keys, "unexpected_keys", ()))
    )


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether it has a parameter of this name, or takes any; True if that is not known."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled
        return True
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return name in parameters or takes_any
