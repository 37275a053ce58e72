"""torch.Tensor or numpy.ndarray -> fingerprint, Preview and comparison of its elements."""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING, Any, Final

from ckptool.model import DTYPE_BITS, Preview
from ckptool.modules.tensors.tensor_parts import (
    get_shape,
    get_wrapper_name,
    has_all_elements,
    is_lazy,
    list_components,
)
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.values import preview_grid
from ckptool.values.fingerprint import create_hasher, fingerprint_chunks

if TYPE_CHECKING:
    from torch import Tensor


MAX_FINGERPRINT_BYTES: Final = 64 << 20
"""Larger tensors get no fingerprint: hashing them would dominate the run time."""


def compute_fingerprint(value: Any) -> str:
    """Return the content fingerprint of `value`.

    Return "" if it exceeds MAX_FINGERPRINT_BYTES, is on meta, or is not one strided block.
    """
    if get_dtype_name(value) not in DTYPE_BITS or count_bytes(value) > MAX_FINGERPRINT_BYTES:
        return ""
    elements = _flatten_to_bytes(value)
    if elements is None or len(elements) != 1:
        return ""
    chunk = memoryview((ctypes.c_ubyte * elements[0].numel()).from_address(elements[0].data_ptr()))
    return fingerprint_chunks(get_dtype_name(value), get_shape(value), [chunk])


def has_integer_values(value: Any) -> bool:
    """Whether all elements of a tensor or array with a fingerprint are integers or infinities."""
    import torch

    if not isinstance(value, torch.Tensor):
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        if value.dtype.kind in "biu":
            return True
    elements = torch.as_tensor(value).detach().to_dense()
    if elements.is_complex():
        return False
    if not elements.is_floating_point():
        return True
    if elements.dtype in _list_packed_dtypes():
        return False
    exact_elements = elements.double()
    return torch.equal(exact_elements, exact_elements.round())


def _list_packed_dtypes() -> frozenset[Any]:
    """Return the floating point dtypes that pack several values, which torch cannot cast."""
    import torch

    return frozenset({getattr(torch, "float4_e2m1fn_x2", None)})


def preview_values(value: Any) -> Preview | None:
    """Return a Preview of the elements, subsampled if many; None if they are unavailable."""
    import torch

    if isinstance(value, torch.Tensor):
        is_plain = value.layout is torch.strided and not (value.is_quantized or value.is_nested)
        if not is_plain or get_wrapper_name(value) or not has_all_elements(value):
            return None
        value = value.detach()
    steps = preview_grid.preview_strides(value.shape)
    if steps is None:
        return None
    elements = _flatten_to_bytes(
        value[tuple(slice(None, None, step) if step else 0 for step in steps)]
    )
    if not elements:
        return None
    return preview_grid.build_preview(
        tuple(map(int, value.shape)), get_dtype_name(value), bytes(elements[0].tolist())
    )


def compute_half_precision_fingerprints(value: Any) -> dict[str, str]:
    """Return dtype -> fingerprint of a float32 tensor cast to bfloat16 and float16, if it rounds.

    Return {} for other values.
    """
    import torch

    if not isinstance(value, torch.Tensor) or is_lazy(value) or value.dtype is not torch.float32:
        return {}
    if (
        get_wrapper_name(value)
        or count_bytes(value) > MAX_FINGERPRINT_BYTES
        or value.layout is not torch.strided
        or value.is_nested
        or value.is_meta
    ):
        return {}
    converted_tensors = [value.detach().to(dtype) for dtype in (torch.bfloat16, torch.float16)]
    return {
        get_dtype_name(converted_tensor): compute_fingerprint(converted_tensor)
        for converted_tensor in converted_tensors
        if not torch.equal(converted_tensor.float(), value)
    }


def content_digest(value: Any) -> str:
    """Return a digest of all elements of any size and layout, "" if they are unavailable.

    Equal for equal bits, shape and dtype; needs less memory than a copy.
    """
    components = None if is_lazy(value) else _flatten_to_bytes(value)
    if components is None:
        return ""
    content_hash = create_hasher()
    content_hash.update(f"{get_dtype_name(value)}{list(get_shape(value))}".encode())
    for component in components:
        count = component.numel()
        content_hash.update(f"|{count}|".encode())
        if count:
            buffer = (ctypes.c_ubyte * count).from_address(component.data_ptr())
            content_hash.update(memoryview(buffer).cast("B"))
    return content_hash.hexdigest()


def have_same_bytes(first: Any, second: Any) -> bool | None:
    """Return whether two values are bitwise equal, NaN included; None if they are unavailable."""
    import torch

    if type(first) is not type(second):
        return False
    if is_lazy(first) or is_lazy(second):
        return None
    if get_dtype_name(first) != get_dtype_name(second) or get_shape(first) != get_shape(second):
        return False
    first_elements, second_elements = _flatten_to_bytes(first), _flatten_to_bytes(second)
    if first_elements is None or second_elements is None:
        return None
    return (
        all(map(torch.equal, first_elements, second_elements))
        if len(first_elements) == len(second_elements)
        else False
    )


def count_bytes(value: Any) -> int:
    """Return the size of `value` in bytes as a dense tensor; 0 if it is lazy."""
    return 0 if is_lazy(value) else prod(get_shape(value)) * int(value.dtype.itemsize)


def get_dtype_name(value: Any) -> str:
    """Return the dtype of a tensor without the prefix "torch.", or of an array by numpy's name."""
    from torch import Tensor

    return (
        str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else value.dtype.name
    )


def _flatten_to_bytes(value: Any) -> "list[Tensor] | None":
    """Return the elements in C order as flat uint8 tensors, one per component.

    Return None if they are unavailable: on meta, lazy, of an unknown layout or subclass, or of a
    subclass whose code raises.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        return _flatten_array_to_bytes(value)
    if not get_wrapper_name(value):
        return _flatten_tensor_to_bytes(value)
    with suppress(UserCodeError), user_code():
        return _flatten_tensor_to_bytes(value)
    return None


def _flatten_tensor_to_bytes(tensor: "Tensor") -> "list[Tensor] | None":
    import torch

    if is_lazy(tensor):
        return None
    tensor = tensor.detach()
    components = list_components(tensor)
    if components:
        pieces = [_flatten_to_bytes(component) for _, component in components]
        return [part for piece in pieces if piece for part in piece] if all(pieces) else None
    if tensor.layout is not torch.strided or get_wrapper_name(tensor):
        return None
    if not has_all_elements(tensor):
        return None
    tensor = tensor.int_repr() if tensor.is_quantized else tensor.resolve_conj().resolve_neg()
    return [tensor.cpu().contiguous().flatten().view(torch.uint8)]


def _flatten_array_to_bytes(array: Any) -> "list[Tensor] | None":
    import torch

    if array.dtype.hasobject:
        return None
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    # frombuffer() rejects an empty buffer.
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
    return [flat.view(torch.uint8)]


def iter_nested_tensors(value: object, max_depth: int = 8) -> "Iterator[Tensor]":
    """Yield the tensors in tuples, lists and mappings nested up to `max_depth` deep, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif max_depth and isinstance(value, tuple | list | Mapping):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from iter_nested_tensors(child, max_depth - 1)
