"""Replace parameters by meta tensors while a module is constructed, keeping ties."""

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class MetaParameters:
    """Meta parameters of one build, by the real parameter that each replaces.

    A parameter registered twice has one meta parameter, and parameters that share a storage have
    meta parameters that share one, so ties survive. The real parameter is not changed: the user's
    code may own it.
    """

    def __init__(self) -> None:
        self._meta_parameters: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}
        self._meta_storages: dict[int, tuple[object, Tensor]] = {}
        self._devices: dict[int, str] = {}
        self.lost_loads = 0
        """Calls of load_state_dict() by the constructor, whose values no meta parameter has."""

    def replace_parameter(self, parameter: "nn.Parameter") -> "nn.Parameter":
        """Return the meta parameter for `parameter`, or `parameter` if it cannot be replaced.

        Parameters without a shape, tensor subclasses, quantized and non-leaf tensors, and tensors
        on `meta` are not replaced.
        """
        from torch import nn, strided

        is_plain = type(parameter) is nn.Parameter and parameter.layout is strided
        if not is_plain or parameter.is_meta or parameter.is_quantized or not parameter.is_leaf:
            return parameter
        if not self.is_replaced(parameter):
            self._meta_parameters[id(parameter)] = (
                weakref.ref(parameter),
                self._make_meta_parameter(parameter),
            )
        return self._meta_parameters[id(parameter)][1]

    def is_replaced(self, parameter: object) -> bool:
        """Whether a meta parameter replaces `parameter`."""
        entry = self._meta_parameters.get(id(parameter))
        return entry is not None and entry[0]() is parameter

    def resolve_storage(self, address: int) -> int:
        """Return the address of the meta storage for the storage at `address`, or `address`."""
        entry = self._meta_storages.get(address)
        return address if entry is None else _get_storage_address(entry[1])

    def get_original_device(self, address: int) -> str | None:
        """Return the original device of the meta storage at `address`, None if it is not one."""
        return self._devices.get(address)

    def _make_meta_parameter(self, parameter: "nn.Parameter") -> "nn.Parameter":
        import torch

        meta_tensor = torch.empty(0, dtype=parameter.dtype, device="meta")
        with torch.no_grad():
            meta_tensor.set_(
                self._get_meta_storage(parameter).untyped_storage(),
                parameter.storage_offset(),
                parameter.shape,
                parameter.stride(),
            )
        meta_parameter = torch.nn.Parameter(meta_tensor, requires_grad=parameter.requires_grad)
        meta_parameter.__dict__.update(parameter.__dict__)
        return meta_parameter

    def _get_meta_storage(self, parameter: "nn.Parameter") -> "Tensor":
        """Return a uint8 meta tensor that spans the meta storage for the storage of `parameter`."""
        import torch
        from torch.multiprocessing.reductions import StorageWeakRef

        weak_reference: type[Any] = StorageWeakRef
        storage, address = parameter.untyped_storage(), _get_storage_address(parameter)
        if address not in self._meta_storages:
            # While this weak reference exists, no other storage gets the same address.
            meta_storage = torch.empty(storage.nbytes(), dtype=torch.uint8, device="meta")
            self._meta_storages[address] = (weak_reference(storage), meta_storage)
            self._devices[_get_storage_address(meta_storage)] = str(parameter.device)
        return self._meta_storages[address][1]


def _get_storage_address(tensor: "Tensor") -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
