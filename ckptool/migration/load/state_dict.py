"""Draft -> the argument of load_state_dict: lazy tensors, values that are no tensor, versions."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from msgspec import Struct

from ckptool.compare.states import DISTRIBUTED_CLASSES, find_distributed_key
from ckptool.errors import UsageError
from ckptool.migration.load.tensor_reader import TensorReader
from ckptool.migration.plan.draft import Draft, PlannedTensor
from ckptool.model import Checkpoint
from ckptool.modules.live.registered import RegisteredTensor, list_members, list_registered
from ckptool.modules.tensors.tensor_parts import get_wrapper_name
from ckptool.modules.walk import get_qualified_name
from ckptool.verification.loading.load_tensors import set_version_numbers

if TYPE_CHECKING:
    from torch import Tensor, nn


_FLAT_CLASS: Final = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"


class Placement(Struct, frozen=True):
    """Device and dtype of the tensors that `assign=True` puts into a module."""

    device: torch.device | None = None
    """None for that of the module's tensor; the CPU where that is on meta."""
    dtype: torch.dtype | None = None
    """Of floating-point tensors; None for the file's."""


def parse_placement(
    device: "str | torch.device | None", dtype: "str | torch.dtype | None"
) -> Placement:
    """Return the placement of a device and a dtype, or of their names.

    Raises:
        UsageError: torch knows no such device, or it is no dtype of floating-point numbers.
    """
    try:
        placed = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device={device!r}: torch knows no such device") from error
    torch_dtype = (
        getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    )
    if dtype is not None and not (
        isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point
    ):
        raise UsageError(f"dtype={dtype!r}: expected a floating-point dtype, such as 'bfloat16'")
    return Placement(placed, torch_dtype)


def require_target(
    registered_tensors: Sequence[RegisteredTensor], placement: Placement, *, assign: bool
) -> None:
    """Refuse what copying into the module's own tensors cannot do.

    Raises:
        UsageError: they are on meta, or on another device or of another dtype than asked.
    """
    if assign:
        return
    device, dtype = placement.device, placement.dtype
    for key, tensor, _, is_saved in registered_tensors:
        wants_device = device is not None and not _is_same_device(device, tensor.device)
        is_cast = dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype
        if is_saved and tensor.is_meta:
            raise UsageError(f"`{key}` of the module is on meta and takes no values: assign=True")
        if is_saved and (wants_device or is_cast):
            own = tensor.device if wants_device else tensor.dtype
            raise UsageError(
                f"device= and dtype= are those of the tensors that assign=True puts into the "
                f"module: `{key}` is {own} and would stay so; call .to() on the module, or use "
                "assign=True"
            )


def require_local_tensors(
    module: "nn.Module", registered_tensors: Sequence[RegisteredTensor], checkpoint: Checkpoint
) -> None:
    """Refuse a module whose parameters are on several ranks, unless the file is one rank's.

    FullyShardedDataParallel frees their memory between two uses; and torch copies no whole tensor
    into a DTensor.

    Raises:
        UsageError: it, or one of its sub-modules, is such a module.
    """
    name = _find_flat_module(module) or _find_distributed_tensor(registered_tensors)
    if name and not find_distributed_key(checkpoint):
        raise UsageError(
            f"{name}, and this rank has only a part of it: load before the module is wrapped; or, "
            "on all ranks, call set_model_state_dict(model, dict(ckptool.tensors(path)), "
            "options=StateDictOptions(full_state_dict=True))"
        )


def _find_flat_module(module: "nn.Module") -> str:
    for prefix, member in list_members(module):
        if any(get_qualified_name(cls) == _FLAT_CLASS for cls in type(member).__mro__):
            return f"`{prefix or '.'}` is a FullyShardedDataParallel"
    return ""


def _find_distributed_tensor(registered_tensors: Iterable[RegisteredTensor]) -> str:
    for key, tensor, *_ in registered_tensors:
        if get_wrapper_name(tensor).endswith(DISTRIBUTED_CLASSES):
            return f"`{key}` is a {type(tensor).__name__}"
    return ""


def build_state_dict(
    draft: Draft, reader: TensorReader, *, keeps_chunks: bool
) -> "OrderedDict[str, Any]":
    """Return the state_dict of a draft; no elements are read, except of what is cast.

    With `keeps_chunks`, a large tensor in chunks has a stand-in there; see `reader.chunked`.

    Raises:
        ReadError: the file cannot be read.
    """
    state_dict: OrderedDict[str, Any] = OrderedDict(
        (key, _make_tensor(item, reader, keeps_chunks=keeps_chunks))
        for key, item in draft.items.items()
    )
    for key, source_key in draft.non_tensor_keys.items():
        state_dict[key] = reader.read_value(source_key, key)
    if draft.versions is not None:
        set_version_numbers(state_dict, draft.versions, draft.state.module_metadata)
    return state_dict


def place_tensors(
    state_dict: "OrderedDict[str, Any]", module: "nn.Module", placement: Placement
) -> None:
    """Move and cast the tensors of a state_dict in place, for the module that takes them over.

    Tied tensors stay tied.
    """
    targets = {key: tensor for key, tensor, *_ in list_registered(module)}
    moved: dict[object, Tensor] = {}
    for key, tensor in list(state_dict.items()):
        if isinstance(tensor, torch.Tensor):
            device = placement.device or _choose_device(targets.get(key))
            dtype = placement.dtype if tensor.is_floating_point() else None
            form = (*_identify_view(tensor), device, dtype)
            if form not in moved:
                moved[form] = tensor.to(device=device, dtype=dtype)
            state_dict[key] = moved[form]


def _make_tensor(item: PlannedTensor, reader: TensorReader, *, keeps_chunks: bool) -> "Tensor":
    keeps_chunks = keeps_chunks and not (item.casts or item.own_storage)
    tensor = reader.read_tensor(item.tensor, item.source_key, keeps_chunks=keeps_chunks)
    for dtype in item.casts:
        tensor = tensor.to(getattr(torch, dtype))
    return tensor.clone() if item.own_storage and not item.casts else tensor


def _is_same_device(device: torch.device, own: torch.device) -> bool:
    return device.type == own.type and device.index in {None, own.index}


def _choose_device(target: "Tensor | None") -> torch.device:
    return torch.device("cpu") if target is None or target.is_meta else target.device


def _identify_view(tensor: "Tensor") -> tuple[object, ...]:
    """Return what tensors share that are one view of one storage."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
