"""PendingFile and module -> CheckResults: strict load and forward."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.errors import StrictLoadError
from ckptool.migration.plan.pending_file import PendingFile

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule

STRICT_LOAD: Final = "strict load"
"""Name of the check that loads the file."""
NO_MODULE: Final = "no module was given: use -m package.module:Name"


class CheckResult(Struct, frozen=True):
    """Result of one check of the written file."""

    name: str
    result: str
    """"passed" or "skipped"; a failed check raises, and the file is discarded."""
    reason: str = ""


def check_pending_file(
    pending_file: PendingFile,
    target_module: "TargetModule | None",
    forward_check: "ForwardCheck | None",
) -> tuple[CheckResult, ...]:
    """Run all checks of the file.

    Raises:
        StrictLoadError: the module does not load it.
        WriteError: another check failed.
    """
    return (
        _run_strict_load(pending_file, target_module),
        *_run_forward_check(pending_file, forward_check),
    )


def _run_strict_load(
    pending_file: PendingFile, target_module: "TargetModule | None"
) -> CheckResult:
    """Load the file strictly into a copy of the module, whose parameters need no memory.

    Skipped without a module, if that cannot be copied, or if torch.load(weights_only=True) refuses
    the file.

    Raises:
        StrictLoadError: torch.load or load_state_dict failed.
    """
    name = STRICT_LOAD
    if target_module is None:
        return CheckResult(name, "skipped", NO_MODULE)
    module_info = target_module.module_info
    load = target_module.source.load_strictly(pending_file, module_info.submodule)
    if load.skip_reason:
        return CheckResult(name, "skipped", load.skip_reason)
    if load.error:
        reason = pending_file.load_obstacles or load.error
        raise StrictLoadError(f"{pending_file.target}: not written: strict loading fails: {reason}")
    return CheckResult(name, "passed", f"into {module_info.label}")


def _run_forward_check(
    pending_file: PendingFile, forward_check: "ForwardCheck | None"
) -> tuple[CheckResult, ...]:
    """Run the module on the file's tensors; skipped without inputs."""
    if forward_check is None:
        return (CheckResult("forward", "skipped", "not run (pass --input or --inputs)"),)
    return forward_check(pending_file)


ForwardCheck = Callable[[PendingFile], tuple[CheckResult, ...]]
"""Runs the levels of `ckptool verify` on a pending file."""
