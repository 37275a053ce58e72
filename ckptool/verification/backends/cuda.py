"""nn.Module x Inputs -> ForwardPass on a real CUDA device."""

import re
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from ckptool.errors import UsageError
from ckptool.modules.user_code import UserCodeError
from ckptool.verification.forward_pass import ForwardPass, Inputs, prepare_forward
from ckptool.verification.pytree import tree_map

_GIB: Final = 1 << 30
_DEVICE_ERROR: Final = re.compile(r"same device|different device|on cpu|on CPU|device type|cuda:\d")


def select_cuda_device(name: str) -> torch.device:
    """Return the torch.device for "cuda" or "cuda:1", always with an index.

    Raises:
        UsageError: there is no CUDA device, or no such index.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UsageError(f"--device {name}: no CUDA device is available; use --device simulated")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: {error}") from error
    index = torch.cuda.current_device() if name == "cuda" else device.index
    if index >= count:
        raise UsageError(f"--device {name}: {count} are available, numbered from 0")
    return torch.device("cuda", index)


def run_on_cuda(module: nn.Module, inputs: Inputs, device: torch.device) -> ForwardPass:
    """Run forward on `device`; return the output on the CPU and the peak memory as `note`.

    Moves `module` to the device; do not use it again.
    """
    is_moved = False
    init_cuda: Callable[[], None] = torch.cuda.init
    init_cuda()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with prepare_forward(module), _force_exact_cudnn():
            module.to(device)
            is_moved = True
            output: Any = _call_forward(
                module, inputs.map_tensors(lambda tensor: tensor.to(device))
            )
            torch.cuda.synchronize(device)
            cpu_output = tree_map(output, Tensor.cpu)
    except UserCodeError as error:
        return ForwardPass(
            str(device), None, error, is_moved, note=_explain_out_of_memory(error, module, device)
        )
    return ForwardPass(str(device), cpu_output, None, is_moved, note=_format_peak_memory(device))


def is_device_error(error: BaseException) -> bool:
    """Whether `error` is torch's error for operands on different devices."""
    return isinstance(error, RuntimeError | ValueError | TypeError) and bool(
        _DEVICE_ERROR.search(str(error))
    )


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError)


def _call_forward(module: nn.Module, inputs: Inputs) -> Any:
    return module(*inputs.args, **inputs.kwargs)


def _force_exact_cudnn() -> Any:
    """Context manager: deterministic cuDNN, no TF32 in float32 convolutions."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


def _format_peak_memory(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / _GIB:.2f} GiB of device memory at most"


def _explain_out_of_memory(error: UserCodeError, module: nn.Module, device: torch.device) -> str:
    """Return the memory sizes in GiB if `error` is out of memory, else ""."""
    if not is_out_of_memory(error.error):
        return ""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values()
    module_nbytes = sum(tensor.nbytes for tensor in tensors)
    free_nbytes, total_nbytes = torch.cuda.mem_get_info(device)
    return (
        f"parameters and buffers take {module_nbytes / _GIB:.2f} GiB, {_format_peak_memory(device)}"
        f" before it failed; {free_nbytes / _GIB:.2f} of {total_nbytes / _GIB:.2f} GiB are free"
    )
