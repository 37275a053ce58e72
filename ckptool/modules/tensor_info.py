"""torch.Tensor or numpy.ndarray -> TensorInfo, fingerprint and Preview of its elements."""

import ctypes
import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, Final

from ckptool.model import (
    DTYPE_BITS,
    Kind,
    Preview,
    StorageInfo,
    TensorComponent,
    TensorInfo,
)
from ckptool.modules.meta_parameters import MetaParameters
from ckptool.modules.tensor_parts import (
    bypass_torch_function,
    get_shape,
    get_wrapper_name,
    has_all_elements,
    is_lazy,
    is_plain,
    list_components,
)
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.values import preview_grid
from ckptool.values.fingerprint import create_hasher, fingerprint_chunks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_FINGERPRINT_BYTES: Final = 64 << 20
"""Larger tensors get no fingerprint: hashing them would dominate the run time."""
_BLANK_FILLS: Final[Mapping[float, str]] = {0: "zeros", 1: "ones", -1: "-1"}
"""Number that all elements are -> words for it."""


@dataclass(slots=True)
class ModuleStorages:
    """Storages of one module, numbered in order of first use.

    Unlike addresses, the numbers are the same in every run.
    """

    meta_parameters: MetaParameters = field(default_factory=MetaParameters)
    _numbers: dict[Hashable, str] = field(default_factory=dict)

    def describe_storage(self, tensor: "Tensor") -> StorageInfo | None:
        """Describe the storage of `tensor`; None if it is sparse, lazy or a wrapper subclass."""
        storage = _get_storage(tensor)
        if storage is None:
            return None
        identity = self.meta_parameters.resolve_storage(storage._cdata)  # noqa: SLF001
        device = self.meta_parameters.get_original_device(identity) or _get_device_name(tensor)
        return StorageInfo(self._assign_number(identity), storage.nbytes(), device)

    def describe_array_memory(self, array: Any) -> StorageInfo:
        """Describe the memory of a numpy array, or of the array that it is a view of."""
        while isinstance(array.base, type(array)):
            array = array.base
        return StorageInfo(self._assign_number(("array", array.ctypes.data)), int(array.nbytes))

    def identify_storage(self, tensor: "Tensor") -> int | None:
        """Return an id that tensors with the same storage share, None without a storage.

        A parameter and its meta parameter have the same id.
        """
        storage = _get_storage(tensor)
        if storage is None:
            return None
        return self.meta_parameters.resolve_storage(storage._cdata)  # noqa: SLF001

    @bypass_torch_function
    def identify_view(self, tensor: "Tensor") -> Hashable:
        """Return an id that tensors share if they are the same view of the same storage."""
        identity = self.identify_storage(tensor)
        if identity is None or tensor.is_nested:
            return id(tensor)
        return (
            identity,
            tensor.dtype,
            int(tensor.storage_offset()),
            tuple(tensor.shape),
            tuple(tensor.stride()),
        )

    def _assign_number(self, identity: Hashable) -> str:
        number = self._numbers.get(identity)
        if number is None:
            number = self._numbers[identity] = str(len(self._numbers))
        return number


@bypass_torch_function
def _get_storage(tensor: "Tensor") -> Any:
    """Return the storage; None for a sparse tensor, a wrapper, and a parameter without a shape."""
    if is_lazy(tensor):
        return None
    try:
        return tensor.untyped_storage()
    except (RuntimeError, ValueError, NotImplementedError):
        return None


def _get_device_name(tensor: "Tensor") -> str:
    """Return the device of a tensor; "cuda:0" if its constructor wanted it there."""
    placement = _import_placement()
    return _name_device(placement.DEVICE if placement.is_placed_on_cuda(tensor) else tensor.device)


@cache
def _name_device(device: "torch.device") -> str:
    return str(device)


@cache
def _import_placement() -> Any:
    """Return `cuda_on_cpu`, which imports torch."""
    from ckptool.modules.world import cuda_on_cpu

    return cuda_on_cpu


