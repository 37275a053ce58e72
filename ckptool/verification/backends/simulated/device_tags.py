"""Tensor -> DeviceTag: the simulated device of its storage, and its origin."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch._C import _functorch
from torch.multiprocessing.reductions import StorageWeakRef

from ckptool.modules.tensors.tensor_parts import find_memory_address

CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a tensor, or of the tensor it was computed from."""

    path: str
    """Its path in the module, "" if the module does not hold it."""
    text: str
    """"a plain attribute", "created at net.py:8"."""


_MIN_SWEEP_SIZE: Final = 64
"""Minimum number of tracked storages before expired ones are dropped."""
OUTSIDE_FORWARD: Final = Origin("", "made outside the forward pass")


@dataclass(frozen=True, slots=True)
class DeviceTag:
    device: torch.device
    origin: Origin


class DeviceTags:
    """Simulated device and origin of every storage; an untagged one is on its real device."""

    def __init__(self) -> None:
        self._tags: dict[int, DeviceTag] = {}
        self._storage_refs: dict[int, _StorageRef] = {}
        """References that keep a storage's address from being reused."""
        self._sweep_size = _MIN_SWEEP_SIZE
        self._array_origins: dict[int, Origin] = {}

    def get_tag(self, tensor: Tensor) -> DeviceTag:
        """Return the tag of `tensor`; if untagged, its real device with the array's origin."""
        tag = self._tags.get(_get_storage_id(tensor))
        return tag or DeviceTag(tensor.device, self.find_array_origin(tensor) or OUTSIDE_FORWARD)

    def get_device(self, tensor: Tensor) -> torch.device:
        tag = self._tags.get(_get_storage_id(tensor))
        return tag.device if tag is not None else tensor.device

    def has_tag(self, tensor: Tensor) -> bool:
        return _get_storage_id(tensor) in self._tags

    def set_tag(self, tensor: Tensor, device: torch.device, origin: Origin) -> None:
        """Tag the storage of `tensor`; storages not really on the CPU (meta) are left untagged."""
        for part in _iter_inner_tensors(tensor):
            if part.device == CPU:
                storage_id = _get_storage_id(part)
                if storage_id not in self._tags:
                    self._storage_refs[storage_id] = _make_storage_ref(part)
                    self._drop_expired()
                self._tags[storage_id] = DeviceTag(device, origin)

    def add_array(self, array: Any, path: str) -> None:
        """Record the path of a numpy array of the module; tensors may share its memory."""
        self._array_origins[int(array.ctypes.data)] = Origin(path, "a numpy array")

    def _drop_expired(self) -> None:
        """Drop tags of freed storages, whenever their number has doubled."""
        if len(self._storage_refs) < self._sweep_size:
            return
        expired_ids = [
            storage_id
            for storage_id, storage_ref in self._storage_refs.items()
            if storage_ref.expired()
        ]
        for storage_id in expired_ids:
            del self._storage_refs[storage_id], self._tags[storage_id]
        self._sweep_size = max(_MIN_SWEEP_SIZE, 2 * len(self._storage_refs))

    def find_array_origin(self, tensor: Tensor) -> Origin | None:
        """Return the origin of the array whose memory `tensor` shares, else None."""
        if not self._array_origins or tensor.layout is not torch.strided:
            return None
        address = find_memory_address(tensor)
        return None if address is None else self._array_origins.get(address)


def _get_storage_id(tensor: Tensor) -> int:
    """Return an id that is equal for tensors of one storage."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except ValueError:
        # An uninitialized parameter has a storage but refuses access to it.
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (RuntimeError, NotImplementedError):
        # Sparse tensors, and the wrapped tensors of vmap.
        if _functorch.is_functorch_wrapped_tensor(tensor):
            return _get_storage_id(_functorch.get_unwrapped(tensor))
        return id(tensor)


class _StorageRef(Protocol):
    """Weak reference to a storage, or a stand-in; `expired` if the storage was freed."""

    def expired(self) -> bool: ...


class _StrongTensorRef:
    """Strong reference to a tensor that has no storage; never expires."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def expired(self) -> bool:
        return False


def _make_storage_ref(tensor: Tensor) -> _StorageRef:
    try:
        make_weak_ref: Callable[[Any], _StorageRef] = StorageWeakRef
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            return make_weak_ref(tensor.untyped_storage())
    except (RuntimeError, NotImplementedError):
        return _StrongTensorRef(tensor)


def _iter_inner_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield `tensor`, and recursively the inner tensors of a wrapper subclass."""
    yield tensor
    flatten = getattr(tensor, "__tensor_flatten__", None)
    for name in flatten()[0] if flatten else ():
        yield from _iter_inner_tensors(getattr(tensor, name))
