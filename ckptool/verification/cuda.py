"""nn.Module x Inputs -> ForwardPass on a real CUDA device."""

import re
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from ckptool.errors import UsageError
from ckptool.modules.usercode import UserCodeError
from ckptool.verification.leaves import mapped
from ckptool.verification.passes import Inputs, Pass, prepared

_GIB: Final = 1 << 30
_DEVICES: Final = re.compile(r"same device|different device|on cpu|on CPU|device type|cuda:\d")


def chosen(name: str) -> torch.device:
    """Return the torch.device for "cuda" or "cuda:1", always with an index.

    Raises:
        UsageError: there is no CUDA device, or no such index.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UsageError(f"--device {name}: there is no CUDA device here; try --device simulated")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: {error}") from error
    index = torch.cuda.current_device() if name == "cuda" else device.index
    if index >= count:
        raise UsageError(f"--device {name}: there are {count} here, numbered from 0")
    return torch.device("cuda", index)


def run(module: nn.Module, inputs: Inputs, device: torch.device) -> Pass:
    """Run forward on `device`; return the output on the CPU and the peak memory as `note`.

    Moves `module` to the device; do not use it again.
    """
    moved = False
    start: Callable[[], None] = torch.cuda.init
    start()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with prepared(module), _exact():
            module.to(device)
            moved = True
            output: Any = _call(module, inputs.each(lambda tensor: tensor.to(device)))
            torch.cuda.synchronize(device)
            back = mapped(output, Tensor.cpu)
    except UserCodeError as error:
        return Pass(str(device), None, error, moved, note=_memory(error, module, device))
    return Pass(str(device), back, None, moved, note=_peak(device))


def about_devices(error: BaseException) -> bool:
    """Whether `error` is torch's error for operands on different devices."""
    return isinstance(error, RuntimeError | ValueError | TypeError) and bool(
        _DEVICES.search(str(error))
    )


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError)


def _call(module: nn.Module, inputs: Inputs) -> Any:
    return module(*inputs.args, **inputs.kwargs)


def _exact() -> Any:
    """Context manager: deterministic cuDNN, no TF32 in float32 convolutions."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


def _peak(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / _GIB:.2f} GiB of device memory at most"


def _memory(error: UserCodeError, module: nn.Module, device: torch.device) -> str:
    """Return the memory sizes in GiB if `error` is out of memory, else ""."""
    if not out_of_memory(error.error):
        return ""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
    held = sum(tensor.nbytes for tensor in tensors)
    free, total = torch.cuda.mem_get_info(device)
    return (
        f"parameters and buffers take {held / _GIB:.2f} GiB, {_peak(device)} before it ended; "
        f"{free / _GIB:.2f} of {total / _GIB:.2f} GiB are free"
    )
