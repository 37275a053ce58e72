"""Torch function mode: run the user's torch calls on the CPU with simulated devices."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.dlpack import from_dlpack

from ckptool.verification.simulated.operands import tensors_in
from ckptool.verification.simulated.record import Record, here
from ckptool.verification.simulated.tags import CPU, Origin

Arguments = tuple[Any, ...]
Named = dict[str, Any]

_FROM_DATA: Final = frozenset({torch.tensor, torch.as_tensor, torch.asarray})
"""Functions whose result is on the device of a tensor argument, and on the CPU for other data."""
_ALIASING: Final = frozenset({torch.as_tensor, torch.asarray})
"""Functions that return their argument if nothing has to change."""


_PAD: Final = torch._VF._pad_packed_sequence  # noqa: SLF001


class Front(TorchFunctionMode):
    """Returns simulated devices from tensor properties, and removes CUDA from call arguments."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record
        self._tags = record.tags
        self._properties: Mapping[str, Callable[[Tensor], object]] = MappingProxyType(
            {
                "device": self._tags.device,
                "is_cuda": lambda tensor: self._tags.device(tensor).type == "cuda",
                "is_cpu": lambda tensor: self._tags.device(tensor).type == "cpu",
            }
        )
        self._methods: Mapping[Any, Callable[[Arguments, Named], object]] = MappingProxyType(
            {
                Tensor.to: self._to,
                Tensor.cuda: self._cuda,
                Tensor.cpu: lambda args, _: self._moved(args[0], CPU),
                Tensor.type_as: lambda args, _: self._to(args, {}),
                Tensor.type: self._type,
                Tensor.get_device: self._get_device,
                Tensor.pin_memory: lambda args, _: self._moved(args[0], CPU),
                Tensor.is_pinned: lambda *_: False,
                Tensor.numpy: self._numpy,
                Tensor.__array__: self._numpy,
                Tensor.tensor_split: self._tensor_split,
                torch.tensor_split: self._tensor_split,
                _PAD: self._padded,
            }
        )

    def __torch_function__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Named | None = None
    ) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in {"__get__", "__set__"}:
            answer = self._properties.get(getattr(func.__self__, "__name__", ""))
            return answer(args[0]) if answer and name == "__get__" else func(*args, **named)
        method = self._methods.get(func)
        if method is not None:
            return method(args, dict(named))
        if func in _FROM_DATA:
            return self._from_data(func, args, dict(named))
        if func is torch.device or name == "_parse_to":
            # Only parses a device; places no tensor.
            return func(*args, **named)
        return self._called(func, args, dict(named))

    def _called(self, func: Any, args: Arguments, named: Named) -> Any:
        args, wanted = self._without_device(args, named)
        device = wanted or self._record.home([*tensors_in(args), *tensors_in(named)])
        with self._record.within(device):
            result = func(*args, **named)
        for tensor in tensors_in(result):
            if wanted is not None or not self._tags.knows(tensor):
                self._record.created(tensor, device or CPU)
        return result

    def _without_device(
        self, args: Arguments, named: Named
    ) -> tuple[Arguments, torch.device | None]:
        """Return positional arguments with CUDA devices replaced by CPU, and the requested device.

        Replaces the device in `keywords` in place. The device is None if none was requested.
        """
        wanted: torch.device | None = None
        if named.get("device") is not None:
            wanted = self._device(named["device"])
            if wanted.type == "cuda":
                named["device"] = CPU
        for value in args:
            if isinstance(value, torch.device):
                wanted = self._device(value)
        return tuple(CPU if _is_cuda(value) else value for value in args), wanted

    def _device(self, value: Any) -> torch.device:
        """Return the device for `value` (index, name or device), with an index if it is CUDA."""
        if isinstance(value, int):
            return torch.device("cuda", value)
        named = torch.device(value)
        if str(named) == "cuda":
            return self._record.target
        return CPU if named.type == "cpu" else named

    def _from_data(self, func: Any, args: Arguments, named: Named) -> Any:
        data = args[0] if args else named.get("data", named.get("obj"))
        if not isinstance(data, Tensor):
            named.setdefault("device", None)
            named["device"] = named["device"] or torch.get_default_device()
            return self._called(func, args, named)
        if func not in _ALIASING:
            named["device"] = named.get("device") or self._tags.device(data)
            return self._called(func, args, named)
        rest = [value for value in (*args[1:], *named.values()) if value is not None]
        return self._to((data, *rest), {})

    def _to(self, args: Arguments, named: Named) -> Tensor:
        tensor, *rest = args
        device, dtype, flags = None, named.get("dtype"), []
        for value in (*rest, named.get("device"), named.get("other")):
            if isinstance(value, Tensor):
                device, dtype = self._tags.device(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, bool):
                flags.append(value)
            elif value is not None:
                device = self._device(value)
        copied = bool(named.get("copy")) or flags[1:2] == [True]
        layout = named.get("memory_format", torch.preserve_format)
        return self._moved(tensor, device, dtype, copied=copied, memory_format=layout)

    def _cuda(self, args: Arguments, named: Named) -> Tensor:
        device = args[1] if len(args) > 1 else named.get("device")
        return self._moved(args[0], self._record.target if device is None else self._device(device))

    def _moved(
        self,
        tensor: Tensor,
        device: torch.device | None,
        dtype: torch.dtype | None = None,
        *,
        copied: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Tensor:
        """Return `tensor` tagged with `device`; a copy or alias if it was on another device."""
        tag = self._tags.of(tensor)
        target = device or tag.device
        really = target if target.type not in {"cpu", "cuda"} else None
        with self._record.within(tag.device):
            result = self._shared(tensor, dtype) if target != tag.device else None
            if result is None:
                result = tensor.to(
                    device=really,
                    dtype=dtype,
                    copy=copied or target != tag.device,
                    memory_format=memory_format,
                )
        if result is not tensor:
            back = target == CPU != tag.device
            text = f"moved to the CPU at {here() or 'an unknown place'}"
            self._tags.put(result, target, Origin("", text) if back else tag.origin)
        return result

    def _shared(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor | None:
        """Return a parameter as a new storage over the same memory, None if that is not possible.

        Only while the module is moved, when the old weights are no longer used: copying them
        would cost more than the pass.
        """
        plain = type(tensor) is nn.Parameter and tensor.layout is torch.strided
        if not (self._record.moving and plain and dtype in {None, tensor.dtype}):
            return None
        try:
            shared: Tensor = from_dlpack(tensor.detach())
        except (BufferError, RuntimeError, TypeError):
            # A dtype that DLPack does not support.
            return None
        return shared

    def _type(self, args: Arguments, named: Named) -> Any:
        wanted = args[1] if len(args) > 1 else named.get("dtype")
        name = wanted if isinstance(wanted, str) else getattr(wanted, "__name__", "")
        on_cuda = self._tags.device(args[0]).type == "cuda"
        if wanted is None:
            plain: str = args[0].type()
            return plain.replace("torch.", "torch.cuda.", 1) if on_cuda else plain
        if isinstance(wanted, torch.dtype):
            return self._moved(args[0], None, wanted)
        if not isinstance(wanted, str):
            name = f"{wanted.__module__}.{name}"
        kind = torch.empty(0).type(name.replace(".cuda.", ".")).dtype
        return self._moved(args[0], self._record.target if ".cuda." in name else CPU, kind)

    def _get_device(self, args: Arguments, _: Named) -> int:
        device = self._tags.device(args[0])
        return device.index if device.type == "cuda" else -1

    def _numpy(self, args: Arguments, named: Named) -> Any:
        if self._tags.device(args[0]) != CPU:
            self._record.clash(args[0], CPU, "Tensor.numpy")
        return args[0].numpy(**{k: v for k, v in named.items() if k == "force"})

    def _tensor_split(self, args: Arguments, named: Named) -> Any:
        places = args[1] if len(args) > 1 else named.get("tensor_indices_or_sections")
        if isinstance(places, Tensor) and self._tags.device(places) != CPU:
            self._record.clash(places, CPU, "torch.tensor_split")
        return self._called(torch.tensor_split, args, named)

    def _padded(self, args: Arguments, named: Named) -> Any:
        """Unpack a packed sequence; its batch sizes and lengths are always on the CPU."""
        if self._tags.device(args[1]) != CPU:
            self._record.clash(args[1], CPU, "pad_packed_sequence")
        padded, lengths = self._called(_PAD, args, named)
        self._tags.put(lengths, CPU, Origin("", "lengths of a packed sequence"))
        return padded, lengths


def _is_cuda(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"
