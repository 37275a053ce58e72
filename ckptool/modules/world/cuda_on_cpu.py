"""Run a constructor that puts tensors on a CUDA device where there is none: they stay on the CPU.

Each such tensor is marked, so that the simulated device takes it for one on the device.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ckptool.modules.lightning import configure_module
from ckptool.modules.tensors.elements import iter_nested_tensors
from ckptool.modules.user_code import read_message
from ckptool.modules.world.patched_cuda import patched_cuda_queries

DEVICE: Final = torch.device("cuda", 0)
_PLACED: Final = WeakIdKeyDictionary()
"""The tensors that would be on a CUDA device, by identity."""
_MISSING_CUDA: Final = re.compile(r"cuda|nvidia|accelerator device", re.IGNORECASE)


def _is_missing_cuda(error: BaseException) -> bool:
    """Whether an exception may be due to a CUDA device that is not there."""
    return bool(_MISSING_CUDA.search(read_message(error))) and not torch.cuda.is_available()


def is_placed_on_cuda(value: object) -> bool:
    """Whether `cuda_on_cpu` kept a tensor on the CPU that was put on a CUDA device."""
    return bool(_PLACED.data) and isinstance(value, Tensor) and value in _PLACED


def call_constructor(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> tuple[Any, bool]:
    """Call a constructor; if it needs a CUDA device that is not there, again with `cuda_on_cpu`.

    What is built later in a LightningModule, by its configure_model(), is built as well.

    Returns:
        What it returns, and whether it was called with `cuda_on_cpu`.

    Raises:
        BaseException: what it raises.
    """
    try:
        return configure_module(function(**kwargs)), False
    except Exception as error:
        if not _is_missing_cuda(error):
            raise
    with cuda_on_cpu():
        return configure_module(function(**kwargs)), True


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Context in which there seems to be a CUDA device, whose tensors are on the CPU."""
    with patched_cuda_queries(DEVICE), _CudaOnCpuMode():
        yield


class _CudaOnCpuMode(TorchFunctionMode):
    """Takes CUDA devices out of calls, and marks the tensors that would be on one."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "_parse_to":  # it only parses, and knows no number without a device
            return func(*(DEVICE if type(value) is int else value for value in args), **keywords)
        if func is torch.device or name == "__set__":
            return func(*args, **keywords)
        if name == "__get__":
            return _read_property(func, args[0])
        is_move = func in {Tensor.to, Tensor.cuda, Tensor.cpu}
        if is_move:
            return _move_tensor(func, args, keywords)
        has_device = any(map(_is_cuda, (*args, keywords.get("device"))))
        args = tuple(torch.device("cpu") if _is_cuda(value) else value for value in args)
        if _is_cuda(keywords.get("device")):
            keywords["device"] = torch.device("cpu")
        if keywords.get("pin_memory"):
            del keywords["pin_memory"]
        result = func(*args, **keywords)
        tensors = iter_nested_tensors((args, keywords), 3)
        if has_device or any(map(is_placed_on_cuda, tensors)):
            for tensor in iter_nested_tensors(result, 3):
                _PLACED[tensor] = True
        return result


def _is_cuda(value: object) -> bool:
    """Whether an argument is a CUDA device; a number is one for `.to()` alone."""
    if isinstance(value, str):
        return re.fullmatch(r"cuda(:\d+)?", value) is not None
    return isinstance(value, torch.device) and value.type == "cuda"


def _read_property(func: Any, tensor: Any) -> Any:
    name = getattr(func.__self__, "__name__", "")
    if name in {"device", "is_cuda", "is_cpu"} and is_placed_on_cuda(tensor):
        return {"device": DEVICE, "is_cuda": True, "is_cpu": False}[name]
    return func(tensor)


def _move_tensor(func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """Return what `.to()`, `.cuda()` or `.cpu()` returns, marked if it would be on CUDA."""
    tensor, operands = args[0], args[1:]
    if func is Tensor.to:
        devices = [value for value in (*operands, keywords.get("device")) if _is_device(value)]
        is_on_cuda = (
            _is_cuda(devices[0]) or type(devices[0]) is int
            if devices
            else any(map(is_placed_on_cuda, (tensor, *operands)))
        )
        if is_on_cuda:
            operands = tuple(tensor.device if _is_device(value) else value for value in operands)
            keywords |= {"device": tensor.device} if "device" in keywords else {}
        result: Tensor = tensor.to(*operands, **keywords)
    else:
        is_on_cuda, result = func is Tensor.cuda, tensor
    is_moved = is_on_cuda != is_placed_on_cuda(tensor)
    result = result.clone() if is_moved and result is tensor else result
    if is_on_cuda:
        _PLACED[result] = True
    elif is_placed_on_cuda(result):
        del _PLACED[result]
    return result


def _is_device(value: object) -> bool:
    return isinstance(value, torch.device | str) or type(value) is int
