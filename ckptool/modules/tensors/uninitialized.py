"""Fill what torch.empty() returns while a module is built, to see later what nobody assigned."""

from typing import Any, Final

import torch
from torch import Tensor

from ckptool.modules.dispatch_mode import DispatchMode

END_ELEMENTS: Final = 1024
"""Number of elements at the start and at the end of a tensor that are filled and looked at.

All of a parameter of many megabytes would be written for nothing: its initialisation follows.
"""

_aten = torch.ops.aten
_FACTORIES: Final = frozenset(
    {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}
)


class UninitializedMemoryFill(DispatchMode):
    """Have torch.empty() and its kin return NaN, or the largest number of an integer dtype."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _FACTORIES and type(result) is Tensor:
            _fill_ends(result)
        return result


def is_filled(tensor: Tensor) -> bool:
    """Whether the first and the last elements are still those of `UninitializedMemoryFill`."""
    return all(_is_fill(end) for end in _list_ends(tensor))


def _fill_ends(tensor: Tensor) -> None:
    # Memory that is not dense has no flat view; a meta tensor has no memory.
    if tensor.is_meta or tensor.is_quantized or not tensor.is_contiguous():
        return
    for end in _list_ends(tensor):
        try:
            end.fill_(_choose_fill(end.dtype))
        except (RuntimeError, TypeError):
            # A dtype without arithmetic, such as bits8.
            return


def _list_ends(tensor: Tensor) -> tuple[Tensor, Tensor]:
    flat = tensor.reshape(-1)
    return flat[:END_ELEMENTS], flat[-END_ELEMENTS:]


def _choose_fill(dtype: torch.dtype) -> float | bool:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype is torch.bool else torch.iinfo(dtype).max


def _is_fill(tensor: Tensor) -> bool:
    if tensor.is_complex():
        return bool(tensor.real.isnan().all())
    if tensor.is_floating_point():
        return bool((tensor != tensor).all())  # noqa: PLR0124 - NaN, in 8-bit dtypes as well
    return bool((tensor == _choose_fill(tensor.dtype)).all())
