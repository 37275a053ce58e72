"""A module's name, or a live module -> what it holds, and the values that its constructor makes."""

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptool.errors import PlanError
from ckptool.migration.memory import Memory
from ckptool.model import ModuleState, TensorInfo
from ckptool.modules import ModuleSpec, describe, examine_live, replay
from ckptool.modules.tensors import dtype_name

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """The module that is to load the result."""

    state: ModuleState
    module: "nn.Module"
    """Its parameters may be on meta; what its constructor computed is real."""
    spec: ModuleSpec | None
    """None for an instance, which cannot be built again."""

    def constructed(self, key: str, memory: Memory) -> TensorInfo:
        """Return the value that the constructor gave to `key`.

        Raises:
            PlanError: there is no such value.
        """
        return self._kept(key, self.module, "constructor", memory)

    def seeded(self, key: str, seed: int, memory: Memory) -> TensorInfo:
        """Return the value that `key` has when the module is built under `seed`.

        Raises:
            PlanError: there is no such value.
        """
        if self.spec is None:
            raise PlanError(f"inject `{key}`: an instance cannot be built under a seed")
        return self._kept(key, replay(self.spec, seed), f"seed:{seed}", memory)

    def _kept(self, key: str, module: "nn.Module", source: str, memory: Memory) -> TensorInfo:
        import torch

        found = module.state_dict().get(key)
        if not isinstance(found, torch.Tensor):
            raise PlanError(f"inject `{key}`: the module {self.state.target} saves no such tensor")
        if found.is_meta:
            raise PlanError(f"inject `{key}`: building the module gives it no value ({source})")
        return memory.tensor(key, dtype_name(found), tuple(map(int, found.shape)), bytes_of(found))


def live(module: "ModuleSpec | nn.Module") -> Live:
    """Build and examine a module.

    Raises:
        ModuleError: it cannot be imported, built or examined.
    """
    if isinstance(module, ModuleSpec):
        state, built = examine_live(module)
        return Live(state, built, module)
    return Live(describe(module, type(module).__qualname__), module, None)


def bytes_of(tensor: "Tensor") -> bytes:
    """Return the elements of a tensor in C order."""
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    flat = flat.view(torch.uint8)
    return ctypes.string_at(flat.data_ptr(), flat.numel())
