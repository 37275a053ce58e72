"""torch.Tensor or numpy.ndarray -> TensorInfo."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from ckptool.model import Kind, StorageInfo, TensorComponent, TensorInfo
from ckptool.modules.meta_parameters import MetaParameters
from ckptool.modules.tensors.tensor_parts import (
    bypass_torch_function,
    get_shape,
    get_wrapper_name,
    is_lazy,
    is_plain,
    list_components,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
from ckptool.modules.tensors.elements import get_dtype_name


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
