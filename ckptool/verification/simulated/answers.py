"""Patch torch's CUDA queries to answer as on a machine with a CUDA device."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, Final

import torch

_GIB: Final = 1 << 30


class _Chosen:
    """Replacement of `torch.cuda.device(...)` that does nothing: there is only one device."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@contextmanager
def answering(device: torch.device) -> Iterator[None]:
    """Context manager that patches CUDA queries for `device`, and disables dispatcher bypasses."""
    with ExitStack() as stack:
        stack.enter_context(_replaced(torch.cuda, _cuda(device)))
        if hasattr(torch, "accelerator"):
            stack.enter_context(_replaced(torch.accelerator, _accelerator(device)))
        stack.enter_context(_uncompiled())
        # Attention's fast path is off under a torch function mode; on a real device it is on.
        no_mode = {"has_torch_function": _saying(answer=False)}
        stack.enter_context(_replaced(torch.overrides, no_mode))
        # cuDNN would receive CPU memory.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _cuda(device: torch.device) -> Mapping[str, object]:
    return {
        "is_available": _yes,
        "is_initialized": _yes,
        "device_count": _saying(device.index + 1),
        "current_device": _saying(device.index),
        "set_device": _saying(None),
        "device": _Chosen,
        "synchronize": _saying(None),
        "empty_cache": _saying(None),
        "get_device_name": _saying("simulated"),
        "get_device_capability": _saying((9, 0)),
        "is_bf16_supported": _yes,
        "memory_allocated": _saying(0),
        "max_memory_allocated": _saying(0),
        "mem_get_info": _saying((80 * _GIB, 80 * _GIB)),
        "manual_seed": _saying(None),
        "manual_seed_all": _saying(None),
        "get_rng_state": lambda *_, **__: torch.empty(0, dtype=torch.uint8),
        "set_rng_state": _saying(None),
    }


def _accelerator(device: torch.device) -> Mapping[str, object]:
    return {
        "is_available": _yes,
        "current_accelerator": _saying(torch.device("cuda")),
        "device_count": _saying(device.index + 1),
        "current_device_index": _saying(device.index),
        "current_device_idx": _saying(device.index),
        "synchronize": _saying(None),
    }


def _yes(*_: object, **__: object) -> bool:
    return True


def _saying(answer: object) -> Callable[..., object]:
    return lambda *_, **__: answer


@contextmanager
def _replaced(module: ModuleType, values: Mapping[str, object]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Disable torch.compile: compiled code bypasses the patched device queries."""
    with _replaced(torch, {"compile": _as_it_is}), ExitStack() as stack:
        # Importing the compiler takes longer than most passes; if not imported, nothing to set.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _as_it_is(model: Any = None, **_: object) -> Any:
    return model if model is not None else _as_it_is
