"""torch.Tensor or numpy.ndarray -> TensorInfo, fingerprint and Preview of its elements."""

import ctypes
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Final

from ckptool import grids
from ckptool.content import fingerprint, hasher
from ckptool.grids import Preview
from ckptool.model import BITS, Kind, Part, StorageInfo, TensorInfo
from ckptool.modules.twins import Twins
from ckptool.modules.walk import qualified

if TYPE_CHECKING:
    from torch import Tensor

DIGESTED_BYTES: Final = 64 << 20
"""Larger tensors get no fingerprint: hashing them would dominate the run time."""
_PARTS: Final = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


@dataclass(slots=True)
class Storages:
    """Storages of one module, numbered in order of first use.

    Unlike addresses, the numbers are the same in every run.
    """

    twins: Twins = field(default_factory=Twins)
    _numbers: dict[Hashable, str] = field(default_factory=dict)

    def info(self, tensor: "Tensor") -> StorageInfo | None:
        """Describe the storage of `tensor`; None if it is sparse, lazy or a wrapper subclass."""
        identity = self.identity(tensor)
        if identity is None:
            return None
        nbytes = int(tensor.untyped_storage().nbytes())
        device = self.twins.device(identity) or str(tensor.device)
        return StorageInfo(self._number(identity), nbytes, device)

    def array(self, array: Any) -> StorageInfo:
        """Describe the memory of a numpy array, or of the array that it is a view of."""
        while isinstance(array.base, type(array)):
            array = array.base
        return StorageInfo(self._number(("array", array.ctypes.data)), int(array.nbytes))

    def identity(self, tensor: "Tensor") -> int | None:
        """Return an id that tensors with the same storage share, None without a storage.

        A parameter and its meta parameter have the same id.
        """
        try:
            address = int(tensor.untyped_storage()._cdata)  # noqa: SLF001
        except (RuntimeError, ValueError, NotImplementedError):
            # Sparse tensors, wrapper subclasses, and parameters without a shape.
            return None
        return self.twins.storage(address)

    def view(self, tensor: "Tensor") -> Hashable:
        """Return an id that tensors share if they are the same view of the same storage."""
        identity = self.identity(tensor)
        if identity is None:
            return id(tensor)
        return (
            identity,
            tensor.dtype,
            int(tensor.storage_offset()),
            tuple(tensor.shape),
            tuple(tensor.stride()),
        )

    def _number(self, identity: Hashable) -> str:
        return self._numbers.setdefault(identity, str(len(self._numbers)))


def describe_value(key: str, value: Any, kind: Kind, storages: Storages) -> TensorInfo:
    """Describe a torch.Tensor or a numpy.ndarray with the key `key`."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return _tensor(key, value, kind, storages)
    itemsize = value.dtype.itemsize or 1
    return TensorInfo(
        key=key,
        shape=tuple(value.shape),
        dtype=value.dtype.name,
        stride=tuple(step // itemsize for step in value.strides),
        storage_offset=0,
        storage=storages.array(value),
        kind=kind,
    )


def digest(value: Any) -> str:
    """Return the content fingerprint of `value`.

    Return "" if it exceeds MAX_FINGERPRINT_BYTES, is on meta, or is not one strided block.
    """
    if dtype_name(value) not in BITS or size(value) > DIGESTED_BYTES:
        return ""
    found = _elements(value)
    if found is None or len(found) != 1:
        return ""
    chunk = memoryview((ctypes.c_ubyte * found[0].numel()).from_address(found[0].data_ptr()))
    return fingerprint(dtype_name(value), tuple(map(int, value.shape)), [chunk])


def preview(value: Any) -> Preview | None:
    """Return a Preview of the elements, subsampled if many; None if they are unavailable."""
    import torch

    if isinstance(value, torch.Tensor):
        plain = value.layout is torch.strided and not value.is_quantized
        if not plain or value.is_meta or _wrapper(value) or is_lazy(value):
            return None
        value = value.detach()
    steps = grids.window(value.shape)
    if steps is None:
        return None
    shown = _elements(value[tuple(slice(None, None, step) if step else 0 for step in steps)])
    if not shown:
        return None
    return grids.preview(tuple(map(int, value.shape)), dtype_name(value), bytes(shown[0].tolist()))


def halved(value: Any) -> dict[str, str]:
    """Return dtype -> fingerprint of a float32 tensor cast to bfloat16 and float16, if it rounds.

    Return {} for other values.
    """
    import torch

    if not isinstance(value, torch.Tensor) or is_lazy(value) or value.dtype is not torch.float32:
        return {}
    if size(value) > DIGESTED_BYTES or value.layout is not torch.strided or value.is_meta:
        return {}
    found = [value.detach().to(dtype) for dtype in (torch.bfloat16, torch.float16)]
    return {dtype_name(one): digest(one) for one in found if not torch.equal(one.float(), value)}


def content_mark(value: Any) -> str:
    """Return a digest of all elements of any size and layout, "" if they are unavailable.

    Equal for equal bits, shape and dtype; needs less memory than a copy.
    """
    found = None if is_lazy(value) else _elements(value)
    if found is None:
        return ""
    whole = hasher()
    whole.update(f"{dtype_name(value)}{list(map(int, value.shape))}".encode())
    for part in found:
        count = part.numel()
        whole.update(f"|{count}|".encode())
        if count:
            bytes_ = (ctypes.c_ubyte * count).from_address(part.data_ptr())
            whole.update(memoryview(bytes_).cast("B"))
    return whole.hexdigest()


def same_bytes(one: Any, other: Any) -> bool | None:
    """Return whether two values are bitwise equal, NaN included; None if they are unavailable."""
    import torch

    if type(one) is not type(other):
        return False
    if is_lazy(one) or is_lazy(other):
        return None
    if dtype_name(one) != dtype_name(other) or tuple(one.shape) != tuple(other.shape):
        return False
    left, right = _elements(one), _elements(other)
    if left is None or right is None:
        return None
    return all(map(torch.equal, left, right)) if len(left) == len(right) else False


def size(value: Any) -> int:
    """Return the size of `value` in bytes as a dense tensor; 0 if it is lazy."""
    return 0 if is_lazy(value) else int(prod(value.shape)) * int(value.dtype.itemsize)


def dtype_name(value: Any) -> str:
    """Return the dtype of a tensor without the prefix "torch.", or of an array by numpy's name."""
    from torch import Tensor

    return (
        str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else value.dtype.name
    )


