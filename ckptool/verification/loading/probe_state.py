"""ModuleDiff -> the argument of `load_state_dict`, with values of some tensors only."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Kind, TensorInfo
from ckptool.verification.loading.load_tensors import (
    can_be_mapped,
    load_tensors,
    load_with_torch,
    set_version_numbers,
)


class ValuesNeededError(Exception):
    """Loading code asked a tensor without data for its values."""


def build_probe_state(diff: ModuleDiff, read_keys: Collection[str]) -> Mapping[str, Any]:
    """Return the argument of `load_state_dict`: values of `read_keys`, the others on meta.

    Tensors tied in the file are one tensor in the result. What is no tensor is read by torch, with
    the file mapped into memory, so that elements are read only where code asks for them.

    Raises:
        ReadError: the values cannot be read.
        ValuesNeededError: a key to be on meta has something else than a dense tensor.
    """
    if non_tensor := next(iter((*diff.state.non_tensors, *diff.packed_keys)), ""):
        if diff.is_planned or not (read_keys or can_be_mapped(diff.checkpoint)):
            raise ValuesNeededError(f"`{non_tensor}` is not a tensor")
        return load_with_torch(diff.checkpoint, diff.state.at, mapped=not read_keys)
    state = diff.state
    read_tensors = {
        key: tensor
        for key, tensor in state.tensors.items()
        if key in read_keys or tensor.kind is Kind.ARRAY
    }
    values = load_tensors(diff.checkpoint, replace(state, tensors=read_tensors), {})
    tensors: OrderedDict[str, Any] = OrderedDict()
    tensors_by_view: dict[object, Tensor] = {}
    for key, info in state.tensors.items():
        if key in values:
            tensors[key] = values[key]
            continue
        view = _identify_view(key, info)
        if view not in tensors_by_view:
            tensors_by_view[view] = _make_meta_tensor(key, info)
        tensors[key] = tensors_by_view[view]
    tensors.update({key: {} for key in diff.nested_keys})
    if state.versions is not None:
        set_version_numbers(tensors, state.versions, state.module_metadata)
    return tensors


def _make_meta_tensor(key: str, info: TensorInfo) -> Tensor:
    dtype = getattr(torch, info.dtype, None)
    if info.layout not in {"strided", "chunked"} or not isinstance(dtype, torch.dtype):
        raise ValuesNeededError(f"`{key}` is {info.layout} {info.dtype}")
    return torch.empty(info.shape, dtype=dtype, device="meta")


def _identify_view(key: str, info: TensorInfo) -> object:
    """Return a value that is equal for keys that are one tensor in the file."""
    if info.storage is None:
        return key
    return info.storage, info.storage_offset, info.shape, info.stride, info.dtype
