"""Restore a pickled module's tensors that are not in its state_dict into a fresh instance."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckptool.model import Kind, TensorInfo
from ckptool.modules.walk import Found, walk
from ckptool.verification.weights import plain_tensor


def put_back(module: nn.Module, held: Mapping[str, TensorInfo]) -> None:
    """Set the unsaved tensors of a pickled module in `module`, where it still has their paths."""
    if not held:
        return
    for found in walk(module).found:
        info = held.get(found.path)
        value = plain_tensor(info) if info is not None else None
        if value is not None:
            _put(found, value)


def places(module: nn.Module, held: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Return the keys of `pickled_tensors` that `restore_attributes` can set in `module`."""
    there = {found.path for found in walk(module).found}
    return tuple(key for key in held if key in there)


def _put(found: Found, value: Tensor) -> None:
    own = vars(found.owner)
    if found.kind is Kind.NON_PERSISTENT_BUFFER:
        setattr(found.owner, found.attribute, value)
    elif found.kind is Kind.ATTRIBUTE and isinstance(own.get(found.attribute), Tensor):
        own[found.attribute] = value
    elif isinstance(found.value, Tensor) and found.value.shape == value.shape:
        with torch.no_grad():
            found.value.copy_(value)
