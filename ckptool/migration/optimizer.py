"""The optimizers of a checkpoint and the module's parameters -> where they no longer fit."""

import re
from collections.abc import Iterator
from typing import Final

from ckptool.model import Checkpoint, Kind, ModuleState, State, TensorInfo

_SLOT: Final = re.compile(r"state\.(\d+)\.\w+")


def unfit(checkpoint: Checkpoint, module: ModuleState | None) -> Iterator[str]:
    """Yield what an optimizer that is kept would stumble over: it knows parameters by number."""
    if module is None:
        return
    saved = module.saved.values()
    parameters = [held.tensor for held in saved if held.kind is Kind.PARAMETER]
    for state in checkpoint.states:
        if state.role == "optimizer":
            yield from _against(checkpoint, state, parameters)


def _against(checkpoint: Checkpoint, state: State, parameters: list[TensorInfo]) -> Iterator[str]:
    count = _numbered(checkpoint, state)
    if count is not None and count != len(parameters):
        yield (
            f"CK901: the optimizer at `{state.at}` has {count} parameters and the module "
            f"{len(parameters)}: it does not load"
        )
        return
    for key, tensor in state.tensors.items():
        slot = _SLOT.fullmatch(key)
        if slot is None or not tensor.shape or int(slot[1]) >= len(parameters):
            continue
        parameter = parameters[int(slot[1])]
        if parameter.shape != tensor.shape:
            yield (
                f"CK902: `{state.at}.{key}` is {list(tensor.shape)} and the module's "
                f"`{parameter.key}` is {list(parameter.shape)}"
            )


def _numbered(checkpoint: Checkpoint, state: State) -> int | None:
    """Return how many parameters the optimizer's groups name, None where they cannot be read."""
    place = f"{state.at}.param_groups" if state.at else "param_groups"
    groups = next((entry.value for entry in checkpoint.entries if entry.at == place), None)
    if not isinstance(groups, list):
        return None
    named = [group.get("params") for group in groups if isinstance(group, dict)]
    return sum(len(params) for params in named if isinstance(params, list))
