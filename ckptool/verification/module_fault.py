"""LevelResults x ForwardResults -> LevelResults that say where the module fails, not the file.

The proof is the same load on the CPU: the file loads strictly, and forward runs through there.
"""

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from ckptool.verification.backends import cuda
from ckptool.verification.levels.device_and_forward import ForwardResults, RunDevice
from ckptool.verification.result import DeviceMismatch, LevelResult, LevelStatus, VerificationLevel

_CREATED: Final = "created at "
"""How the description of a tensor begins that forward itself makes."""


def explain_module_fault(
    levels: tuple[LevelResult, ...], forward_results: ForwardResults | None, device: RunDevice
) -> tuple[LevelResult, ...]:
    """Return the levels; one that failed for the module's own reasons has a detail with the fix."""
    statuses = {result.level: result.status for result in levels}
    if (
        forward_results is None
        or not _fails_on_device_only(forward_results)
        or statuses[VerificationLevel.LOAD] is not LevelStatus.PASSED
        or statuses[VerificationLevel.EQUALITY] is LevelStatus.FAILED
    ):
        return levels
    explanation = (
        f"{_name_fault(forward_results.device_mismatches)}: with the same file loaded, forward runs"
        f" through on the CPU and fails on {device.label}:"
        f" {_propose_fix(forward_results.device_mismatches)}, or run it with --device cpu"
    )
    first_failed = next(
        level
        for level in (VerificationLevel.DEVICE, VerificationLevel.FORWARD)
        if statuses[level] is LevelStatus.FAILED
    )
    return tuple(
        replace(result, details=(*result.details, explanation))
        if result.level is first_failed
        else result
        for result in levels
    )


def _fails_on_device_only(forward_results: ForwardResults) -> bool:
    """Whether forward runs on the CPU and fails on the device by where the module's tensors are."""
    device_pass = forward_results.device_pass
    if forward_results.cpu_pass.error is not None or device_pass is None:
        return False
    has_failed = any(result.status is LevelStatus.FAILED for result in forward_results.levels)
    error = device_pass.error
    is_device_error = error is not None and cuda.is_device_error(error.error)
    return has_failed and bool(forward_results.device_mismatches or is_device_error)


def _name_fault(mismatches: Iterable[DeviceMismatch]) -> str:
    """Return what is at fault; the value of an attribute that stays behind is not of the file."""
    if any(mismatch.attribute for mismatch in mismatches):
        return "the module is at fault, not the load"
    return "the file is right, the module is not"


def _propose_fix(mismatches: Iterable[DeviceMismatch]) -> str:
    """Return how to mend the first misplaced tensor; a general remedy if none is known."""
    mismatch = next(iter(mismatches), None)
    if mismatch is None:
        return "make the module create all its tensors on the device of its input"
    if mismatch.description.startswith(_CREATED):
        location = mismatch.description.removeprefix(_CREATED)
        return f"at {location}, create the tensor on the device of an input (device=x.device)"
    if mismatch.attribute:
        return f"register `{mismatch.attribute}` as a buffer, which moves with the module"
    return f"move the tensor to the device of the input before {mismatch.where or mismatch.op}"
