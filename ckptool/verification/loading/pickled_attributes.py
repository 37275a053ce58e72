"""Restore a pickled module's tensors that are not in its state_dict into a new instance."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckptool.model import Kind, TensorInfo
from ckptool.modules.walk import FoundTensor, walk_module
from ckptool.verification.loading.load_tensors import read_plain_tensor


def restore_attributes(module: nn.Module, pickled_tensors: Mapping[str, TensorInfo]) -> None:
    """Set the unsaved tensors of a pickled module in `module`, where it still has their paths."""
    if not pickled_tensors:
        return
    for found_tensor in walk_module(module).tensors:
        info = pickled_tensors.get(found_tensor.path)
        value = read_plain_tensor(info) if info is not None else None
        if value is not None:
            _assign_tensor(found_tensor, value)


def find_restorable_paths(
    module: nn.Module, pickled_tensors: Mapping[str, TensorInfo]
) -> tuple[str, ...]:
    """Return the keys of `pickled_tensors` that `restore_attributes` can set in `module`."""
    module_paths = {found_tensor.path for found_tensor in walk_module(module).tensors}
    return tuple(key for key in pickled_tensors if key in module_paths)


def _assign_tensor(found_tensor: FoundTensor, value: Tensor) -> None:
    instance_attributes = vars(found_tensor.owner)
    if found_tensor.kind is Kind.NON_PERSISTENT_BUFFER:
        setattr(found_tensor.owner, found_tensor.attribute, value)
    elif found_tensor.kind is Kind.ATTRIBUTE and isinstance(
        instance_attributes.get(found_tensor.attribute), Tensor
    ):
        instance_attributes[found_tensor.attribute] = value
    elif isinstance(found_tensor.value, Tensor) and found_tensor.value.shape == value.shape:
        with torch.no_grad():
            found_tensor.value.copy_(value)
