"""ModuleSpec or nn.Module -> TargetModule: the module that loads the result."""

from dataclasses import dataclass
from dataclasses import replace as replace_field
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.compare.module_diff import ModuleDiff, build_module_diff
from ckptool.errors import PlanError
from ckptool.loaders.describe import describe_for_loader
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.draft import Draft, create_draft
from ckptool.migration.plan.suggest import build_result_checkpoint
from ckptool.model import ModuleInfo, TensorInfo
from ckptool.modules import ModuleSpec, describe_module, examine_and_build, rebuild_with_seed
from ckptool.modules.submodule import restrict_to_submodule
from ckptool.modules.tensor_info import get_dtype_name
from ckptool.tensors.torch_bytes import copy_tensor_bytes
from ckptool.verification.load_probe import compare_with_loader

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class TargetModule:
    """The module that loads the result, and its `ModuleInfo`."""

    module_info: ModuleInfo
    module: "nn.Module"
    """Parameters may be meta tensors; values computed by the constructor are real."""
    spec: ModuleSpec | None
    """None for an existing instance, which cannot be rebuilt."""

    @property
    def loaded_module(self) -> "nn.Module":
        """The module that loads the result: the sub-module where only that is meant."""
        return self.module.get_submodule(self.module_info.submodule)

    def restrict(self, path: str) -> "TargetModule":
        """Return the target with only the sub-module at `path` described.

        Raises:
            UsageError: there is no such sub-module.
        """
        return replace_field(self, module_info=restrict_to_submodule(self.module_info, path))

    @property
    def has_custom_load(self) -> bool:
        """Whether a class other than torch's has loading code of its own."""
        return any(part.has_custom_load for part in self.module_info.modules.values())

    def predict_load(self, draft: Draft, *, state_only: bool, keeps_versions: bool) -> ModuleDiff:
        """Return what the module's own `load_state_dict` would do with the draft's result.

        Args:
            draft: the planned state_dict; the source's own if it is unchanged.
            state_only: whether the result has the state_dict at its top level and nothing else.
            keeps_versions: whether torch reads the versions of modules from it: not safetensors.
        """
        result = replace(build_result_checkpoint(draft), load_refusal="")
        at = draft.state.at
        if state_only:
            versions = draft.versions if keeps_versions else None
            state = replace(draft.result_state, at="", versions=versions)
            result, at = replace(result, states=(state,), entries=()), ""
        if self.module_info.submodule:
            return build_module_diff(result, self.module_info, at)
        is_planned = draft != create_draft(draft.checkpoint, draft.state)
        return compare_with_loader(result, self.module_info, self.module, at, is_planned=is_planned)

    def get_constructor_value(self, key: str, anonymous_file: AnonymousFile) -> TensorInfo:
        """Store the value that the constructor gave to `key`, and return its description.

        Raises:
            PlanError: the module saves no such tensor, or it is a meta tensor.
        """
        return self._store_value(key, self.module, "constructor", anonymous_file)

    def build_seeded_value(self, key: str, seed: int, anonymous_file: AnonymousFile) -> TensorInfo:
        """Rebuild the module under `seed`, store the value of `key`, and return its description.

        Raises:
            PlanError: the module saves no such tensor, or cannot be rebuilt.
        """
        if self.spec is None:
            raise PlanError(f"inject `{key}`: an instance cannot be built under a seed")
        return self._store_value(
            key, rebuild_with_seed(self.spec, seed), f"seed:{seed}", anonymous_file
        )

    def _store_value(
        self, key: str, module: "nn.Module", source: str, anonymous_file: AnonymousFile
    ) -> TensorInfo:
        import torch

        value = module.state_dict().get(key)
        if not isinstance(value, torch.Tensor):
            raise PlanError(
                f"inject `{key}`: the module {self.module_info.target} saves no such tensor"
            )
        if value.is_meta:
            raise PlanError(f"inject `{key}`: building the module gives it no value ({source})")
        return anonymous_file.add_tensor(
            key, get_dtype_name(value), tuple(map(int, value.shape)), to_contiguous_bytes(value)
        )


def load_target_module(module: "ModuleSpec | nn.Module") -> TargetModule:
    """Build the module of a spec, or take an instance, and examine it.

    Raises:
        ModuleError: the module cannot be imported, built or examined.
    """
    if isinstance(module, ModuleSpec):
        module_info, instance = examine_and_build(module)
        return TargetModule(describe_for_loader(module_info, instance, module), instance, module)
    return TargetModule(describe_module(module, type(module).__qualname__), module, None)


def to_contiguous_bytes(tensor: "Tensor") -> bytes:
    """Return the bytes of a tensor's elements in C order, conj and neg bits resolved."""
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    return copy_tensor_bytes(flat.view(torch.uint8))
