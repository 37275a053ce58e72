"""BuildPair -> Constancy of each tensor; nn.Module -> MoveBehavior of each tensor."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool.model import Constancy, Skipped
from ckptool.modules.build import BuildPair
from ckptool.modules.live.module_copy import copy_module
from ckptool.modules.tensors.elements import get_dtype_name, have_same_bytes
from ckptool.modules.tensors.fill import is_uninitialized
from ckptool.modules.tensors.tensor_info import ModuleStorages
from ckptool.modules.tensors.tensor_parts import is_lazy
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import FoundTensor, ModuleWalk, walk_module

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class MoveBehavior:
    """Whether `.to()` moves one tensor, and whether `.half()` converts it."""

    follows_to: bool
    follows_dtype: bool


@dataclass(frozen=True, slots=True, eq=False)
class _TensorBefore:
    """A tensor's dtype and device before the cast, which changes parameters in place."""

    found_tensor: FoundTensor
    dtype: str
    on_meta: bool


def compare_builds(builds: BuildPair) -> dict[str, Constancy]:
    """Compare the values of two builds: path -> Constancy; {} without a second build."""
    if builds.second is None:
        return {}
    second_tensors = {
        found_tensor.path: found_tensor for found_tensor in builds.second.walk.tensors
    }
    return {
        f.path: _classify_constancy(f, second_tensors.get(f.path))
        for f in builds.first.walk.tensors
    }


def compare_with_live(
    constancy: Mapping[str, Constancy],
    built_walk: ModuleWalk,
    live_walk: ModuleWalk,
    *,
    is_guess: bool,
) -> dict[str, Constancy]:
    """Return the constancy of the values of a live module: path -> Constancy.

    Args:
        constancy: that of two modules built like it.
        built_walk: the tensors of one of these.
        live_walk: the tensors of the live module.
        is_guess: whether it may have been built with other arguments: a value that building does
            not give is UNKNOWN then, else MUTATED.
    """
    built_tensors = {found_tensor.path: found_tensor for found_tensor in built_walk.tensors}
    changed = Constancy.UNKNOWN if is_guess else Constancy.MUTATED
    result: dict[str, Constancy] = {}
    for live_tensor in live_walk.tensors:
        path = live_tensor.path
        built_tensor = built_tensors.get(path)
        result[path] = constancy.get(path, Constancy.UNKNOWN)
        if built_tensor is None or result[path] is not Constancy.CONSTANT:
            continue
        is_equal = have_same_bytes(*_align_values(built_tensor.value, live_tensor.value))
        if is_equal is not True:
            result[path] = Constancy.UNKNOWN if is_equal is None else changed
    return result


def _align_values(built_value: Any, live_value: Any) -> tuple[Any, Any]:
    """Return both values on the CPU, the built one in the dtype that the live one was cast to."""
    from torch import Tensor

    if not (isinstance(built_value, Tensor) and isinstance(live_value, Tensor)):
        return built_value, live_value
    if built_value.is_meta or live_value.is_meta or is_lazy(built_value) or is_lazy(live_value):
        return built_value, live_value
    is_cast = built_value.is_floating_point() and live_value.is_floating_point()
    dtype = live_value.dtype if is_cast else built_value.dtype
    return built_value.detach().to("cpu", dtype), live_value.detach().cpu()


def probe_moves(module: "nn.Module") -> tuple[dict[str, MoveBehavior], tuple[Skipped, ...]]:
    """Cast `module` to half and move it to meta; return path -> MoveBehavior.

    Mutates `module`; do not use it again.
    """
    skipped: list[Skipped] = []
    tensors_before = [
        _TensorBefore(f, get_dtype_name(f.value), _is_on_meta(f))
        for f in walk_module(module).tensors
    ]
    after_half = _tensors_after_cast_or_move("half", module, skipped)
    casts = {b.found_tensor.path: _follows_dtype(b, after_half) for b in tensors_before}
    after_move = _tensors_after_cast_or_move("to", module, skipped)
    result: dict[str, MoveBehavior] = {}
    for tensor_before in tensors_before:
        follows_dtype = casts[tensor_before.found_tensor.path]
        follows_to = _follows_to(tensor_before, after_move, cast=bool(follows_dtype))
        result[tensor_before.found_tensor.path] = MoveBehavior(
            follows_to, follows_to if follows_dtype is None else follows_dtype
        )
    return result, tuple(skipped)


