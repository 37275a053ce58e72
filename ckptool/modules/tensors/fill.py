"""Elements of a tensor -> whether all are one value that waits for data."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ckptool.modules.tensors.tensor_parts import get_wrapper_name, is_lazy, list_components

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_BLANK_FILLS: Final[Mapping[float, str]] = {0: "zeros", 1: "ones", -1: "-1"}
"""Number that all elements are -> words for it."""


def find_blank_fill(value: Any) -> str:
    """Return the words of `ModuleTensor.blank_fill` for a tensor; "" if not blank."""
    tensor = _read_elements(value)
    if tensor is None or not tensor.numel():
        return ""
    try:
        return _describe_fill(tensor)
    except (RuntimeError, TypeError):
        # A dtype without arithmetic, such as bits8.
        return ""


def is_uninitialized(value: Any) -> bool:
    """Whether the elements are still those of `UninitializedMemoryFill`."""
    from ckptool.modules.tensors.uninitialized import is_filled

    tensor = _read_elements(value)
    if tensor is None or not tensor.numel():
        return False
    try:
        return is_filled(tensor)
    except (RuntimeError, TypeError):
        return False


def _describe_fill(tensor: "Tensor") -> str:
    import torch

    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    first_element = tensor[(0,) * tensor.ndim]
    number: float = first_element.item()
    if not math.isfinite(number):
        return "" if torch.isfinite(tensor).any() else "infinities or NaN"
    # The last element tells most tensors apart before all elements are read.
    if tensor[(-1,) * tensor.ndim].item() != number or not (tensor == first_element).all():
        return ""
    if tensor.dtype is torch.bool:
        return str(number)
    if number in _BLANK_FILLS:
        return _BLANK_FILLS[number]
    return "the largest numbers of its dtype" if _is_extreme(tensor.dtype, number) else ""


def _is_extreme(dtype: "torch.dtype", number: float) -> bool:
    """Whether it is the largest or smallest number of a dtype of at least 16 bits."""
    import torch

    if dtype.itemsize == 1:
        return False
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return number in {limits.max, limits.min}


def _read_elements(value: Any) -> "Tensor | None":
    """Return the elements of a tensor; None if unavailable, or if their places say something."""
    import torch

    if not isinstance(value, torch.Tensor) or is_lazy(value) or value.is_meta:
        return None
    if value.is_nested or get_wrapper_name(value):
        return None
    tensor = value.detach()
    if tensor.layout is torch.strided:
        return tensor.int_repr() if tensor.is_quantized else tensor
    stored_values = dict(list_components(tensor)).get("values")
    return None if stored_values is None or stored_values.any() else torch.zeros(1)
