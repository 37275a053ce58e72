"""nn.Module -> a copy to load into, its parameters on meta."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ckptool.modules.move_probe import copy_to_meta
from ckptool.modules.tensors.tensor_parts import is_lazy
from ckptool.modules.user_code import user_code
from ckptool.modules.walk import walk_module


def copy_module(module: nn.Module, *, on_meta: bool) -> nn.Module:
    """Return a copy with parameters on meta, and with `on_meta` saved buffers too.

    Raises:
        UserCodeError: the module cannot be copied.
    """
    with user_code():
        copy = copy_to_meta(module, walk_module(module))
        if on_meta:
            _move_to_meta(copy)
        return copy


def _move_to_meta(module: nn.Module) -> None:
    """Replace lazy parameters and saved dense buffers; what is tied stays tied."""
    replacements: dict[int, Tensor] = {}
    for part in module.modules():
        saved_buffers = part._buffers.keys() - part._non_persistent_buffers_set  # noqa: SLF001
        for tensors, names in ((part._parameters, part._parameters.keys()),  # noqa: SLF001
                               (part._buffers, saved_buffers)):  # fmt: skip  # noqa: SLF001
            for name in list(names):
                tensor = tensors[name]
                if tensor is not None and not tensor.is_meta and _can_be_on_meta(tensor):
                    new = replacements.setdefault(id(tensor), _make_meta_tensor(tensor))
                    tensors[name] = new  # type: ignore[assignment]


def _can_be_on_meta(tensor: Tensor) -> bool:
    if is_lazy(tensor):
        return True
    is_dense = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return type(tensor) is Tensor and is_dense


def _make_meta_tensor(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        make: Callable[..., Tensor] = type(tensor)
        return make(tensor.requires_grad, device="meta", dtype=tensor.dtype)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