def is_lazy(value: object) -> bool:
    """Whether `value` is a parameter or buffer that gets its shape from the first input."""
    from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

    return isinstance(value, UninitializedParameter | UninitializedBuffer)


def _tensor(key: str, tensor: "Tensor", kind: Kind, storages: Storages) -> TensorInfo:
    if is_lazy(tensor):
        return TensorInfo(
            key=key,
            shape=(0,),
            dtype=dtype_name(tensor),
            stride=(1,),
            storage_offset=0,
            storage=None,
            layout="lazy",
            kind=kind,
            requires_grad=tensor.requires_grad,
        )
    layout = str(tensor.layout).removeprefix("torch.")
    storage = None if _inner(tensor) else storages.info(tensor)
    strided = layout == "strided"
    return TensorInfo(
        key=key,
        shape=tuple(map(int, tensor.shape)),
        dtype=dtype_name(tensor),
        stride=tuple(map(int, tensor.stride())) if strided else (),
        storage_offset=int(tensor.storage_offset()) if strided else 0,
        storage=storage,
        layout="quantized" if tensor.is_quantized else layout,
        wrapper=_wrapper(tensor),
        kind=kind,
        requires_grad=tensor.requires_grad,
        parts=tuple(
            Part(name, (), _tensor(f"{key}.{name}", part, kind, storages))
            for name, part in _parts(tensor)
        ),
    )


def _parts(tensor: "Tensor") -> list[tuple[str, "Tensor"]]:
    """Return the (name, component) pairs of a sparse or wrapped tensor; [] if it is strided."""
    inner = _inner(tensor)
    if inner:
        return [(name, getattr(tensor, name)) for name in inner]
    layout = str(tensor.layout).removeprefix("torch.")
    # The elements of an uncoalesced tensor are available only by this name.
    mark = "_" if layout == "sparse_coo" else ""
    return [(name, getattr(tensor.detach(), mark + name)()) for name in _PARTS.get(layout, ())]


def _inner(tensor: "Tensor") -> list[str]:
    """Return the attributes with the data of a wrapper subclass such as DTensor."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return list(flatten()[0]) if flatten else []


def _wrapper(tensor: "Tensor") -> str:
    from torch import Tensor, nn

    return "" if type(tensor) in {Tensor, nn.Parameter} else qualified(type(tensor))


def _elements(value: Any) -> "list[Tensor] | None":
    """Return the elements in C order as flat uint8 tensors, one per component.

    Return None if they are unavailable: on meta, lazy, or of an unknown layout or subclass.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        return _array_elements(value)
    if is_lazy(value):
        return None
    tensor = value.detach()
    parts = _parts(tensor)
    if parts:
        pieces = [_elements(part) for _, part in parts]
        return [p[0] for p in pieces if p] if all(pieces) else None
    if tensor.layout is not torch.strided or tensor.is_meta or _wrapper(value):
        return None
    tensor = tensor.int_repr() if tensor.is_quantized else tensor.resolve_conj().resolve_neg()
    return [tensor.cpu().contiguous().flatten().view(torch.uint8)]


def _array_elements(array: Any) -> "list[Tensor] | None":
    import torch

    if array.dtype.hasobject:
        return None
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    # frombuffer() rejects an empty buffer.
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
    return [flat.view(torch.uint8)]
