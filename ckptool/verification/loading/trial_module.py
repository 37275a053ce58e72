"""nn.Module -> instances of it that a trial load may change: with memory, or on meta."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ckptool.modules.build import SEEDS
from ckptool.modules.describe import rebuild_with_seed
from ckptool.modules.import_target import ModuleSpec
from ckptool.modules.live.module_copy import copy_module
from ckptool.modules.move_probe import copy_to_meta
from ckptool.modules.tensors.elements import count_bytes
from ckptool.modules.tensors.tensor_parts import is_lazy
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import walk_module
from ckptool.verification.loading.loading_code import get_part

MAX_SMALL_NBYTES: Final = 256 << 20
"""Maximum size of a state, and of a module, that is loaded with values at once."""


@dataclass(frozen=True, slots=True, eq=False)
class TrialModule:
    """A module whose loading code is asked, on other instances."""

    module: nn.Module
    """It is not changed; its parameters may be on meta."""
    build: Callable[[], nn.Module] | None = None
    """Constructs another one, with memory; None for a live module, which is copied."""

    @property
    def is_small(self) -> bool:
        """Whether an instance with memory can be made, and is small."""
        return self.can_be_real(MAX_SMALL_NBYTES)

    def can_be_real(self, max_nbytes: int) -> bool:
        """Whether an instance with memory can be made, of at most this size."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        has_values = self.build is not None or not any(tensor.is_meta for tensor in tensors)
        return has_values and sum(map(count_bytes, tensors)) <= max_nbytes

    def create_real(self) -> nn.Module:
        """Return an instance with memory for all tensors: built as a script does, or a copy.

        Raises:
            UserCodeError: it cannot be built or copied.
        """
        if self.build is not None:
            try:
                with user_code():
                    return self.build()
            except UserCodeError:  # a name of an instance, whose arguments are not known
                if any(tensor.is_meta for tensor in self.module.parameters()):
                    raise
        return copy_module(self.module)

    def create_on_meta(self, *, with_buffers: bool) -> nn.Module:
        """Return a copy with parameters on meta, and `with_buffers` saved buffers too.

        Raises:
            UserCodeError: the module cannot be copied.
        """
        with user_code():
            copy = copy_to_meta(self.module, walk_module(self.module))
            if with_buffers:
                _move_to_meta(copy)
            return copy


def make_trial(module: nn.Module, spec: ModuleSpec, path: str = "") -> TrialModule:
    """Return the trial module of what a spec names, or of its sub-module at `path`."""
    if isinstance(spec.python_object, nn.Module):
        return TrialModule(module)

    def build() -> nn.Module:
        return get_part(rebuild_with_seed(spec, SEEDS[0]), path)

    return TrialModule(module, build)


def _move_to_meta(module: nn.Module) -> None:
    """Replace lazy parameters and saved dense buffers; what is tied stays tied."""
    replacements: dict[int, Tensor] = {}
    for part in module.modules():
        saved_buffers = part._buffers.keys() - part._non_persistent_buffers_set  # noqa: SLF001
        for tensors, names in ((part._parameters, part._parameters.keys()),  # noqa: SLF001
                               (part._buffers, saved_buffers)):  # fmt: skip  # noqa: SLF001
            for name in list(names):
                tensor: Any = tensors[name]
                if tensor is not None and not tensor.is_meta and _can_be_on_meta(tensor):
                    new = replacements.setdefault(id(tensor), _make_meta_tensor(tensor))
                    tensors[name] = new  # type: ignore[assignment]


def _can_be_on_meta(tensor: Tensor) -> bool:
    if is_lazy(tensor):
        return True
    is_dense = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return type(tensor) is Tensor and is_dense


def _make_meta_tensor(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        make: Callable[..., Tensor] = type(tensor)
        return make(tensor.requires_grad, device="meta", dtype=tensor.dtype)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
