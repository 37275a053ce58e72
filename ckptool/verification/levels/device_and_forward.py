"""nn.Module x Inputs x RunDevice -> ForwardResults: levels "device" and "forward"."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from ckptool.errors import UsageError
from ckptool.folding import fold_names
from ckptool.modules.user_code import UserCodeError
from ckptool.phrases import join_limited
from ckptool.verification.backends import cpu, cuda, simulated
from ckptool.verification.forward_pass import ForwardPass, Inputs
from ckptool.verification.output_diff import compare_outputs, describe_nan, describe_tensors
from ckptool.verification.result import DeviceMismatch, LevelResult, LevelStatus, VerificationLevel

_MAX_STAYING_KEYS: Final = 20
_NEEDS_CUDA: Final = ("not compiled with CUDA", "NVIDIA", "No CUDA GPUs", "CUDA driver", "Triton")
"""Parts of error messages of code that requires CUDA."""


@dataclass(frozen=True, slots=True)
class RunDevice:
    """Device to run a module on."""

    kind: str
    """"cpu", "simulated" or "cuda"."""
    device: torch.device

    @property
    def label(self) -> str:
        return f"simulated {self.device}" if self.kind == "simulated" else str(self.device)


@dataclass(frozen=True, slots=True, eq=False)
class ForwardResults:
    """Forward passes of one module on the CPU and on the device, and their level results."""

    cpu_pass: ForwardPass
    device_pass: ForwardPass | None
    """None if the device is the CPU."""
    levels: tuple[LevelResult, LevelResult]
    device_mismatches: tuple[DeviceMismatch, ...] = ()


def select_device(name: str) -> RunDevice:
    """Return the device for "auto", "cpu", "simulated", "simulated:1", "cuda" or "cuda:1".

    "auto" is CUDA if available, else simulated.

    Raises:
        UsageError: the device does not exist.
    """
    kind, _, index = name.partition(":")
    if name == "cpu":
        return RunDevice("cpu", torch.device("cpu"))
    if kind == "simulated" and (not index or index.isdigit()):
        return RunDevice("simulated", torch.device("cuda", int(index or 0)))
    if kind == "cuda":
        return RunDevice("cuda", cuda.select_cuda_device(name))
    if name == "auto":
        return select_device("cuda" if torch.cuda.is_available() else "simulated")
    raise UsageError(f"--device {name}: expected auto, cuda, cuda:1, simulated or cpu")


def run_on_device(device: RunDevice, module: nn.Module, inputs: Inputs) -> ForwardPass:
    """Run one forward pass on `device`; may move `module`, do not use it again."""
    match device.kind:
        case "cuda":
            return cuda.run_on_cuda(module, inputs, device.device)
        case "simulated":
            return simulated.run_simulated(module, inputs, device.device)
        case _:
            return cpu.run_on_cpu(module, inputs)


def run_device_levels(
    device: RunDevice, create_module: Callable[[], nn.Module], inputs: Inputs
) -> ForwardResults:
    """Run forward on the CPU and on `device`, each with a new instance."""
    cpu_pass = cpu.run_on_cpu(create_module(), inputs)
    if device.kind == "cpu":
        device_level = LevelResult(
            VerificationLevel.DEVICE, LevelStatus.SKIPPED, "--device cpu: nothing was moved"
        )
        return ForwardResults(cpu_pass, None, (device_level, _judge_cpu_forward(cpu_pass)))
    device_pass = run_on_device(device, create_module(), inputs)
    mismatches = device_pass.device_mismatches
    if (
        device_pass.error
        and cuda.is_device_error(device_pass.error.error)
        and device.kind == "cuda"
    ):
        # CUDA reports one tensor, unnamed: a simulated pass finds all with their names.
        mismatches = simulated.run_simulated(
            create_module(), inputs, device.device
        ).device_mismatches
    levels = (
        _judge_device(device, cpu_pass, device_pass, mismatches),
        _judge_forward(device, cpu_pass, device_pass, mismatches),
    )
    return ForwardResults(cpu_pass, device_pass, levels, mismatches)


def skip_device_levels(
    device: RunDevice, reason: str, staying_keys: tuple[str, ...]
) -> tuple[LevelResult, ...]:
    """Return both levels as skipped, for lack of inputs; `reason` says why there are none."""
    keys_text = join_limited(fold_names(staying_keys), _MAX_STAYING_KEYS)
    details = (f"not moved with the module: {keys_text}",) if staying_keys else ()
    device_reason = "--device cpu: nothing was moved" if device.kind == "cpu" else reason
    return (
        LevelResult(VerificationLevel.DEVICE, LevelStatus.SKIPPED, device_reason, details=details),
        LevelResult(VerificationLevel.FORWARD, LevelStatus.SKIPPED, reason),
    )


def _format_mismatch(mismatch: DeviceMismatch) -> str:
    """Return "`attribute` is on DEVICE where OP at LINE needs DEVICE"."""
    name = f"`{mismatch.attribute}`" if mismatch.attribute else f"a tensor {mismatch.description}"
    location_text = f" at {mismatch.where}" if mismatch.where else ""
    return (
        f"{name} is on {mismatch.devices[0]} where {mismatch.op}{location_text} needs"
        f" {mismatch.devices[1]}"
    )


def _judge_device(
    device: RunDevice,
    cpu_pass: ForwardPass,
    device_pass: ForwardPass,
    mismatches: tuple[DeviceMismatch, ...],
) -> LevelResult:
    def make_result(status: LevelStatus, reason: str = "", *details: str) -> LevelResult:
        return LevelResult(VerificationLevel.DEVICE, status, reason, device.label, details)

    error = device_pass.error
    if mismatches:
        reason = join_limited(mismatches, 1, _format_mismatch, more=", and {} more")
        error_details = (str(error),) if error and device.kind == "cuda" else ()
        return make_result(LevelStatus.FAILED, reason, *error_details)
    if error is None:
        return (
            make_result(LevelStatus.INCONCLUSIVE, _format_unmodelled(device_pass))
            if device_pass.unmodelled_operations
            else make_result(LevelStatus.PASSED)
        )
    if device.kind == "cuda" and cuda.is_out_of_memory(error.error):
        return make_result(LevelStatus.INCONCLUSIVE, f"{error}: {device_pass.note}")
    if not device_pass.is_moved:
        status = LevelStatus.FAILED if device.kind == "cuda" else LevelStatus.INCONCLUSIVE
        return make_result(status, f"moving the module raised {error}")
    if cpu_pass.error is None and device.kind == "cuda" and cuda.is_device_error(error.error):
        return make_result(LevelStatus.FAILED, str(error))
    return make_result(LevelStatus.INCONCLUSIVE, f"the forward pass was aborted: {error}")


def _judge_forward(
    device: RunDevice,
    cpu_pass: ForwardPass,
    device_pass: ForwardPass,
    mismatches: tuple[DeviceMismatch, ...],
) -> LevelResult:
    def make_result(status: LevelStatus, reason: str = "", *details: str) -> LevelResult:
        return LevelResult(VerificationLevel.FORWARD, status, reason, device.label, details)

    error = device_pass.error
    if mismatches and device.kind == "simulated":
        return make_result(
            LevelStatus.FAILED,
            f"CUDA would raise an error at {mismatches[0].where or mismatches[0].op}",
        )
    if error is None:
        if device_pass.unmodelled_operations:
            return make_result(LevelStatus.INCONCLUSIVE, _format_unmodelled(device_pass))
        return make_result(
            LevelStatus.PASSED,
            describe_nan(device_pass.output),
            *_describe_output(cpu_pass, device_pass),
        )
    if device.kind == "cuda":
        is_memory_short = cuda.is_out_of_memory(error.error)
        status = LevelStatus.INCONCLUSIVE if is_memory_short else LevelStatus.FAILED
        return make_result(
            status, f"it raised {error}" + (f": {device_pass.note}" if device_pass.note else "")
        )
    if cpu_pass.error is not None and not _needs_cuda(cpu_pass.error):
        return make_result(LevelStatus.FAILED, f"it raised {cpu_pass.error}, also on the CPU")
    return make_result(
        LevelStatus.INCONCLUSIVE, f"a simulated device does not support this: {error}"
    )


def _judge_cpu_forward(cpu_pass: ForwardPass) -> LevelResult:
    if cpu_pass.error is None:
        return LevelResult(
            VerificationLevel.FORWARD,
            LevelStatus.PASSED,
            describe_nan(cpu_pass.output),
            "cpu",
            describe_tensors(cpu_pass.output),
        )
    status = LevelStatus.INCONCLUSIVE if _needs_cuda(cpu_pass.error) else LevelStatus.FAILED
    return LevelResult(VerificationLevel.FORWARD, status, f"it raised {cpu_pass.error}", "cpu")


def _describe_output(cpu_pass: ForwardPass, device_pass: ForwardPass) -> tuple[str, ...]:
    note = (device_pass.note,) if device_pass.note else ()
    comparison: tuple[str, ...] = ()
    if cpu_pass.error is None:
        comparison = (
            f"against the CPU: {_format_difference(device_pass.output, cpu_pass.output)}",
        )
    return (*describe_tensors(device_pass.output), *comparison, *note)


def _format_difference(actual: Any, expected: Any) -> str:
    return compare_outputs(actual, expected).summary


def _format_unmodelled(device_pass: ForwardPass) -> str:
    return "; ".join(device_pass.unmodelled_operations)


def _needs_cuda(error: UserCodeError) -> bool:
    return isinstance(error.error, NotImplementedError) or any(
        word in error.text for word in _NEEDS_CUDA
    )