def copy_to_meta(module: "nn.Module", module_walk: ModuleWalk) -> "nn.Module":
    """Return a deep copy of `module` whose parameters are on meta and need no memory.

    Raises:
        UserCodeError: copying raised.
    """
    import torch

    values = [found_tensor.value for found_tensor in module_walk.tensors]
    values += [value for _, member in module_walk.modules for value in vars(member).values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    with user_code():
        replacements = {id(tensor): _copy_tensor(tensor) for tensor in tensors}
    return copy_module(module, replacements)


def _copy_tensor(tensor: "Tensor") -> "Tensor":
    """Copy `tensor` where copy.deepcopy() would need memory or raise; parameters go to meta."""
    import torch

    if is_lazy(tensor):
        make_parameter: Callable[..., Tensor] = type(tensor)
        return make_parameter(tensor.requires_grad, tensor.device, tensor.dtype)
    if type(tensor) is torch.nn.Parameter:
        # empty_like() of a tensor on meta imports sympy, which takes half a second.
        empty = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return tensor.detach().clone()


def share_objects(builds: BuildPair) -> bool:
    """Whether the two builds have modules, parameters or buffers in common."""
    if builds.second is None:
        return False
    return not _collect_object_ids(builds.first.walk).isdisjoint(
        _collect_object_ids(builds.second.walk)
    )


def _collect_object_ids(module_walk: ModuleWalk) -> set[int]:
    return {id(m) for _, m in module_walk.modules} | {
        id(f.value) for f in module_walk.tensors if f.is_registered
    }


def _classify_constancy(first: FoundTensor, second: FoundTensor | None) -> Constancy:
    if second is None:
        return Constancy.RANDOM
    if _share_memory(first.value, second.value):
        # Created outside the constructor, so that two builds cannot show whether it is constant.
        return Constancy.UNKNOWN
    is_equal = have_same_bytes(first.value, second.value)
    if is_equal is None or (not is_equal and is_uninitialized(second.value)):
        return Constancy.UNKNOWN
    return Constancy.CONSTANT if is_equal else Constancy.RANDOM


def _share_memory(first: Any, second: Any) -> bool:
    from torch import Tensor

    if first is second:
        return True
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        storages = ModuleStorages()
        identity = storages.identify_storage(first)
        return identity is not None and identity == storages.identify_storage(second)
    return False


def _tensors_after_cast_or_move(
    step: str, module: "nn.Module", skipped: list[Skipped]
) -> Mapping[str, FoundTensor] | None:
    """Return the tensors of `module` by path after `step`, "half" or "to"; None if it raised."""
    try:
        with warnings.catch_warnings(), user_code():
            # The cast is part of the probe: torch's warnings about it do not concern the user.
            warnings.simplefilter("ignore")
            if step == "half":
                module.half()
            else:
                module.to("meta")
            return {found_tensor.path: found_tensor for found_tensor in walk_module(module).tensors}
    except UserCodeError as error:
        skipped.append(Skipped(f"what follows .{step}()", f"it raised {error}"))
        return None


def _follows_dtype(before: _TensorBefore, after: Mapping[str, FoundTensor] | None) -> bool | None:
    """Return whether the cast converted it, None if it was float16 before: use the move."""
    found_tensor = before.found_tensor
    if not is_floating_dtype(before.dtype):
        return True
    if before.dtype == "float16":
        return None
    if after is None:
        return found_tensor.is_registered
    # A tensor that disappeared is a cache that the module drops when it is cast.
    return (
        found_tensor.path not in after
        or get_dtype_name(after[found_tensor.path].value) == "float16"
    )


def _follows_to(
    before: _TensorBefore, after: Mapping[str, FoundTensor] | None, *, cast: bool
) -> bool:
    found_tensor = before.found_tensor
    if after is None:
        return found_tensor.is_registered
    if before.on_meta:
        # A move from meta to meta is not observable, but moves and casts use the same code.
        return found_tensor.is_registered or cast
    return found_tensor.path not in after or _is_on_meta(after[found_tensor.path])


def _is_on_meta(found_tensor: FoundTensor) -> bool:
    return bool(getattr(found_tensor.value, "is_meta", False))


def is_floating_dtype(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))
