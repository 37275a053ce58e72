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
from ckptool.modules.tensor_info import count_bytes
from ckptool.modules.tensor_parts import is_lazy
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import walk_module

MAX_READ_NBYTES: Final = 256 << 20
"""Maximum size of a state, and of a module, that is loaded with values to ask loading code."""
_LOADING_METHODS: Final = (
    "load_state_dict", "_load_from_state_dict", "_save_to_state_dict", "state_dict"
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class TrialModule:
    """A module whose loading code is asked, on other instances."""

    module: nn.Module
    """It is not changed; its parameters may be on meta."""
    build: Callable[[], nn.Module] | None = None
    """Constructs another one, with memory; None for a live module, which is copied."""

    @property
    def can_be_real(self) -> bool:
        """Whether an instance with memory can be made, and is small."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        has_values = self.build is not None or not any(tensor.is_meta for tensor in tensors)
        return has_values and sum(map(count_bytes, tensors)) <= MAX_READ_NBYTES

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


def get_part(module: nn.Module, path: str) -> nn.Module:
    """Return the sub-module at a path, the module itself at ""; also of a ScriptModule."""
    if not path:
        return module
    if isinstance(module, torch.jit.ScriptModule):
        parts: dict[str, nn.Module] = dict(module.named_modules())
        return parts[path]
    return module.get_submodule(path)


def find_loading_code(module: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of sub-modules that load or save by more than nn.Module's own code.

    Without any, a state_dict is what is registered, and torch's comparison of keys and shapes is
    all that a load is.
    """
    members = list(module.named_modules())
    own_classes = {cls for cls in {type(part) for _, part in members} if _overrides_loading(cls)}
    return tuple(
        prefix
        for prefix, part in members
        if type(part) in own_classes or has_hooks(part) or _replaces_methods(part)
    )


def find_user_loading_code(module: nn.Module) -> tuple[str, ...]:
    """Return those of `find_loading_code` whose code is not torch's own."""
    return tuple(
        prefix
        for prefix in find_loading_code(module)
        if is_user_class(part := get_part(module, prefix))
        or has_hooks(part)
        or _replaces_methods(part)
    )


def is_user_class(module: nn.Module) -> bool:
    """Whether its class is not one of torch's."""
    return not type(module).__module__.startswith("torch.")


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks take part when it is loaded or saved."""
    return bool(
        module._state_dict_hooks  # noqa: SLF001
        or module._load_state_dict_pre_hooks  # noqa: SLF001
        or module._load_state_dict_post_hooks  # noqa: SLF001
    )


def _replaces_methods(module: nn.Module) -> bool:
    """Whether the instance has methods of its own: `model.load_state_dict = function`."""
    return not vars(module).keys().isdisjoint(_LOADING_METHODS)


def _overrides_loading(cls: type[nn.Module]) -> bool:
    return cls.set_extra_state is not nn.Module.set_extra_state or any(
        getattr(cls, name) is not getattr(nn.Module, name) for name in _LOADING_METHODS
    )


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
