"""ModuleSpec or nn.Module -> TargetModule: the module that loads the result."""

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
    """The module that loads the result, and its `ModuleInfo`."""

    state: ModuleState
    module: "nn.Module"
    """Parameters may be meta tensors; values computed by the constructor are real."""
    spec: ModuleSpec | None
    """None for an existing instance, which cannot be rebuilt."""

    def constructed(self, key: str, memory: Memory) -> TensorInfo:
        """Store the value that the constructor gave to `key`, and return its description.

        Raises:
            PlanError: the module saves no such tensor, or it is a meta tensor.
        """
        return self._kept(key, self.module, "constructor", memory)

    def seeded(self, key: str, seed: int, memory: Memory) -> TensorInfo:
        """Rebuild the module under `seed`, store the value of `key`, and return its description.

        Raises:
            PlanError: the module saves no such tensor, or cannot be rebuilt.
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
    """Build the module of a spec, or take an instance, and examine it.

    Raises:
        ModuleError: the module cannot be imported, built or examined.
    """
    if isinstance(module, ModuleSpec):
        state, built = examine_live(module)
        return Live(state, built, module)
    return Live(describe(module, type(module).__qualname__), module, None)


def bytes_of(tensor: "Tensor") -> bytes:
    """Return the bytes of a tensor's elements in C order, conj and neg bits resolved."""
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    flat = flat.view(torch.uint8)
    return ctypes.string_at(flat.data_ptr(), flat.numel())
