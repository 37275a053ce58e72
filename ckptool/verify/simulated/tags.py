"""Tensor -> the device that it pretends to be on, and where it came from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch._C import _functorch
from torch.multiprocessing.reductions import StorageWeakRef

CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor, or what it was computed from, came from."""

    path: str
    """Its path in the module, "" where the module does not hold it."""
    text: str
    """"a plain attribute", "created at net.py:8"."""


OUTSIDE: Final = Origin("", "made outside the forward pass")


@dataclass(frozen=True, slots=True)
class Tag:
    device: torch.device
    origin: Origin


class Tags:
    """The pretended device of every storage. What has none is where it really is."""

    def __init__(self) -> None:
        self._tags: dict[int, Tag] = {}
        self._alive: list[object] = []
        """Keeps each address from being given to another storage."""
        self._arrays: dict[int, Origin] = {}

    def of(self, tensor: Tensor) -> Tag:
        """Return the tag of `tensor`, or what is true of one that was never tagged."""
        known = self._tags.get(_identity(tensor))
        return known or Tag(tensor.device, self.array(tensor) or OUTSIDE)

    def device(self, tensor: Tensor) -> torch.device:
        known = self._tags.get(_identity(tensor))
        return known.device if known is not None else tensor.device

    def knows(self, tensor: Tensor) -> bool:
        return _identity(tensor) in self._tags

    def put(self, tensor: Tensor, device: torch.device, origin: Origin) -> None:
        """Tag the storage of `tensor`; one that is really elsewhere (meta) keeps its device."""
        for one in _with_inner(tensor):
            if one.device == CPU:
                identity = _identity(one)
                if identity not in self._tags:
                    self._alive.append(_reference(one))
                self._tags[identity] = Tag(device, origin)

    def name_array(self, array: Any, path: str) -> None:
        """Remember where the module holds a numpy array: tensors share its memory."""
        self._arrays[int(array.ctypes.data)] = Origin(path, "a numpy array")

    def array(self, tensor: Tensor) -> Origin | None:
        """Return the origin of the array whose memory `tensor` shares, if there is one."""
        if not self._arrays or tensor.layout is not torch.strided:
            return None
        return self._arrays.get(tensor.untyped_storage().data_ptr())


def _identity(tensor: Tensor) -> int:
    """Return what tensors have in common that share memory."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except ValueError:
        # A parameter without a shape yet has a storage all the same, and will not say so.
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
    except (RuntimeError, NotImplementedError):
        # Sparse tensors, and what vmap hands to its function.
        if _functorch.is_functorch_wrapped_tensor(tensor):
            return _identity(_functorch.get_unwrapped(tensor))
        return id(tensor)


def _reference(tensor: Tensor) -> object:
    try:
        weak: type[Any] = StorageWeakRef
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001
            return weak(tensor.untyped_storage())
    except (RuntimeError, NotImplementedError):
        return tensor


def _with_inner(tensor: Tensor) -> Iterator[Tensor]:
    """Yield `tensor`, and what a wrapper subclass keeps its data in."""
    yield tensor
    flatten = getattr(tensor, "__tensor_flatten__", None)
    for name in flatten()[0] if flatten else ():
        yield from _with_inner(getattr(tensor, name))
