"""Optimizer, scheduler, sampler, ... -> its state at one point in time: values by path."""

import copy
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from msgspec import Struct
from torch import Tensor, nn

from ckptool.modules.live.snapshot import shorten_repr
from ckptool.modules.object_children import iter_children
from ckptool.modules.tensors.elements import content_digest, get_dtype_name
from ckptool.modules.tensors.tensor_parts import get_shape

_MAX_DEPTH: Final = 6
_PATCHED_NAMES: Final = frozenset({"_opt_called"})
"""Attributes that a scheduler of torch sets on an optimizer."""


class ObjectValue(Struct, frozen=True):
    """A value in an attribute of an object, or in a container there."""

    text: str
    """Of a plain value its repr, of a tensor its dtype and shape."""
    digest: str
    """Equal for equal values; "" if the elements are unavailable."""
    is_plain_number: bool
    """Whether it is an int, a float or text, and not a tensor, an array, a generator or a bool."""


def take_object_snapshot(owner: object) -> dict[str, ObjectValue]:
    """Return the values in the attributes of an object, by path ("state[#0]['exp_avg']").

    Modules, parameters, and other objects that have a state_dict of their own are left out.
    """
    return {
        path.removeprefix("."): _describe_value(value)
        for path, value in _iter_values(owner, "", 0, {id(owner)}, is_root=True)
    }


def copy_object(owner: Any) -> Any:
    """Return a deep copy that shares the parameters with the object.

    Raises:
        Exception: whatever copying one of its attributes raises.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in _iter_parameters(owner)}
    memo |= {id(value): _copy_generator(value) for value in _iter_generators(owner)}
    return copy.deepcopy(owner, memo)


def _iter_values(
    value: object, path: str, depth: int, visited_ids: set[int], *, is_root: bool = False
) -> Iterator[tuple[str, object]]:
    if isinstance(value, bool | int | float | str | None) or _is_leaf(value):
        if not isinstance(value, nn.Parameter):
            yield path, value
        return
    if not is_root and (
        isinstance(value, nn.Module) or callable(value) or hasattr(value, "load_state_dict")
    ):
        return
    if depth == _MAX_DEPTH or (id(value) in visited_ids and not is_root):
        return
    visited_ids.add(id(value))
    children = _iter_attributes(value) if is_root else iter_children(value)
    for step, child in children:
        yield from _iter_values(child, f"{path}{step}", depth + 1, visited_ids)


def _iter_attributes(owner: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes of an object, without what classes of torch keep for themselves."""
    is_torchs = type(owner).__module__.partition(".")[0] == "torch"
    attributes: Mapping[str, object] = getattr(owner, "__dict__", {})
    slots = [
        name
        for cls in type(owner).__mro__
        for name in vars(cls).get("__slots__", ())
        if isinstance(name, str) and not name.startswith("__")
    ]
    for name in dict.fromkeys((*attributes, *slots)):
        is_internal = name in _PATCHED_NAMES or (is_torchs and name.startswith("_"))
        if hasattr(owner, name) and not is_internal:
            yield f".{name}", getattr(owner, name)


def _is_leaf(value: object) -> bool:
    return isinstance(value, Tensor | torch.Generator | random.Random) or _is_of_numpy(value)


def _is_of_numpy(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(
        value, numpy.ndarray | numpy.generic | numpy.random.Generator | numpy.random.RandomState
    )


def _describe_value(value: Any) -> ObjectValue:
    if isinstance(value, Tensor) or type(value).__name__ == "ndarray":
        shape = "x".join(map(str, get_shape(value))) or "scalar"
        number = f" {value.item()!r}" if shape == "scalar" and not _has_no_item(value) else ""
        text = f"{get_dtype_name(value)} {shape}{number}"
        return ObjectValue(text, content_digest(value), is_plain_number=False)
    if isinstance(value, torch.Generator):
        return ObjectValue("its state", content_digest(value.get_state()), is_plain_number=False)
    if isinstance(value, random.Random):
        return ObjectValue("its state", repr(value.getstate()), is_plain_number=False)
    if _is_of_numpy(value) and hasattr(value, "bit_generator"):
        return ObjectValue("its state", repr(value.bit_generator.state), is_plain_number=False)
    if _is_of_numpy(value) and hasattr(value, "get_state"):
        return ObjectValue("its state", repr(value.get_state()), is_plain_number=False)
    text = shorten_repr(value)
    return ObjectValue(text, f"{type(value).__name__} {text}", not isinstance(value, bool))


def _has_no_item(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_meta or value.layout is not torch.strided)


def _iter_parameters(owner: object) -> Iterator[nn.Parameter]:
    """Yield the parameters that an optimizer has, also one that another object refers to."""
    holders = [owner, *vars(owner).values()] if hasattr(owner, "__dict__") else [owner]
    for holder in holders:
        groups = getattr(holder, "param_groups", None)
        for group in groups if isinstance(groups, list) else ():
            for parameter in group.get("params", ()) if isinstance(group, dict) else ():
                if isinstance(parameter, Tensor):
                    yield parameter  # type: ignore[misc]


def _iter_generators(owner: object) -> Iterator[torch.Generator]:
    values = vars(owner).values() if hasattr(owner, "__dict__") else ()
    yield from (value for value in values if isinstance(value, torch.Generator))


def _copy_generator(generator: torch.Generator) -> torch.Generator:
    copied = torch.Generator(device=generator.device)
    copied.set_state(generator.get_state())
    return copied
