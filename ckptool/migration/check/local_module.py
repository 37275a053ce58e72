"""LocalModule: a built module in this process, as migrations ask it."""

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ckptool.compare.loader_diff import LoaderAnswer
from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import CkptoolError, PlanError, WriteError
from ckptool.formats import open_checkpoint
from ckptool.loaders.describe import load_with_framework
from ckptool.migration.plan.pending_file import PendingFile
from ckptool.migration.plan.target_module import ModuleValue, StrictLoad
from ckptool.model import Skipped
from ckptool.modules import ModuleSpec, rebuild_with_seed
from ckptool.modules.live.load_call import call_load_state_dict
from ckptool.modules.tensors.elements import get_dtype_name
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.phrases import quote_shell, summarize_message
from ckptool.values.torch_bytes import copy_tensor_bytes
from ckptool.verification.loading.load_probe import ask_loader
from ckptool.verification.loading.load_tensors import (
    format_refusal,
    get_value_at,
    load_file,
    set_versions,
)
from ckptool.verification.loading.loading_code import get_part
from ckptool.verification.loading.probe_state import ValuesNeededError
from ckptool.verification.loading.recorded_load import needs_values, try_strict_load
from ckptool.verification.loading.trial_module import make_trial

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class LocalModule:
    """A built module, and how to build it again."""

    module: "nn.Module"
    """Parameters may be meta tensors; values computed by the constructor are real."""
    target: str
    spec: ModuleSpec
    loader: str
    """Name of the framework whose loader is asked; "torch" is `load_state_dict`."""

    def ask_loader(self, module_diff: ModuleDiff) -> LoaderAnswer:
        """Ask its own loading code about the state of `module_diff`."""
        return ask_loader(make_trial(self.module, self.spec), module_diff)

    def read_value(self, key: str, seed: int | None) -> ModuleValue:
        """Return the value that building gives to `key`; with `seed`, of a build under it.

        Raises:
            PlanError: the module saves no such tensor, or building gives it no value.
        """
        module, source = self.module, "constructor"
        if seed is not None:
            module, source = rebuild_with_seed(self.spec, seed), f"seed:{seed}"
        value = module.state_dict().get(key)
        if not isinstance(value, torch.Tensor):
            raise PlanError(f"inject `{key}`: the module {self.target} does not save such a tensor")
        if value.is_meta:
            raise PlanError(
                f"inject `{key}`: the constructor was run on the meta device and gave it no value"
                f" ({source}); --inject {quote_shell(f'{key}=seed:0')} takes random initial values"
            )
        shape = tuple(map(int, value.shape))
        return ModuleValue(get_dtype_name(value), shape, _to_contiguous_bytes(value))

    def load_strictly(self, pending_file: PendingFile, submodule: str) -> StrictLoad:
        """Load a file into a copy of the module, or of its sub-module at a path that is not "".

        Raises:
            WriteError: torch.load raises.
        """
        if self.loader != "torch":
            return self._load_with_framework(pending_file)
        try:
            state_dict = _load_state_dict(pending_file)
        except UserCodeError as refusal:
            summary = summarize_message(refusal.text)
            if not isinstance(refusal.error, pickle.UnpicklingError):
                text = f"{pending_file.target}: not written: torch.load raises: {summary}"
                raise WriteError(text) from refusal
            refusal_text = format_refusal(refusal.error)
            reason = f"torch.load(weights_only=True) refuses the file: {refusal_text}"
            return StrictLoad(skip_reason=reason)
        try:
            state_dict = _take_submodule_state(state_dict, submodule)
            part = get_part(self.module, submodule)
            error = try_strict_load(make_trial(part, self.spec, submodule), state_dict)
        except ValuesNeededError:
            return self._load_into_built(state_dict, submodule)
        except UserCodeError as copy_error:
            return StrictLoad(skip_reason=f"copying the module raised {copy_error}")
        return (
            self._load_into_built(state_dict, submodule)
            if needs_values(error)
            else (StrictLoad(error))
        )

    def _load_into_built(self, state_dict: "dict[str, torch.Tensor]", submodule: str) -> StrictLoad:
        """Load into a module with memory: a hook gives the state what the constructor made."""
        try:
            built = get_part(rebuild_with_seed(self.spec, 0), submodule)
        except CkptoolError as error:
            return StrictLoad(skip_reason=f"building the module again raised {error}")
        try:
            with user_code():
                call_load_state_dict(built, state_dict)
        except UserCodeError as error:
            return StrictLoad(summarize_message(error.text))
        return StrictLoad()

    def _load_with_framework(self, pending_file: PendingFile) -> StrictLoad:
        """Ask the framework's loader about the keys and shapes of the written file."""
        state = open_checkpoint(pending_file.path).states[0]
        info = load_with_framework(self.loader, self.module, state)
        if isinstance(info, Skipped):
            return StrictLoad(skip_reason=info.reason)
        return StrictLoad() if info.is_whole else StrictLoad(f"{info.loader} fails: {info.error}")


def _to_contiguous_bytes(tensor: "Tensor") -> bytes:
    """Return the bytes of a tensor's elements in C order, conj and neg bits resolved."""
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    return copy_tensor_bytes(flat.view(torch.uint8))


def _take_submodule_state(
    state_dict: "dict[str, torch.Tensor]", path: str
) -> "dict[str, torch.Tensor]":
    """Return the state that load_state_dict of the whole module hands to its sub-module.

    A key that is not below `path` stays as it is, and is unexpected then.
    """
    if not path:
        return state_dict
    prefix = f"{path}."
    result = OrderedDict((key.removeprefix(prefix), state_dict[key]) for key in state_dict)
    versions = getattr(state_dict, "_metadata", None)
    if versions is not None:
        own_versions = {
            key.removeprefix(path).removeprefix("."): versions[key]
            for key in versions
            if f"{key}.".startswith(prefix)
        }
        set_versions(result, own_versions)
    return result


def _load_state_dict(pending_file: PendingFile) -> "dict[str, torch.Tensor]":
    """Return the state of the file, as torch.load or safetensors gives it.

    Raises:
        UserCodeError: torch.load raised.
    """
    if pending_file.is_safetensors:
        return _load_safetensors(pending_file)
    state = get_value_at(load_file(pending_file.path, mapped=True), pending_file.at)
    return dict(state) if not hasattr(state, "_metadata") else state


def _load_safetensors(pending_file: PendingFile) -> "dict[str, torch.Tensor]":
    from safetensors import safe_open

    state_dict: dict[str, torch.Tensor] = {}
    is_folder = pending_file.path.is_dir()
    for path in pending_file.path.glob("*.safetensors") if is_folder else (pending_file.path,):
        with safe_open(path, framework="pt") as file:
            state_dict |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return state_dict | {name: state_dict[kept_key] for name, kept_key in pending_file.ties.items()}
