"""TargetModule: the module that loads the result of a migration, wherever its code runs."""

from dataclasses import dataclass
from dataclasses import replace as replace_field
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.loader_diff import LoaderAnswer, build_loaded_diff
from ckptool.compare.module_comparison import build_module_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.draft import Draft, create_draft
from ckptool.migration.plan.pending_file import PendingFile
from ckptool.migration.plan.suggest import build_result_checkpoint
from ckptool.model import ModuleInfo, TensorInfo
from ckptool.modules.submodule import restrict_to_submodule


class ModuleValue(Struct, frozen=True):
    """A tensor that building a module gives."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes
    """The elements in C order, little-endian."""


class StrictLoad(Struct, frozen=True):
    """Result of loading a file strictly; both are "" if it loads."""

    error: str = ""
    skip_reason: str = ""
    """Why it was not tried."""


class ModuleSource(Protocol):
    """A built module, here or in another process."""

    def ask_loader(self, module_diff: ModuleDiff) -> LoaderAnswer:
        """Ask its own loading code about the state of `module_diff`."""
        ...

    def read_value(self, key: str, seed: int | None) -> ModuleValue:
        """Return the value that building gives to `key`; with `seed`, of a build under it.

        Raises:
            PlanError: the module saves no such tensor, or building gives it no value.
        """
        ...

    def load_strictly(self, pending_file: PendingFile, submodule: str) -> StrictLoad:
        """Load a file into a copy of the module, or of its sub-module at a path that is not ""."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TargetModule:
    """The module that loads the result, and its `ModuleInfo`."""

    module_info: ModuleInfo
    source: ModuleSource

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
        is_unchanged = replace(draft, is_extracted=False) == create_draft(
            draft.checkpoint, draft.state
        )
        is_planned = not is_unchanged or at != draft.state.at
        return build_loaded_diff(
            result, self.module_info, at, self.source.ask_loader, is_planned=is_planned
        )

    def get_constructor_value(self, key: str, anonymous_file: AnonymousFile) -> TensorInfo:
        """Store the value that the constructor gave to `key`, and return its description.

        Raises:
            PlanError: the module saves no such tensor, or it is a meta tensor.
        """
        return self._store_value(key, None, anonymous_file)

    def build_seeded_value(self, key: str, seed: int, anonymous_file: AnonymousFile) -> TensorInfo:
        """Rebuild the module under `seed`, store the value of `key`, and return its description.

        Raises:
            PlanError: the module saves no such tensor, or cannot be rebuilt.
        """
        return self._store_value(key, seed, anonymous_file)

    def _store_value(self, key: str, seed: int | None, anonymous_file: AnonymousFile) -> TensorInfo:
        value = self.source.read_value(key, seed)
        return anonymous_file.add_tensor(key, value.dtype, value.shape, value.content)