def describe_tensor(key: str, value: Any, kind: Kind, storages: ModuleStorages) -> TensorInfo:
    """Describe a torch.Tensor or a numpy.ndarray with the key `key`."""
    if is_plain(value):
        return TensorInfo(
            key=key,
            shape=tuple(value.shape),
            dtype=_name_dtype(value.dtype),
            stride=value.stride(),
            storage_offset=value.storage_offset(),
            storage=storages.describe_storage(value),
            kind=kind,
            requires_grad=value.requires_grad,
        )
    from torch import Tensor

    if isinstance(value, Tensor):
        return _describe_torch_tensor(key, value, kind, storages)
    itemsize = value.dtype.itemsize or 1
    return TensorInfo(
        key=key,
        shape=tuple(value.shape),
        dtype=value.dtype.name,
        stride=tuple(step // itemsize for step in value.strides),
        storage_offset=0,
        storage=storages.describe_array_memory(value),
        kind=kind,
    )


@bypass_torch_function
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


@bypass_torch_function
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


@bypass_torch_function
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


@bypass_torch_function
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


@bypass_torch_function
def count_bytes(value: Any) -> int:
    """Return the size of `value` in bytes as a dense tensor; 0 if it is lazy."""
    return 0 if is_lazy(value) else prod(get_shape(value)) * int(value.dtype.itemsize)


def get_dtype_name(value: Any) -> str:
    """Return the dtype of a tensor without the prefix "torch.", or of an array by numpy's name."""
    from torch import Tensor

    return (
        str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else value.dtype.name
    )


@bypass_torch_function
def _describe_torch_tensor(
    key: str, tensor: "Tensor", kind: Kind, storages: ModuleStorages
) -> TensorInfo:
    if is_lazy(tensor):
        return TensorInfo(
            key=key,
            shape=(0,),
            dtype=get_dtype_name(tensor),
            stride=(1,),
            storage_offset=0,
            storage=None,
            layout="lazy",
            kind=kind,
            requires_grad=tensor.requires_grad,
        )
    layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    components = list_components(tensor)
    is_strided = layout == "strided"
    # A conjugated view has memory in common with another tensor, and other values: no tie.
    has_storage = not components and not tensor.is_conj() and not tensor.is_neg()
    return TensorInfo(
        key=key,
        shape=get_shape(tensor),
        dtype=_name_dtype(tensor.dtype),
        stride=tuple(map(int, tensor.stride())) if is_strided else (),
        storage_offset=int(tensor.storage_offset()) if is_strided else 0,
        storage=storages.describe_storage(tensor) if has_storage else None,
        layout="quantized" if tensor.is_quantized else layout,
        wrapper=get_wrapper_name(tensor),
        kind=kind,
        requires_grad=tensor.requires_grad,
        parts=tuple(
            TensorComponent(
                name, (), _describe_torch_tensor(f"{key}.{name}", component, kind, storages)
            )
            for name, component in components
        ),
    )


@cache
def _name_dtype(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")


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


@bypass_torch_function
def find_blank_fill(value: Any) -> str:
    """Return the words of `ModuleTensor.blank_fill` for a tensor; "" if not blank."""
    tensor = _read_elements(value)
    if tensor is None or not tensor.numel():
        return ""
    try:
        return _describe_fill(tensor)
    except (RuntimeError, TypeError):
        # A dtype without arithmetic, such as bits8.
        return ""


@bypass_torch_function
def is_uninitialized(value: Any) -> bool:
    """Whether the elements are still those of `UninitializedMemoryFill`."""
    from ckptool.modules.uninitialized import is_filled

    tensor = _read_elements(value)
    if tensor is None or not tensor.numel():
        return False
    try:
        return is_filled(tensor)
    except (RuntimeError, TypeError):
        return False


def _describe_fill(tensor: "Tensor") -> str:
    import torch

    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    first_element = tensor[(0,) * tensor.ndim]
    number: float = first_element.item()
    if not math.isfinite(number):
        return "" if torch.isfinite(tensor).any() else "infinities or NaN"
    # The last element tells most tensors apart before all elements are read.
    if tensor[(-1,) * tensor.ndim].item() != number or not (tensor == first_element).all():
        return ""
    if tensor.dtype is torch.bool:
        return str(number)
    if number in _BLANK_FILLS:
        return _BLANK_FILLS[number]
    return "the largest numbers of its dtype" if _is_extreme(tensor.dtype, number) else ""


def _is_extreme(dtype: "torch.dtype", number: float) -> bool:
    """Whether it is the largest or smallest number of a dtype of at least 16 bits."""
    import torch

    if dtype.itemsize == 1:
        return False
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return number in {limits.max, limits.min}


def _read_elements(value: Any) -> "Tensor | None":
    """Return the elements of a tensor; None if unavailable, or if their places say something."""
    import torch

    if not isinstance(value, torch.Tensor) or is_lazy(value) or value.is_meta:
        return None
    if value.is_nested or get_wrapper_name(value):
        return None
    tensor = value.detach()
    if tensor.layout is torch.strided:
        return tensor.int_repr() if tensor.is_quantized else tensor
    stored_values = dict(list_components(tensor)).get("values")
    return None if stored_values is None or stored_values.any() else torch.zeros(1)
