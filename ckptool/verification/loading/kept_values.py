"""Loads that differ in one respect -> elements that do not come from the file.

Code that resizes an embedding keeps initial values in some rows, and a hook may initialise a layer
again after the load: what a tensor is computed from is not seen by looking at one load.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import torch
from msgspec import Struct
from torch import Tensor, nn

from ckptool.compare.load_outcome import KeptElements
from ckptool.modules.build import seed_generators
from ckptool.modules.live.load_call import call_load_state_dict
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.verification.loading.load_tensors import copy_state

_SCALE: Final = 1.25
_SHIFT: Final = 0.5
"""Other values than any: x * 1.25 + 0.5."""


class _Change(Struct, frozen=True):
    """How a load differs from the first."""

    of_file: bool = False
    of_module: bool = False
    seed: int = 0


def find_kept_elements(
    create: Callable[[], nn.Module], tensors: Mapping[str, Any], keys: Collection[str]
) -> dict[str, KeptElements]:
    """Return, for floating-point tensors of `keys`, the elements that are not of the file.

    Such an element is the same for other values in the file, and another for other initial values,
    or for another seed. Keys without one are left out; so are all, if a load raises.

    Args:
        create: makes an instance, with memory and the same values at each call.
        tensors: the state, with values.
        keys: keys of the module whose values its loading code computes.
    """
    try:
        first = _load_changed(create, tensors, keys, _Change())
        of_file = _load_changed(create, tensors, keys, _Change(of_file=True))
        of_module = _load_changed(create, tensors, keys, _Change(of_module=True))
        of_seed = _load_changed(create, tensors, keys, _Change(seed=1))
    except UserCodeError:
        return {}
    result: dict[str, KeptElements] = {}
    for key, value in first.items():
        others = [values.get(key) for values in (of_file, of_module, of_seed)]
        if not all(other is not None and other.shape == value.shape for other in others):
            continue
        depends_on_file, is_initial, is_random = (_differ(value, other) for other in others)
        kept = ~depends_on_file & (is_initial | is_random)
        if kept.any():
            is_drawn = bool((kept & is_random).any())
            result[key] = KeptElements(int(kept.sum()), value.numel(), is_drawn)
    return result


def _load_changed(
    create: Callable[[], nn.Module],
    tensors: Mapping[str, Any],
    keys: Collection[str],
    change: _Change,
) -> dict[str, Tensor]:
    """Return copies of the floating-point tensors of `keys` after a load.

    Raises:
        UserCodeError: no instance can be made, or the load raises.
    """
    module = create()
    state = copy_state(tensors)
    with torch.no_grad(), user_code():
        if change.of_module:
            for tensor in dict.fromkeys((*module.parameters(), *module.buffers())):
                if _is_plain_float(tensor):
                    tensor.copy_(_change_values(tensor))
        if change.of_file:
            changed = {id(value): _change_values(value) for value in _iter_floats(state)}
            for key, value in state.items():
                state[key] = changed.get(id(value), value)
    with user_code():
        seed_generators(change.seed)
        call_load_state_dict(module, state)
    module_tensors: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
    module_tensors.update(module.named_parameters(remove_duplicate=False))
    return {
        key: module_tensors[key].detach().clone()
        for key in keys
        if key in module_tensors and _is_plain_float(module_tensors[key])
    }


def _iter_floats(state: Mapping[str, Any]) -> list[Tensor]:
    return [
        value for value in state.values() if isinstance(value, Tensor) and _is_plain_float(value)
    ]


def _is_plain_float(tensor: Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and type(tensor) in {Tensor, nn.Parameter}
    return is_dense and tensor.is_floating_point() and not tensor.is_meta


def _change_values(tensor: Tensor) -> Tensor:
    return tensor.detach() * _SCALE + _SHIFT


def _differ(tensor: Tensor, other: Tensor | None) -> Tensor:
    assert other is not None
    return ~torch.isclose(tensor, other, rtol=0.0, atol=0.0, equal_nan=True)
