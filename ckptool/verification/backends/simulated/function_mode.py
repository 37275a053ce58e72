"""Torch function mode: run the user's torch calls on the CPU with simulated devices."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.dlpack import from_dlpack

from ckptool.modules.tensors.elements import iter_nested_tensors
from ckptool.verification.backends.simulated.device_tags import CPU, Origin
from ckptool.verification.backends.simulated.tracker import DeviceTracker, innermost_user_frame

PositionalArgs = tuple[Any, ...]
KeywordArgs = dict[str, Any]

_FROM_DATA_FUNCTIONS: Final = frozenset({torch.tensor, torch.as_tensor, torch.asarray})
"""Functions whose result is on the device of a tensor argument, and on the CPU for other data."""
_ALIASING_FUNCTIONS: Final = frozenset({torch.as_tensor, torch.asarray})
"""Functions that return their argument if nothing has to change."""


_PAD_PACKED: Final = torch._VF._pad_packed_sequence  # noqa: SLF001


class DeviceFunctionMode(TorchFunctionMode):
    """Returns simulated devices from tensor properties, and removes CUDA from call arguments."""

    def __init__(self, tracker: DeviceTracker) -> None:
        super().__init__()
        self._tracker = tracker
        self._tags = tracker.tags
        self._property_getters: Mapping[str, Callable[[Tensor], object]] = MappingProxyType(
            {
                "device": self._tags.get_device,
                "is_cuda": lambda tensor: self._tags.get_device(tensor).type == "cuda",
                "is_cpu": lambda tensor: self._tags.get_device(tensor).type == "cpu",
            }
        )
        self._handlers: Mapping[Any, Callable[[PositionalArgs, KeywordArgs], object]] = (
            MappingProxyType(
                {
                    Tensor.to: self._handle_to,
                    Tensor.cuda: self._handle_cuda,
                    Tensor.cpu: lambda args, _: self._move_tensor(args[0], CPU),
                    Tensor.type_as: lambda args, _: self._handle_to(args, {}),
                    Tensor.type: self._handle_type,
                    Tensor.get_device: self._handle_get_device,
                    Tensor.pin_memory: lambda args, _: self._move_tensor(args[0], CPU),
                    Tensor.is_pinned: lambda *_: False,
                    Tensor.numpy: self._handle_numpy,
                    Tensor.__array__: self._handle_numpy,
                    Tensor.tensor_split: self._handle_tensor_split,
                    torch.tensor_split: self._handle_tensor_split,
                    _PAD_PACKED: self._handle_pad_packed,
                }
            )
        )

    def __torch_function__(
        self, func: Any, types: Any, args: PositionalArgs = (), kwargs: KeywordArgs | None = None
    ) -> Any:
        keywords = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in {"__get__", "__set__"}:
            getter = self._property_getters.get(getattr(func.__self__, "__name__", ""))
            return getter(args[0]) if getter and name == "__get__" else func(*args, **keywords)
        handler = self._handlers.get(func)
        if handler is not None:
            return handler(args, dict(keywords))
        if func in _FROM_DATA_FUNCTIONS:
            return self._handle_from_data(func, args, dict(keywords))
        if func is torch.device or name == "_parse_to":
            # Only parses a device; places no tensor.
            return func(*args, **keywords)
        return self._call_and_tag(func, args, dict(keywords))

    def _call_and_tag(self, func: Any, args: PositionalArgs, keywords: KeywordArgs) -> Any:
        args, requested_device = self._strip_cuda_device(args, keywords)
        device = requested_device or self._tracker.find_device(
            [*iter_nested_tensors(args), *iter_nested_tensors(keywords)]
        )
        with self._tracker.set_ambient_device(device):
            result = func(*args, **keywords)
        for tensor in iter_nested_tensors(result):
            if requested_device is not None or not self._tags.has_tag(tensor):
                self._tracker.tag_created(tensor, device or CPU)
        return result

    def _strip_cuda_device(
        self, args: PositionalArgs, keywords: KeywordArgs
    ) -> tuple[PositionalArgs, torch.device | None]:
        """Return positional arguments with CUDA devices replaced by CPU, and the requested device.

        Replaces the device in `keywords` in place. The device is None if none was requested.
        """
        requested_device: torch.device | None = None
        if keywords.get("device") is not None:
            requested_device = self._resolve_device(keywords["device"])
            if requested_device.type == "cuda":
                keywords["device"] = CPU
        for value in args:
            if isinstance(value, torch.device):
                requested_device = self._resolve_device(value)
        return tuple(CPU if _is_cuda_device(value) else value for value in args), requested_device

    def _resolve_device(self, value: Any) -> torch.device:
        """Return the device for `value` (index, name or device), with an index if it is CUDA."""
        if isinstance(value, int):
            return torch.device("cuda", value)
        device = torch.device(value)
        if str(device) == "cuda":
            return self._tracker.target
        return CPU if device.type == "cpu" else device

    def _handle_from_data(self, func: Any, args: PositionalArgs, keywords: KeywordArgs) -> Any:
        data = args[0] if args else keywords.get("data", keywords.get("obj"))
        if not isinstance(data, Tensor):
            keywords.setdefault("device", None)
            keywords["device"] = keywords["device"] or torch.get_default_device()
            return self._call_and_tag(func, args, keywords)
        if func not in _ALIASING_FUNCTIONS:
            keywords["device"] = keywords.get("device") or self._tags.get_device(data)
            return self._call_and_tag(func, args, keywords)
        remaining = [value for value in (*args[1:], *keywords.values()) if value is not None]
        return self._handle_to((data, *remaining), {})

    def _handle_to(self, args: PositionalArgs, keywords: KeywordArgs) -> Tensor:
        tensor, *remaining = args
        device, dtype, flags = None, keywords.get("dtype"), []
        for value in (*remaining, keywords.get("device"), keywords.get("other")):
            if isinstance(value, Tensor):
                device, dtype = self._tags.get_device(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, bool):
                flags.append(value)
            elif value is not None:
                device = self._resolve_device(value)
        force_copy = bool(keywords.get("copy")) or flags[1:2] == [True]
        memory_format = keywords.get("memory_format", torch.preserve_format)
        return self._move_tensor(
            tensor, device, dtype, force_copy=force_copy, memory_format=memory_format
        )

    def _handle_cuda(self, args: PositionalArgs, keywords: KeywordArgs) -> Tensor:
        device = args[1] if len(args) > 1 else keywords.get("device")
        return self._move_tensor(
            args[0], self._tracker.target if device is None else self._resolve_device(device)
        )

    def _move_tensor(
        self,
        tensor: Tensor,
        device: torch.device | None,
        dtype: torch.dtype | None = None,
        *,
        force_copy: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Tensor:
        """Return `tensor` tagged with `device`; a copy or alias if it was on another device."""
        tag = self._tags.get_tag(tensor)
        target = device or tag.device
        real_device = target if target.type not in {"cpu", "cuda"} else None
        with self._tracker.set_ambient_device(tag.device):
            result = self._alias_parameter(tensor, dtype) if target != tag.device else None
            if result is None:
                result = tensor.to(
                    device=real_device,
                    dtype=dtype,
                    copy=force_copy or target != tag.device,
                    memory_format=memory_format,
                )
        if result is not tensor:
            is_move_to_cpu = target == CPU != tag.device
            origin_text = f"moved to the CPU at {innermost_user_frame() or 'an unknown place'}"
            self._tags.set_tag(
                result, target, Origin("", origin_text) if is_move_to_cpu else tag.origin
            )
        return result

    def _alias_parameter(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor | None:
        """Return a parameter as a new storage over the same memory, None if that is not possible.

        Only while the module is moved, when the old weights are no longer used: copying them
        would cost more than the pass.
        """
        is_plain = type(tensor) is nn.Parameter and tensor.layout is torch.strided
        if not (self._tracker.is_moving and is_plain and dtype in {None, tensor.dtype}):
            return None
        try:
            alias: Tensor = from_dlpack(tensor.detach())
        except (BufferError, RuntimeError, TypeError):
            # A dtype that DLPack does not support.
            return None
        return alias

    def _handle_type(self, args: PositionalArgs, keywords: KeywordArgs) -> Any:
        requested_type = args[1] if len(args) > 1 else keywords.get("dtype")
        type_name = (
            requested_type
            if isinstance(requested_type, str)
            else getattr(requested_type, "__name__", "")
        )
        is_on_cuda = self._tags.get_device(args[0]).type == "cuda"
        if requested_type is None:
            cpu_type_name: str = args[0].type()
            return (
                cpu_type_name.replace("torch.", "torch.cuda.", 1) if is_on_cuda else cpu_type_name
            )
        if isinstance(requested_type, torch.dtype):
            return self._move_tensor(args[0], None, requested_type)
        if not isinstance(requested_type, str):
            type_name = f"{requested_type.__module__}.{type_name}"
        dtype = torch.empty(0).type(type_name.replace(".cuda.", ".")).dtype
        return self._move_tensor(
            args[0], self._tracker.target if ".cuda." in type_name else CPU, dtype
        )

    def _handle_get_device(self, args: PositionalArgs, _: KeywordArgs) -> int:
        device = self._tags.get_device(args[0])
        return device.index if device.type == "cuda" else -1

    def _handle_numpy(self, args: PositionalArgs, keywords: KeywordArgs) -> Any:
        if self._tags.get_device(args[0]) != CPU:
            self._tracker.add_mismatch(args[0], CPU, "Tensor.numpy")
        return args[0].numpy(**{name: value for name, value in keywords.items() if name == "force"})

    def _handle_tensor_split(self, args: PositionalArgs, keywords: KeywordArgs) -> Any:
        split_indices = args[1] if len(args) > 1 else keywords.get("tensor_indices_or_sections")
        if isinstance(split_indices, Tensor) and self._tags.get_device(split_indices) != CPU:
            self._tracker.add_mismatch(split_indices, CPU, "torch.tensor_split")
        return self._call_and_tag(torch.tensor_split, args, keywords)

    def _handle_pad_packed(self, args: PositionalArgs, keywords: KeywordArgs) -> Any:
        """Unpack a packed sequence; its batch sizes and lengths are always on the CPU."""
        if self._tags.get_device(args[1]) != CPU:
            self._tracker.add_mismatch(args[1], CPU, "pad_packed_sequence")
        padded_batch, lengths = self._call_and_tag(_PAD_PACKED, args, keywords)
        self._tags.set_tag(lengths, CPU, Origin("", "lengths of a packed sequence"))
        return padded_batch, lengths


def _is_cuda_device(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"
