"""BuildPair -> Constancy of each tensor; nn.Module -> MoveBehavior of each tensor."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptool.model import Constancy, Skipped
from ckptool.modules.build import Builds
from ckptool.modules.tensors import Storages, dtype_name, is_lazy, same_bytes
from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.modules.walk import Found, Walk, walk

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Following:
    """Whether `.to()` moves one tensor, and whether `.half()` converts it."""

    to: bool
    dtype: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Before:
    """A tensor's dtype and device before the cast, which changes parameters in place."""

    found: Found
    dtype: str
    on_meta: bool


def constancies(builds: Builds) -> dict[str, Constancy]:
    """Compare the values of two builds: path -> Constancy; {} without a second build."""
    if builds.second is None:
        return {}
    again = {found.path: found for found in builds.second.held.found}
    return {f.path: _constancy(f, again.get(f.path)) for f in builds.first.held.found}


def following(module: "nn.Module") -> tuple[dict[str, Following], tuple[Skipped, ...]]:
    """Cast `module` to half and move it to meta; return path -> MoveBehavior.

    Mutates `module`; do not use it again.
    """
    skipped: list[Skipped] = []
    before = [_Before(f, dtype_name(f.value), _on_meta(f)) for f in walk(module).found]
    half = _after("half", module, skipped)
    casts = {b.found.path: _follows_dtype(b, half) for b in before}
    moved = _after("to", module, skipped)
    result: dict[str, Following] = {}
    for one in before:
        cast = casts[one.found.path]
        moves = _follows_to(one, moved, cast=bool(cast))
        result[one.found.path] = Following(moves, moves if cast is None else cast)
    return result, tuple(skipped)


def duplicate(module: "nn.Module", held: Walk) -> "nn.Module":
    """Return a deep copy of `module` whose parameters are on meta and need no memory.

    Raises:
        UserCodeError: copying raised.
    """
    import torch

    values = [found.value for found in held.found]
    values += [value for _, member in held.members for value in vars(member).values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    with user_code():
        return copy.deepcopy(module, {id(tensor): _blank(tensor) for tensor in tensors})


def _blank(tensor: "Tensor") -> "Tensor":
    """Copy `tensor` where copy.deepcopy() would need memory or raise; parameters go to meta."""
    import torch

    if is_lazy(tensor):
        like: Callable[..., Tensor] = type(tensor)
        return like(tensor.requires_grad, tensor.device, tensor.dtype)
    if type(tensor) is torch.nn.Parameter:
        empty = torch.empty_like(tensor, device="meta")
        return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return tensor.detach().clone()


def shared(builds: Builds) -> bool:
    """Whether the two builds have modules, parameters or buffers in common."""
    if builds.second is None:
        return False
    return not _objects(builds.first.held).isdisjoint(_objects(builds.second.held))


def _objects(held: Walk) -> set[int]:
    return {id(m) for _, m in held.members} | {id(f.value) for f in held.found if f.registered}


def _constancy(one: Found, other: Found | None) -> Constancy:
    if other is None:
        return Constancy.RANDOM
    if _same_memory(one.value, other.value):
        # Created outside the constructor, so that two builds cannot show whether it is constant.
        return Constancy.UNKNOWN
    same = same_bytes(one.value, other.value)
    if same is None:
        return Constancy.UNKNOWN
    return Constancy.CONSTANT if same else Constancy.RANDOM


def _same_memory(one: Any, other: Any) -> bool:
    from torch import Tensor

    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        storages = Storages()
        identity = storages.identity(one)
        return identity is not None and identity == storages.identity(other)
    return False


def _after(step: str, module: "nn.Module", skipped: list[Skipped]) -> Mapping[str, Found] | None:
    """Return the tensors of `module` by path after `step`, "half" or "to"; None if it raised."""
    try:
        with warnings.catch_warnings(), user_code():
            # The cast is part of the probe: torch's warnings about it do not concern the user.
            warnings.simplefilter("ignore")
            if step == "half":
                module.half()
            else:
                module.to("meta")
            return {found.path: found for found in walk(module).found}
    except UserCodeError as error:
        skipped.append(Skipped(f"what follows .{step}()", f"it raised {error}"))
        return None


def _follows_dtype(before: _Before, after: Mapping[str, Found] | None) -> bool | None:
    """Return whether the cast converted it, None if it was float16 before: use the move."""
    found = before.found
    if not is_floating(before.dtype):
        return True
    if before.dtype == "float16":
        return None
    if after is None:
        return found.registered
    # A tensor that disappeared is a cache that the module drops when it is cast.
    return found.path not in after or dtype_name(after[found.path].value) == "float16"


def _follows_to(before: _Before, after: Mapping[str, Found] | None, *, cast: bool) -> bool:
    found = before.found
    if after is None:
        return found.registered
    if before.on_meta:
        # A move from meta to meta is not observable, but moves and casts use the same code.
        return found.registered or cast
    return found.path not in after or _on_meta(after[found.path])


def _on_meta(found: Found) -> bool:
    return bool(getattr(found.value, "is_meta", False))


def is_floating(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))
