"""PendingFile and module -> CheckResults: strict load and forward."""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.errors import WriteError
from ckptool.modules.user_code import UserCodeError
from ckptool.phrases import summarize_message

if TYPE_CHECKING:
    import torch

    from ckptool.migration.plan.target_module import TargetModule

STRICT_LOAD: Final = "strict load"
"""Name of the check that loads the file."""
NO_MODULE: Final = "no module was named: -m package.module:Name"


class CheckResult(Struct, frozen=True):
    """Result of one check of the written file."""

    name: str
    result: str
    """"passed" or "skipped"; a failed check raises, and the file is discarded."""
    reason: str = ""


class PendingFile(Struct, frozen=True):
    """A complete file at a temporary path, before it is renamed to its target."""

    path: Path
    target: Path
    is_safetensors: bool
    at: str
    """Path of the state_dict in the file; "" for the root."""
    ties: Mapping[str, str]
    """Omitted tied keys -> the key that is stored."""
    load_obstacles: str = ""
    """Text of known obstacles to strict loading; "" for none."""
    keys_to_confirm: tuple[str, ...] = ()
    """Keys of the module whose renames the outputs of the old module have to confirm."""


def check_pending_file(
    pending_file: PendingFile,
    target_module: "TargetModule | None",
    forward_check: "ForwardCheck | None",
) -> tuple[CheckResult, ...]:
    """Run all checks of the file.

    Raises:
        WriteError: a check failed.
    """
    return (
        run_strict_load(pending_file, target_module),
        *run_forward_check(pending_file, forward_check),
    )


def run_strict_load(pending_file: PendingFile, target_module: "TargetModule | None") -> CheckResult:
    """Load the file strictly into a copy of the module, whose parameters need no memory.

    Skipped without a module, if that cannot be copied, or if torch.load(weights_only=True) refuses
    the file.

    Raises:
        WriteError: torch.load or load_state_dict failed.
    """
    name = STRICT_LOAD
    if target_module is None:
        return CheckResult(name, "skipped", NO_MODULE)
    from ckptool.verification.load_probe import try_strict_load

    try:
        state_dict = _load_state_dict(pending_file)
    except UserCodeError as refusal:
        summary = summarize_message(str(refusal.error))
        if not isinstance(refusal.error, pickle.UnpicklingError):
            raise WriteError(
                f"{pending_file.target}: not written: torch.load raises: {summary}"
            ) from refusal
        reason = f"torch.load(weights_only=True) refuses the file: {summary}"
        return CheckResult(name, "skipped", reason)
    try:
        state_dict = _take_submodule_state(state_dict, target_module.module_info.submodule)
        load_error = try_strict_load(target_module.loaded_module, state_dict)
    except UserCodeError as copy_error:
        return CheckResult(name, "skipped", f"copying the module raised {copy_error}")
    if load_error:
        reason = pending_file.load_obstacles or load_error
        raise WriteError(f"{pending_file.target}: not written: strict loading fails: {reason}")
    return CheckResult(name, "passed", f"into {target_module.module_info.label}")


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
        result._metadata = OrderedDict(  # type: ignore[attr-defined]  # noqa: SLF001
            (key.removeprefix(path).removeprefix("."), versions[key])
            for key in versions
            if f"{key}.".startswith(prefix)
        )
    return result


def run_forward_check(
    pending_file: PendingFile, forward_check: "ForwardCheck | None"
) -> tuple[CheckResult, ...]:
    """Run the module on the file's tensors; skipped without inputs."""
    if forward_check is None:
        return (CheckResult("forward", "skipped", "not asked for: --input or --inputs"),)
    return forward_check(pending_file)


ForwardCheck = Callable[[PendingFile], tuple[CheckResult, ...]]
"""Runs the levels of `ckptool verify` on a pending file."""


def _load_state_dict(pending_file: PendingFile) -> "dict[str, torch.Tensor]":
    if pending_file.is_safetensors:
        return _load_safetensors(pending_file)
    from ckptool.verification.load_tensors import get_value_at, load_file

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
