"""Replace parameters by meta tensors while a module is constructed, keeping ties."""

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class Twins:
    """Meta parameters of one build, by the real parameter that each replaces.

    A parameter registered twice has one meta parameter, and parameters that share a storage have
    meta parameters that share one, so ties survive. The real parameter is not changed: the user's
    code may own it.
    """

    def __init__(self) -> None:
        self._twins: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}
        self._storages: dict[int, tuple[object, Tensor]] = {}
        self._devices: dict[int, str] = {}

    def of(self, parameter: "nn.Parameter") -> "nn.Parameter":
        """Return the meta parameter for `parameter`, or `parameter` if it cannot be replaced.

        Parameters without a shape, tensor subclasses, quantized and non-leaf tensors, and tensors
        on `meta` are not replaced.
        """
        from torch import nn, strided

        plain = type(parameter) is nn.Parameter and parameter.layout is strided
        if not plain or parameter.is_meta or parameter.is_quantized or not parameter.is_leaf:
            return parameter
        if not self.stands_for(parameter):
            self._twins[id(parameter)] = (weakref.ref(parameter), self._make(parameter))
        return self._twins[id(parameter)][1]

    def stands_for(self, parameter: object) -> bool:
        """Whether a meta parameter replaces `parameter`."""
        known = self._twins.get(id(parameter))
        return known is not None and known[0]() is parameter

    def storage(self, address: int) -> int:
        """Return the address of the meta storage for the storage at `address`, or `address`."""
        known = self._storages.get(address)
        return address if known is None else _address(known[1])

    def device(self, address: int) -> str | None:
        """Return the original device of the meta storage at `address`, None if it is not one."""
        return self._devices.get(address)

    def _make(self, parameter: "nn.Parameter") -> "nn.Parameter":
        import torch

        blank = torch.empty(0, dtype=parameter.dtype, device="meta")
        with torch.no_grad():
            blank.set_(
                self._room(parameter).untyped_storage(),
                parameter.storage_offset(),
                parameter.shape,
                parameter.stride(),
            )
        twin = torch.nn.Parameter(blank, requires_grad=parameter.requires_grad)
        twin.__dict__.update(parameter.__dict__)
        return twin

    def _room(self, parameter: "nn.Parameter") -> "Tensor":
        """Return a uint8 meta tensor that spans the meta storage for the storage of `parameter`."""
        import torch
        from torch.multiprocessing.reductions import StorageWeakRef

        watch: type[Any] = StorageWeakRef
        storage, address = parameter.untyped_storage(), _address(parameter)
        if address not in self._storages:
            # While this weak reference exists, no other storage gets the same address.
            room = torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta")
            self._storages[address] = (watch(storage), room)
            self._devices[_address(room)] = str(parameter.device)
        return self._storages[address][1]


def _address(tensor: "Tensor") -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
