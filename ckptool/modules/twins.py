"""A real parameter -> its twin on `meta`: a module that is built without room for its weights."""

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class Twins:
    """The meta parameters of one build, and the real ones that they stand for.

    A parameter registered twice has one twin, and parameters that share a storage have twins that
    share one, so ties survive. The real parameter itself is left as it is: it may be the user's.
    """

    def __init__(self) -> None:
        self._twins: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}
        self._storages: dict[int, tuple[object, Tensor]] = {}
        self._devices: dict[int, str] = {}

    def of(self, parameter: "nn.Parameter") -> "nn.Parameter":
        """Return the twin of `parameter`, or itself where a twin would not be the same thing.

        That is so for one that has no shape yet, for a tensor subclass, and for one that is on
        `meta` already.
        """
        from torch import nn, strided

        plain = type(parameter) is nn.Parameter and parameter.layout is strided
        if not plain or parameter.is_meta or parameter.is_quantized or not parameter.is_leaf:
            return parameter
        if not self.stands_for(parameter):
            self._twins[id(parameter)] = (weakref.ref(parameter), self._make(parameter))
        return self._twins[id(parameter)][1]

    def stands_for(self, parameter: object) -> bool:
        """Whether a twin of `parameter` is registered in its place."""
        known = self._twins.get(id(parameter))
        return known is not None and known[0]() is parameter

    def storage(self, address: int) -> int:
        """Return the address of the storage that stands for the one at `address`, or `address`."""
        known = self._storages.get(address)
        return address if known is None else _address(known[1])

    def device(self, address: int) -> str | None:
        """Return where the parameter was whose twin's storage is at `address`, if there is one."""
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
        """Return a meta tensor over the whole of the storage that stands for `parameter`'s."""
        import torch
        from torch.multiprocessing.reductions import StorageWeakRef

        watch: type[Any] = StorageWeakRef
        storage, address = parameter.untyped_storage(), _address(parameter)
        if address not in self._storages:
            # As long as this weak reference lives, no other storage gets the same address.
            room = torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta")
            self._storages[address] = (watch(storage), room)
            self._devices[_address(room)] = str(parameter.device)
        return self._storages[address][1]


def _address(tensor: "Tensor") -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
