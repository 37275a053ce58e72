"""ModuleDiff -> hits: optimizer state that does not fit the module's parameters (CK901, CK902).

An optimizer numbers its parameters in the order in which the script passed them. Legitimate
differences (frozen parameters, parameters sorted into groups) are not reported as errors.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from ckptool.compare import Loading
from ckptool.model import Kind, State, TensorInfo, ties
from ckptool.rules.registry import Hit, Level, Rule, check, hit

_SLOT: Final = re.compile(
    r"state\.(\d+)\.(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|square_avg|acc_delta"
    r"|grad_avg|sum|prev|step_size|exp_inf|ax)"
)
"""Keys of slots (per-parameter state) that have the shape of their parameter in torch."""

_Shape = tuple[int, ...]


class _Fit(Struct, frozen=True):
    """The only optimizer of a file, matched with the parameters of the module."""

    at: str
    count: int
    """Number of parameters in all param_groups."""
    groups: int
    slots: Mapping[int, TensorInfo]
    """Number of a parameter -> one slot that has the parameter's shape."""
    parameters: tuple[TensorInfo, ...]
    """Parameters of the module, tied ones once; only trainable ones if `parameter_count` fits."""


@check(
    Loading,
    Rule(
        code="CK901",
        name="optimizer-group-size",
        level=Level.ERROR,
        message="the optimizer at `{key}` has {count} parameters and the module {expected}{maybe}",
        why="optimizer.load_state_dict() goes by position and refuses groups of another size; "
        "training cannot be resumed from here.",
        fix="Build the optimizer over the parameters it was saved with, or leave its state out and "
        "start it afresh.",
        example="a = torch.optim.Adam(nn.Linear(2, 2).parameters())\n"
        "b = torch.optim.Adam(nn.Linear(2, 2, bias=False).parameters())\n"
        "b.load_state_dict(a.state_dict())",
    ),
)
def group_size(loading: Loading) -> Iterator[Hit]:
    fit = _fit(loading)
    if fit is None or fit.count == len(fit.parameters):
        return
    frozen = _in_order(fit)
    yield hit(
        fit.at,
        Level.NOTE if frozen else None,
        count=fit.count,
        expected=len(fit.parameters),
        maybe=": it fits if the others were frozen" if frozen else ": it does not load",
    )


@check(
    Loading,
    Rule(
        code="CK902",
        name="optimizer-shape",
        level=Level.ERROR,
        message="`{key}` is {actual}, and {parameter} of the module",
        why="optimizer.load_state_dict() goes by position and looks at no shape: the moments of "
        "one parameter are used for another, and the first step fails or is wrong.",
        fix="Give the optimizer its parameters in the order they had, or leave its state out and "
        "start it afresh.",
        example="model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))\n"
        "a = torch.optim.Adam(model.parameters())\n"
        "b = torch.optim.Adam(reversed(list(model.parameters())))\n"
        "b.load_state_dict(a.state_dict())  # no error",
    ),
)
def slot_shape(loading: Loading) -> Iterator[Hit]:
    fit = _fit(loading)
    if fit is None or fit.count != len(fit.parameters):
        return
    for number, slot in sorted(fit.slots.items()):
        words = _misfit(fit, number, slot.shape)
        if words:
            key = f"{fit.at}.{slot.key}" if fit.at else slot.key
            yield hit(key, actual=list(slot.shape), parameter=words)


def _misfit(fit: _Fit, number: int, shape: _Shape) -> str:
    """Describe why a slot does not fit parameter `number`; "" if it fits."""
    if fit.groups == 1:
        own = fit.parameters[number]
        return "" if own.shape == shape else f"number {number}, `{own.key}`, is {list(own.shape)}"
    # Several groups may reorder parameters: only a shape with too few parameters is an error.
    has = Counter(p.shape for p in fit.parameters)[shape]
    uses = sum(1 for n, slot in fit.slots.items() if slot.shape == shape and n <= number)
    return "" if uses <= has else f"no parameter that is left is {list(shape)}"


def _fit(loading: Loading) -> _Fit | None:
    """Match the optimizer with the module; None if its parameters cannot be determined.

    That is so with several optimizers, several models or no readable param_groups.
    """
    states = loading.checkpoint.states
    optimizers = [state for state in states if state.role == "optimizer"]
    models = [s for s in states if s.role in {"state_dict", "module"} and s.tensors]
    alone = all(s.tensors.keys() == loading.state.tensors.keys() for s in models)
    if len(optimizers) != 1 or not alone or loading.better is not None:
        return None
    groups = _groups(loading, optimizers[0])
    slots: dict[int, TensorInfo] = {}
    for key, tensor in optimizers[0].tensors.items():
        slot = _SLOT.fullmatch(key)
        if slot and tensor.shape:
            slots.setdefault(int(slot[1]), tensor)
    if not groups or any(number >= sum(groups) for number in slots):
        return None
    return _Fit(
        optimizers[0].at, sum(groups), len(groups), slots, _parameters(loading, sum(groups))
    )


def _parameters(loading: Loading, count: int) -> tuple[TensorInfo, ...]:
    saved = [h for h in loading.module.saved.values() if h.kind is Kind.PARAMETER]
    again = {key for group in ties(h.tensor for h in saved) for key in group[1:]}
    own = tuple(h.tensor for h in saved if h.key not in again)
    trained = tuple(tensor for tensor in own if tensor.requires_grad)
    return trained if len(trained) == count else own


def _groups(loading: Loading, state: State) -> list[int]:
    """Return the number of parameters in each of param_groups; [] if they cannot be read."""
    place = f"{state.at}.param_groups" if state.at else "param_groups"
    entries = loading.checkpoint.entries
    groups = next((entry.value for entry in entries if entry.at == place), None)
    if not isinstance(groups, list):
        return []
    named = [group.get("params") for group in groups if isinstance(group, dict)]
    return [len(params) for params in named if isinstance(params, list)]


def _in_order(fit: _Fit) -> bool:
    """Whether the optimizer's parameters may be a subsequence of the module's, by shape."""
    shapes = iter(fit.parameters)
    wanted = (fit.slots.get(number) for number in range(fit.count))
    return fit.count < len(fit.parameters) and all(
        any(slot is None or parameter.shape == slot.shape for parameter in shapes)
        for slot in wanted
    )
