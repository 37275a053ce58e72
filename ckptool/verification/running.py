"""nn.Module x Inputs x RunDevice -> ForwardResults: levels "device" and "forward"."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from ckptool.errors import UsageError
from ckptool.modules.usercode import UserCodeError
from ckptool.verification import cpu, cuda, simulated
from ckptool.verification.facts import Clash, Level, LevelResult, Status
from ckptool.verification.outputs import described, difference
from ckptool.verification.passes import Inputs, Pass

_NEEDS_CUDA: Final = ("not compiled with CUDA", "NVIDIA", "No CUDA GPUs", "CUDA driver", "Triton")
"""Parts of error messages of code that requires CUDA."""


@dataclass(frozen=True, slots=True)
class Device:
    """Device to run a module on."""

    kind: str
    """"cpu", "simulated" or "cuda"."""
    device: torch.device

    @property
    def words(self) -> str:
        return f"simulated {self.device}" if self.kind == "simulated" else str(self.device)


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """Forward passes of one module on the CPU and on the device, and their level results."""

    cpu: Pass
    device: Pass | None
    """None if the device is the CPU."""
    levels: tuple[LevelResult, LevelResult]
    clashes: tuple[Clash, ...] = ()


def choose(name: str) -> Device:
    """Return the device for "auto", "cpu", "simulated", "simulated:1", "cuda" or "cuda:1".

    "auto" is CUDA if available, else simulated.

    Raises:
        UsageError: the device does not exist.
    """
    kind, _, index = name.partition(":")
    if name == "cpu":
        return Device("cpu", torch.device("cpu"))
    if kind == "simulated" and (not index or index.isdigit()):
        return Device("simulated", torch.device("cuda", int(index or 0)))
    if kind == "cuda":
        return Device("cuda", cuda.chosen(name))
    if name == "auto":
        return choose("cuda" if torch.cuda.is_available() else "simulated")
    raise UsageError(f"--device {name}: expected auto, cuda, cuda:1, simulated or cpu")


def on(device: Device, module: nn.Module, inputs: Inputs) -> Pass:
    """Run one forward pass on `device`; may move `module`, do not use it again."""
    match device.kind:
        case "cuda":
            return cuda.run(module, inputs, device.device)
        case "simulated":
            return simulated.run(module, inputs, device.device)
        case _:
            return cpu.run(module, inputs)


def run(device: Device, make: Callable[[], nn.Module], inputs: Inputs) -> Ran:
    """Run forward on the CPU and on `device`, each with a new instance."""
    plain = cpu.run(make(), inputs)
    if device.kind == "cpu":
        moved = LevelResult(Level.DEVICE, Status.SKIPPED, "--device cpu: nothing was moved")
        return Ran(plain, None, (moved, _forward_on_cpu(plain)))
    there = on(device, make(), inputs)
    clashes = there.clashes
    if there.error and cuda.about_devices(there.error.error) and device.kind == "cuda":
        # CUDA reports one tensor, unnamed: a simulated pass finds all with their names.
        clashes = simulated.run(make(), inputs, device.device).clashes
    levels = (_moved(device, plain, there, clashes), _forward(device, plain, there, clashes))
    return Ran(plain, there, levels, clashes)


def without_inputs(device: Device, reason: str, left: tuple[str, ...]) -> tuple[LevelResult, ...]:
    """Return both levels as skipped, for lack of inputs; `reason` says why there are none."""
    stay = (f"stay behind when the module moves: {', '.join(left)}",) if left else ()
    moved = "--device cpu: nothing was moved" if device.kind == "cpu" else reason
    return (
        LevelResult(Level.DEVICE, Status.SKIPPED, moved, details=stay),
        LevelResult(Level.FORWARD, Status.SKIPPED, reason),
    )


def clash_words(clash: Clash) -> str:
    """Return "`attribute` is on DEVICE where OP at LINE needs DEVICE"."""
    name = f"`{clash.attribute}`" if clash.attribute else f"a tensor {clash.what}"
    at = f" at {clash.where}" if clash.where else ""
    return f"{name} is on {clash.devices[0]} where {clash.op}{at} needs {clash.devices[1]}"


def _moved(device: Device, plain: Pass, there: Pass, clashes: tuple[Clash, ...]) -> LevelResult:
    def say(status: Status, reason: str = "", *details: str) -> LevelResult:
        return LevelResult(Level.DEVICE, status, reason, device.words, details)

    error = there.error
    if clashes:
        more = f", and {len(clashes) - 1} more" if len(clashes) > 1 else ""
        said = (str(error),) if error and device.kind == "cuda" else ()
        return say(Status.FAILED, clash_words(clashes[0]) + more, *said)
    if error is None:
        return (
            say(Status.INCONCLUSIVE, _unmodelled(there)) if there.unmodelled else say(Status.PASSED)
        )
    if device.kind == "cuda" and cuda.out_of_memory(error.error):
        return say(Status.INCONCLUSIVE, f"{error}: {there.note}")
    if not there.moved:
        status = Status.FAILED if device.kind == "cuda" else Status.INCONCLUSIVE
        return say(status, f"moving the module raised {error}")
    if plain.error is None and device.kind == "cuda" and cuda.about_devices(error.error):
        return say(Status.FAILED, str(error))
    return say(Status.INCONCLUSIVE, f"the pass ended before its end: {error}")


def _forward(device: Device, plain: Pass, there: Pass, clashes: tuple[Clash, ...]) -> LevelResult:
    def say(status: Status, reason: str = "", *details: str) -> LevelResult:
        return LevelResult(Level.FORWARD, status, reason, device.words, details)

    error = there.error
    if clashes and device.kind == "simulated":
        return say(Status.FAILED, f"CUDA ends it at {clashes[0].where or clashes[0].op}")
    if error is None:
        if there.unmodelled:
            return say(Status.INCONCLUSIVE, _unmodelled(there))
        return say(Status.PASSED, "", *_output(plain, there))
    if device.kind == "cuda":
        lacking = cuda.out_of_memory(error.error)
        status = Status.INCONCLUSIVE if lacking else Status.FAILED
        return say(status, f"it raised {error}" + (f": {there.note}" if there.note else ""))
    if plain.error is not None and not _needs_cuda(plain.error):
        return say(Status.FAILED, f"it raised {plain.error}, on the CPU as well")
    return say(Status.INCONCLUSIVE, f"a simulated device cannot do this: {error}")


def _forward_on_cpu(plain: Pass) -> LevelResult:
    if plain.error is None:
        return LevelResult(Level.FORWARD, Status.PASSED, "", "cpu", described(plain.output))
    status = Status.INCONCLUSIVE if _needs_cuda(plain.error) else Status.FAILED
    return LevelResult(Level.FORWARD, status, f"it raised {plain.error}", "cpu")


def _output(plain: Pass, there: Pass) -> tuple[str, ...]:
    note = (there.note,) if there.note else ()
    against: tuple[str, ...] = ()
    if plain.error is None:
        against = (f"against the CPU: {_apart(there.output, plain.output)}",)
    return (*described(there.output), *against, *note)


def _apart(actual: Any, expected: Any) -> str:
    return difference(actual, expected).words


def _unmodelled(there: Pass) -> str:
    return "; ".join(there.unmodelled)


def _needs_cuda(error: UserCodeError) -> bool:
    return isinstance(error.error, NotImplementedError) or any(
        word in str(error.error) for word in _NEEDS_CUDA
    )
