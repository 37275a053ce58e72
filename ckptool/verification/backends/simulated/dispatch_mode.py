"""Torch dispatch mode: check operands' simulated devices at each kernel call, tag the results."""

from typing import Any

import torch
from torch import Tensor

from ckptool.modules.dispatch_mode import DispatchMode
from ckptool.modules.tensors.elements import iter_nested_tensors
from ckptool.verification.backends.simulated import cpu_fallbacks
from ckptool.verification.backends.simulated.device_tags import CPU, OUTSIDE_FORWARD, Origin
from ckptool.verification.backends.simulated.operands import (
    CPU_RESULT,
    Operands,
    classify_operands,
    is_custom,
)
from ckptool.verification.backends.simulated.tracker import DeviceTracker


class DeviceCheckDispatchMode(DispatchMode):
    """Runs each operation on the CPU, and records operands on mismatching simulated devices."""

    def __init__(self, tracker: DeviceTracker) -> None:
        super().__init__()
        self._tracker = tracker
        self._tags = tracker.tags

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        keywords = kwargs or {}
        op_operands = classify_operands(func, args, keywords, self._tags.get_device)
        self._check_devices(func, op_operands)
        if is_custom(func):
            self._tracker.add_unmodelled(f"the custom operator {func}: its CUDA kernel did not run")
        result = cpu_fallbacks.run_with_cpu_fallback(func, args, keywords)
        self._tag_results(result, op_operands)
        if func.overloadpacket in CPU_RESULT:
            self._tags.set_tag(result[CPU_RESULT[func.overloadpacket]], CPU, OUTSIDE_FORWARD)
        return result

    def _check_devices(self, func: Any, op_operands: Operands) -> None:
        for tensor in (
            *op_operands.same_device,
            *([] if op_operands.device_source is None else [op_operands.device_source]),
        ):
            self._tracker.record_use(tensor)
        common_device = self._tracker.find_device(list(op_operands.same_device))
        if common_device is not None:
            for tensor in op_operands.same_device:
                if self._tags.get_device(tensor) == CPU:
                    self._tracker.add_mismatch(tensor, common_device, str(func))
        for tensor in op_operands.on_cpu:
            if self._tags.get_device(tensor) != CPU:
                self._tracker.add_mismatch(tensor, CPU, str(func))

    def _tag_results(self, result: Any, op_operands: Operands) -> None:
        device, origin = self._choose_result_tag(op_operands)
        for tensor in iter_nested_tensors(result):
            if not self._tags.has_tag(tensor):
                if origin is None:
                    self._tracker.tag_created(tensor, device)
                else:
                    self._tags.set_tag(tensor, device, origin)

    def _choose_result_tag(self, op_operands: Operands) -> tuple[torch.device, Origin | None]:
        device_source: Tensor | None = op_operands.device_source
        if device_source is None:
            return self._tracker.ambient_device or CPU, None
        if not self._tags.has_tag(device_source) and self._tracker.ambient_device is not None:
            # Created by torch inside the running call, so it is on the call's device.
            return self._tracker.ambient_device, None
        tag = self._tags.get_tag(device_source)
        return tag.device, tag.origin
