"""Patch torch's CUDA queries to answer as on a machine with a CUDA device."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, Final

import torch

_GIB: Final = 1 << 30


class _DeviceContext:
    """Replacement of `torch.cuda.device(...)` that does nothing: there is only one device."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@contextmanager
def patched_cuda_queries(device: torch.device) -> Iterator[None]:
    """Context manager that patches CUDA queries for `device`, and disables dispatcher bypasses."""
    with ExitStack() as stack:
        stack.enter_context(_patch_attributes(torch.cuda, _list_cuda_replacements(device)))
        if hasattr(torch, "accelerator"):
            stack.enter_context(
                _patch_attributes(torch.accelerator, _list_accelerator_replacements(device))
            )
        stack.enter_context(_disable_compile())
        # Attention's fast path is off under a torch function mode; on a real device it is on.
        override_replacements = {"has_torch_function": _make_constant(answer=False)}
        stack.enter_context(_patch_attributes(torch.overrides, override_replacements))
        # cuDNN would receive CPU memory.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _list_cuda_replacements(device: torch.device) -> Mapping[str, object]:
    return {
        "is_available": _return_true,
        "is_initialized": _return_true,
        "device_count": _make_constant(device.index + 1),
        "current_device": _make_constant(device.index),
        "set_device": _make_constant(None),
        "device": _DeviceContext,
        "synchronize": _make_constant(None),
        "empty_cache": _make_constant(None),
        "get_device_name": _make_constant("simulated"),
        "get_device_capability": _make_constant((9, 0)),
        "is_bf16_supported": _return_true,
        "memory_allocated": _make_constant(0),
        "max_memory_allocated": _make_constant(0),
        "mem_get_info": _make_constant((80 * _GIB, 80 * _GIB)),
        "manual_seed": _make_constant(None),
        "manual_seed_all": _make_constant(None),
        "get_rng_state": lambda *_, **__: torch.empty(0, dtype=torch.uint8),
        "set_rng_state": _make_constant(None),
    }


def _list_accelerator_replacements(device: torch.device) -> Mapping[str, object]:
    return {
        "is_available": _return_true,
        "current_accelerator": _make_constant(torch.device("cuda")),
        "device_count": _make_constant(device.index + 1),
        "current_device_index": _make_constant(device.index),
        "current_device_idx": _make_constant(device.index),
        "synchronize": _make_constant(None),
    }


def _return_true(*_: object, **__: object) -> bool:
    return True


def _make_constant(answer: object) -> Callable[..., object]:
    return lambda *_, **__: answer


@contextmanager
def _patch_attributes(module: ModuleType, replacements: Mapping[str, object]) -> Iterator[None]:
    originals = {name: getattr(module, name) for name in replacements if hasattr(module, name)}
    try:
        for name in originals:
            setattr(module, name, replacements[name])
        yield
    finally:
        for name, value in originals.items():
            setattr(module, name, value)


@contextmanager
def _disable_compile() -> Iterator[None]:
    """Disable torch.compile: compiled code bypasses the patched device queries."""
    with _patch_attributes(torch, {"compile": _return_uncompiled}), ExitStack() as stack:
        # Importing the compiler takes longer than most passes; if not imported, nothing to set.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _return_uncompiled(model: Any = None, **_: object) -> Any:
    return model if model is not None else _return_uncompiled
