"""Tensor -> DeviceTag: the simulated device of its storage, and its origin."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch._C import _functorch
from torch.multiprocessing.reductions import StorageWeakRef

CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a tensor, or of the tensor it was computed from."""

    path: str
    """Its path in the module, "" if the module does not hold it."""
    text: str
    """"a plain attribute", "created at net.py:8"."""


_FEWEST: Final = 64
"""Minimum number of tracked storages before expired ones are dropped."""
OUTSIDE: Final = Origin("", "made outside the forward pass")


@dataclass(frozen=True, slots=True)
class Tag:
    device: torch.device
    origin: Origin


class Tags:
    """Simulated device and origin of every storage; an untagged one is on its real device."""

    def __init__(self) -> None:
        self._tags: dict[int, Tag] = {}
        self._watched: dict[int, _Watched] = {}
        """References that keep a storage's address from being reused."""
        self._sweep_at = _FEWEST
        self._arrays: dict[int, Origin] = {}

    def of(self, tensor: Tensor) -> Tag:
        """Return the tag of `tensor`; if untagged, its real device with the array's origin."""
        known = self._tags.get(_identity(tensor))
        return known or Tag(tensor.device, self.array(tensor) or OUTSIDE)

    def device(self, tensor: Tensor) -> torch.device:
        known = self._tags.get(_identity(tensor))
        return known.device if known is not None else tensor.device

    def knows(self, tensor: Tensor) -> bool:
        return _identity(tensor) in self._tags

    def put(self, tensor: Tensor, device: torch.device, origin: Origin) -> None:
        """Tag the storage of `tensor`; storages not really on the CPU (meta) are left untagged."""
        for one in _with_inner(tensor):
            if one.device == CPU:
                identity = _identity(one)
                if identity not in self._tags:
                    self._watched[identity] = _watched(one)
                    self._sweep()
                self._tags[identity] = Tag(device, origin)

    def name_array(self, array: Any, path: str) -> None:
        """Record the path of a numpy array of the module; tensors may share its memory."""
        self._arrays[int(array.ctypes.data)] = Origin(path, "a numpy array")

    def _sweep(self) -> None:
        """Drop tags of freed storages, whenever their number has doubled."""
        if len(self._watched) < self._sweep_at:
            return
        gone = [identity for identity, one in self._watched.items() if one.expired()]
        for identity in gone:
            del self._watched[identity], self._tags[identity]
        self._sweep_at = max(_FEWEST, 2 * len(self._watched))

    def array(self, tensor: Tensor) -> Origin | None:
        """Return the origin of the array whose memory `tensor` shares, else None."""
        if not self._arrays or tensor.layout is not torch.strided:
            return None
        return self._arrays.get(tensor.untyped_storage().data_ptr())


def _identity(tensor: Tensor) -> int:
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
            return _identity(_functorch.get_unwrapped(tensor))
        return id(tensor)


class _Watched(Protocol):
    """Weak reference to a storage, or a stand-in; `expired` if the storage was freed."""

    def expired(self) -> bool: ...


class _Kept:
    """Strong reference to a tensor that has no storage; never expires."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def expired(self) -> bool:
        return False


def _watched(tensor: Tensor) -> _Watched:
    try:
        weak: Callable[[Any], _Watched] = StorageWeakRef
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            return weak(tensor.untyped_storage())
    except (RuntimeError, NotImplementedError):
        return _Kept(tensor)


def _with_inner(tensor: Tensor) -> Iterator[Tensor]:
    """Yield `tensor`, and recursively the inner tensors of a wrapper subclass."""
    yield tensor
    flatten = getattr(tensor, "__tensor_flatten__", None)
    for name in flatten()[0] if flatten else ():
        yield from _with_inner(getattr(tensor, name))
