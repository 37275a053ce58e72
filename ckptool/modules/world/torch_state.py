"""Settings of torch that hold for a whole process or thread; torch is imported when one is read."""

from collections.abc import Callable, Mapping
from typing import Any, Final

_GLOBAL_HOOKS: Final = (
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
    "_global_is_full_backward_hook",
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_forward_hooks_always_called",
    "_global_forward_hooks_with_kwargs",
    "_global_buffer_registration_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)
_SELF_ALLOWING_PACKAGES: Final = ("torch._dynamo.", "torch.distributed.", "torch.nested.")
"""Prefixes of torch's modules whose import calls torch.serialization.add_safe_globals."""
_TINY: Final = 5e-324
"""The smallest float: 0 where denormal numbers are flushed."""


def _read_device() -> Any:
    """Return the device of torch.set_default_device(), None if it was not called."""
    import torch

    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)  # noqa: SLF001
    return None if context is None else context.device


def _write_device(device: Any) -> None:
    import torch

    torch.set_default_device(device)
    context = torch._GLOBAL_DEVICE_CONTEXT  # noqa: SLF001
    # With None behind it, torch.get_default_device() of torch 2.6 raises.
    if getattr(context, "device_context", False) is None:
        del context.device_context


def _read_deterministic() -> tuple[bool, bool, bool]:
    import torch

    deterministic: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
    )


def _write_deterministic(values: tuple[bool, bool, bool]) -> None:
    import torch

    # Not torch.use_deterministic_algorithms(), which imports the compiler.
    torch._C._set_deterministic_algorithms(values[0], warn_only=values[1])  # noqa: SLF001
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = values[2]


def _read_hooks() -> tuple[Any, ...]:
    from torch.nn.modules import module

    hooks = (getattr(module, name, None) for name in _GLOBAL_HOOKS)
    return tuple(dict(value) if isinstance(value, dict) else value for value in hooks)


def _write_hooks(values: tuple[Any, ...]) -> None:
    from torch.nn.modules import module

    for name, value in zip(_GLOBAL_HOOKS, values, strict=True):
        if isinstance(value, dict):
            hooks = getattr(module, name)
            hooks.clear()
            hooks.update(value)
        elif hasattr(module, name):
            setattr(module, name, value)


def _read_module_class() -> dict[str, Any]:
    from torch import nn

    return dict(vars(nn.Module))


def _write_module_class(names: Mapping[str, Any]) -> None:
    from torch import nn

    current = vars(nn.Module)
    for name in current.keys() - names.keys():
        delattr(nn.Module, name)
    for name, value in names.items():
        if name not in current or current[name] is not value:
            setattr(nn.Module, name, value)


def _read_safe_globals() -> list[Any]:
    import torch

    return list(torch.serialization.get_safe_globals())


def _write_safe_globals(names: list[Any]) -> None:
    """Allow `names`, and what torch allowed itself meanwhile: it does so at an import, once."""
    import torch

    allowed_by_torch = [
        name
        for name in torch.serialization.get_safe_globals()
        if str(getattr(name, "__module__", "")).startswith(_SELF_ALLOWING_PACKAGES)
    ]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*names, *allowed_by_torch])


def _read_print_options() -> dict[str, Any]:
    import torch

    return dict(vars(torch._tensor_str.PRINT_OPTS))  # noqa: SLF001


def _write_print_options(values: Mapping[str, Any]) -> None:
    import torch

    vars(torch._tensor_str.PRINT_OPTS).update(values)  # noqa: SLF001


def _read_autocast() -> tuple[Any, ...]:
    import torch

    devices = ("cpu", "cuda")
    return (
        *(torch.is_autocast_enabled(device) for device in devices),
        *(torch.get_autocast_dtype(device) for device in devices),
        torch.is_autocast_cache_enabled(),
    )


def _write_autocast(values: tuple[Any, ...]) -> None:
    import torch

    cpu_enabled, cuda_enabled, cpu_dtype, cuda_dtype, cache_enabled = values
    torch.set_autocast_enabled("cpu", cpu_enabled)
    torch.set_autocast_enabled("cuda", cuda_enabled)
    torch.set_autocast_dtype("cpu", cpu_dtype)
    torch.set_autocast_dtype("cuda", cuda_dtype)
    torch.set_autocast_cache_enabled(cache_enabled)


def _read_denormal() -> bool:
    factor = float(_TINY > 0) or 1.0
    return _TINY * factor == 0.0


def _make_setting(reader: str, writer: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Return the setting that two functions of torch read and write, by dotted name."""

    def find(name: str) -> Callable[..., Any]:
        import torch

        result: Any = torch
        for part in name.split("."):
            result = getattr(result, part)
        function: Callable[..., Any] = result
        return function

    def write(value: Any) -> None:
        find(writer)(value)

    return lambda: find(reader)(), write  # noqa: PLW0108 (torch is imported then)


def _read_load_functions() -> tuple[Any, ...]:
    import torch

    return torch.load, torch.save


def _write_load_functions(functions: tuple[Any, ...]) -> None:
    import torch

    torch.load, torch.save = functions


TORCH_STATE: Final[dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]] = {
    "default dtype": _make_setting("get_default_dtype", "set_default_dtype"),
    "default device": (_read_device, _write_device),
    "gradient mode": _make_setting("is_grad_enabled", "_C._set_grad_enabled"),
    "deterministic algorithms": (_read_deterministic, _write_deterministic),
    "number of threads": _make_setting("get_num_threads", "set_num_threads"),
    "matmul precision": _make_setting(
        "get_float32_matmul_precision", "set_float32_matmul_precision"
    ),
    "cudnn.enabled": _make_setting("_C._get_cudnn_enabled", "_C._set_cudnn_enabled"),
    "cudnn.benchmark": _make_setting("_C._get_cudnn_benchmark", "_C._set_cudnn_benchmark"),
    "cudnn.deterministic": _make_setting(
        "_C._get_cudnn_deterministic", "_C._set_cudnn_deterministic"
    ),
    "mkldnn": _make_setting("_C._get_mkldnn_enabled", "_C._set_mkldnn_enabled"),
    "flush denormal": (_read_denormal, _make_setting("", "set_flush_denormal")[1]),
    "anomaly detection": _make_setting("is_anomaly_enabled", "autograd.set_detect_anomaly"),
    "autocast": (_read_autocast, _write_autocast),
    "print options": (_read_print_options, _write_print_options),
    "warn always": _make_setting("is_warn_always_enabled", "set_warn_always"),
    "safe globals": (_read_safe_globals, _write_safe_globals),
    "mmap options": _make_setting(
        "serialization.get_default_mmap_options", "serialization.set_default_mmap_options"
    ),
    "load endianness": _make_setting(
        "serialization.get_default_load_endianness", "serialization.set_default_load_endianness"
    ),
    "overwrite on conversion": _make_setting(
        "__future__.get_overwrite_module_params_on_conversion",
        "__future__.set_overwrite_module_params_on_conversion",
    ),
    "swap on conversion": _make_setting(
        "__future__.get_swap_module_params_on_conversion",
        "__future__.set_swap_module_params_on_conversion",
    ),
    "hooks of all modules": (_read_hooks, _write_hooks),
    "nn.Module": (_read_module_class, _write_module_class),
    "torch.load": (_read_load_functions, _write_load_functions),
}
"""Name -> functions that read and write it."""
