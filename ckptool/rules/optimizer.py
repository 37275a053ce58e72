"""ModuleDiff -> hits: optimizer state that does not fit the module's parameters (CK901, CK902).

An optimizer numbers its parameters in the order in which the script passed them. Legitimate
differences (frozen parameters, parameters sorted into groups) are not reported as errors.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Kind, StateDict, TensorInfo, join_key, tied_keys
from ckptool.rules.fixes.commands import advise_conversion
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

_SLOT_PATTERN: Final = re.compile(
    r"state\.(\d+)\.(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|square_avg|acc_delta"
    r"|grad_avg|sum|prev|step_size|exp_inf|ax)"
)
"""Keys of slots (per-parameter state) that have the shape of their parameter in torch."""

_Shape = tuple[int, ...]


class _OptimizerFit(Struct, frozen=True):
    """The only optimizer of a file, matched with the parameters of the module."""

    at: str
    parameter_count: int
    """Number of parameters in all param_groups."""
    group_count: int
    slots: Mapping[int, TensorInfo]
    """Number of a parameter -> one slot that has the parameter's shape."""
    parameters: tuple[TensorInfo, ...]
    """Parameters of the module, tied ones once; only trainable ones if `parameter_count` fits."""


@check(
    ModuleDiff,
    Rule(
        code="CK901",
        name="optimizer-group-size",
        level=Level.ERROR,
        summary="the optimizer at `{key}` has {count} parameters and the module {expected}{maybe}",
        why=(
            "optimizer.load_state_dict() matches parameters by position and refuses groups of a "
            "different size; training cannot be resumed from this file."
        ),
        fix=(
            "Build the optimizer with the parameters it was saved with, or start with a new "
            "optimizer.{conversion}"
        ),
        example=(
            "a = torch.optim.Adam(nn.Linear(2, 2).parameters())\n"
            "b = torch.optim.Adam(nn.Linear(2, 2, bias=False).parameters())\n"
            "b.load_state_dict(a.state_dict())"
        ),
    ),
)
def find_group_size_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    fit = _match_optimizer(diff)
    if fit is None or fit.parameter_count == len(fit.parameters):
        return
    may_be_frozen = _fits_in_order(fit)
    yield hit(
        fit.at,
        Level.NOTE if may_be_frozen else None,
        count=fit.parameter_count,
        expected=len(fit.parameters),
        maybe=": it matches if the others were frozen" if may_be_frozen else ": it does not load",
        conversion=_advise_drop(diff),
    )


@check(
    ModuleDiff,
    Rule(
        code="CK902",
        name="optimizer-shape",
        level=Level.ERROR,
        summary="`{key}` is {actual}, and {parameter} of the module",
        why=(
            "optimizer.load_state_dict() matches parameters by position and does not compare "
            "shapes: the moments of one parameter are used for another, and the first step fails "
            "or is wrong."
        ),
        fix=(
            "Give the optimizer its parameters in the original order, or start with a new "
            "optimizer.{conversion}"
        ),
        example=(
            "model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))\n"
            "a = torch.optim.Adam(model.parameters())\n"
            "b = torch.optim.Adam(reversed(list(model.parameters())))\n"
            "b.load_state_dict(a.state_dict())  # no error"
        ),
    ),
)
def find_slot_shape_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    fit = _match_optimizer(diff)
    if fit is None or fit.parameter_count != len(fit.parameters):
        return
    available_counts = Counter(parameter.shape for parameter in fit.parameters)
    used_counts: Counter[_Shape] = Counter()
    for number, slot in sorted(fit.slots.items()):
        used_counts[slot.shape] += 1
        surplus = used_counts[slot.shape] - available_counts[slot.shape]
        mismatch = _describe_slot_mismatch(fit, number, slot.shape, surplus)
        if mismatch:
            key = join_key(fit.at, slot.key)
            yield hit(
                key,
                actual=list(slot.shape),
                parameter=mismatch,
                conversion=_advise_drop(diff),
            )


def _advise_drop(diff: ModuleDiff) -> str:
    return advise_conversion(diff.checkpoint, "drop its state", "--strip", "optimizer")


def _describe_slot_mismatch(fit: _OptimizerFit, number: int, shape: _Shape, surplus: int) -> str:
    """Describe why a slot does not fit parameter `number`; "" if it fits.

    `surplus` is by how many the slots of this shape, up to this one, outnumber its parameters.
    """
    if fit.group_count == 1:
        parameter = fit.parameters[number]
        return (
            ""
            if parameter.shape == shape
            else f"number {number}, `{parameter.key}`, is {list(parameter.shape)}"
        )
    # Several groups may reorder parameters: only a shape with too few parameters is an error.
    return f"no parameter that is left is {list(shape)}" if surplus > 0 else ""


def _match_optimizer(diff: ModuleDiff) -> _OptimizerFit | None:
    """Match the optimizer with the module; None if its parameters cannot be determined.

    That is so with several optimizers, several models or no readable param_groups.
    """
    states = diff.checkpoint.states
    optimizers = [state for state in states if state.role == "optimizer"]
    model_states = [
        state for state in states if state.role in {"state_dict", "module"} and state.tensors
    ]
    is_only_model = all(state.tensors.keys() == diff.state.tensors.keys() for state in model_states)
    if len(optimizers) != 1 or not is_only_model or diff.better_state is not None:
        return None
    group_sizes = _read_group_sizes(diff, optimizers[0])
    slots: dict[int, TensorInfo] = {}
    for key, tensor in optimizers[0].tensors.items():
        slot = _SLOT_PATTERN.fullmatch(key)
        if slot and tensor.shape:
            slots.setdefault(int(slot[1]), tensor)
    if not group_sizes or any(number >= sum(group_sizes) for number in slots):
        return None
    return _OptimizerFit(
        optimizers[0].at,
        sum(group_sizes),
        len(group_sizes),
        slots,
        _select_parameters(diff, sum(group_sizes)),
    )


def _select_parameters(diff: ModuleDiff, count: int) -> tuple[TensorInfo, ...]:
    saved_parameters = [
        module_tensor
        for module_tensor in diff.module.saved_tensors.values()
        if module_tensor.kind is Kind.PARAMETER
    ]
    duplicate_keys = {
        key
        for group in tied_keys(module_tensor.tensor for module_tensor in saved_parameters)
        for key in group[1:]
    }
    parameters = tuple(
        module_tensor.tensor
        for module_tensor in saved_parameters
        if module_tensor.key not in duplicate_keys
    )
    trainable = tuple(tensor for tensor in parameters if tensor.requires_grad)
    return trainable if len(trainable) == count else parameters


def _read_group_sizes(diff: ModuleDiff, state: StateDict) -> list[int]:
    """Return the number of parameters in each of param_groups; [] if they cannot be read."""
    groups_at = join_key(state.at, "param_groups")
    entries = diff.checkpoint.entries
    groups = next((entry.value for entry in entries if entry.at == groups_at), None)
    if not isinstance(groups, list):
        return []
    param_lists = [group.get("params") for group in groups if isinstance(group, dict)]
    return [len(params) for params in param_lists if isinstance(params, list)]


def _fits_in_order(fit: _OptimizerFit) -> bool:
    """Whether the optimizer's parameters may be a subsequence of the module's, by shape."""
    shapes = iter(fit.parameters)
    slots = (fit.slots.get(number) for number in range(fit.parameter_count))
    return fit.parameter_count < len(fit.parameters) and all(
        any(slot is None or parameter.shape == slot.shape for parameter in shapes) for slot in slots
    )
