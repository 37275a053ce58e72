"""Tensors that no state_dict holds -> UnsavedValue; whose they are, and where they are assigned."""

import inspect
from typing import Any, Final

from ckptool.modules.tensors.elements import get_dtype_name
from ckptool.modules.tensors.tensor_parts import get_shape, get_wrapper_name, has_all_elements
from ckptool.modules.walk import FoundTensor, get_written_name, is_set_from_outside
from ckptool.tracing.records import UnsavedValue

_MAX_ELEMENTS: Final = 4096
"""Maximum elements of a tensor whose distinct values are listed."""
_MAX_DISTINCT: Final = 3
_LIBRARIES: Final = frozenset(
    {
        *("torch", "torchmetrics", "accelerate", "deepspeed", "peft"),
        *("lightning", "lightning_fabric", "pytorch_lightning", "transformers", "diffusers"),
    }
)
"""Packages whose modules keep Python values that they set themselves, and no state of a model."""


def describe_elements(value: Any) -> str:
    """Return dtype and shape of a tensor or array, and its distinct values if they are few."""
    text = f"{get_dtype_name(value)} {list(get_shape(value))}"
    distinct = _list_distinct(value)
    if not distinct:
        return text
    if len(distinct) == 1:
        return f"{text}, all {distinct[0]}"
    return f"{text} of {', '.join(distinct[:-1])} and {distinct[-1]}"


def _list_distinct(value: Any) -> list[str]:
    """Return the distinct elements as text, [] if they are many, unavailable or very many."""
    count = 1
    for size in get_shape(value):
        count *= size
    if not 0 < count <= _MAX_ELEMENTS:
        return []
    if hasattr(value, "detach") and (get_wrapper_name(value) or not has_all_elements(value)):
        return []  # of a DTensor, the elements may take communication
    try:
        flat = value.detach() if hasattr(value, "detach") else value
        elements = set(flat.reshape(-1).tolist())
    except (RuntimeError, TypeError, NotImplementedError):
        return []
    if len(elements) > _MAX_DISTINCT:
        return []
    return [
        repr(int(item) if isinstance(item, float) and item.is_integer() else item)
        for item in sorted(elements)
    ]


def describe_unsaved_tensor(
    found_tensor: FoundTensor,
    text: str,
    old_text: str,
    *,
    is_changed: bool,
    is_built_known: bool = True,
) -> UnsavedValue:
    """Describe a tensor or array.

    Args:
        found_tensor: the tensor.
        text: dtype, shape and values of it now; see `describe_elements`.
        old_text: the same at the construction, "" if it is not known.
        is_changed: whether its elements changed since.
        is_built_known: whether the state at the construction is known.
    """
    value = found_tensor.value
    location, target = locate_assignment(type(found_tensor.owner), found_tensor.attribute)
    return UnsavedValue(
        path=found_tensor.path,
        kind=str(found_tensor.kind),
        owner=get_written_name(found_tensor.owner),
        text=text,
        old_text=old_text if old_text != text else "",
        assigned_at=location,
        assigned_to=target,
        device=str(getattr(value, "device", "cpu")),
        is_changed=is_changed,
        is_built_known=is_built_known,
    )


def is_of_user(found_tensor: FoundTensor) -> bool:
    """Whether a class of the user has the tensor, or the user's code set it on one of torch's."""
    owner, attribute = found_tensor.owner, found_tensor.attribute
    if not is_of_library(get_written_name(owner)):
        return True
    value = vars(owner).get(attribute)
    is_library_object = value is not found_tensor.value and is_of_library(type(value).__module__)
    return not is_library_object and is_set_from_outside(owner, attribute)


def is_of_library(owner: str) -> bool:
    """Whether a class, or a module of Python, is of a library whose modules train other ones."""
    return owner.partition(".")[0] in _LIBRARIES


def locate_assignment(cls: type, attribute: str) -> tuple[str, str]:
    """Return "file:line" and target of the first `self.attribute = ...` in the source of `cls`.

    ("", "") if there is none, or no source.
    """
    from ckptool.modules.assignment_locations import format_location

    for base in cls.__mro__:
        if is_of_library(base.__module__) or base.__module__ == "builtins":
            continue
        try:
            lines, first = inspect.getsourcelines(base)
            file = inspect.getsourcefile(base) or ""
        except (OSError, TypeError):
            continue
        for offset, line in enumerate(lines):
            target, _, assigned_text = line.strip().partition("=")
            name = target.partition(":")[0].strip()
            if name == f"self.{attribute}" and assigned_text[:1] != "=":
                return format_location(file, first + offset), name
    return "", ""
