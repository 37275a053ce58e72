"""Torch dispatch mode: check operands' simulated devices at each kernel call, tag the results."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ckptool.verification.simulated import lacking
from ckptool.verification.simulated.operands import (
    CPU_RESULT,
    Operands,
    is_custom,
    operands,
    tensors_in,
)
from ckptool.verification.simulated.record import Record
from ckptool.verification.simulated.tags import CPU, OUTSIDE, Origin


class Below(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs each operation on the CPU, and records operands on mismatching simulated devices."""

    def __init__(self, record: Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record
        self._tags = record.tags

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch wraps `__torch_dispatch__` in a function that imports its compiler, which
        # takes longer than most passes; nothing is compiled here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        found = operands(func, args, named, self._tags.device)
        self._check(func, found)
        if is_custom(func):
            self._record.cannot_model(f"the custom operator {func}: its CUDA kernel did not run")
        result = lacking.result(func, args, named)
        self._tag(result, found)
        if func.overloadpacket in CPU_RESULT:
            self._tags.put(result[CPU_RESULT[func.overloadpacket]], CPU, OUTSIDE)
        return result

    def _check(self, func: Any, found: Operands) -> None:
        for tensor in (*found.together, *([] if found.home is None else [found.home])):
            self._record.use(tensor)
        home = self._record.home(list(found.together))
        if home is not None:
            for tensor in found.together:
                if self._tags.device(tensor) == CPU:
                    self._record.clash(tensor, home, str(func))
        for tensor in found.on_cpu:
            if self._tags.device(tensor) != CPU:
                self._record.clash(tensor, CPU, str(func))

    def _tag(self, result: Any, found: Operands) -> None:
        device, origin = self._of_results(found)
        for tensor in tensors_in(result):
            if not self._tags.knows(tensor):
                if origin is None:
                    self._record.created(tensor, device)
                else:
                    self._tags.put(tensor, device, origin)

    def _of_results(self, found: Operands) -> tuple[torch.device, Origin | None]:
        home: Tensor | None = found.home
        if home is None:
            return self._record.ambient or CPU, None
        if not self._tags.knows(home) and self._record.ambient is not None:
            # Created by torch inside the running call, so it is on the call's device.
            return self._record.ambient, None
        tag = self._tags.of(home)
        return tag.device, tag.origin
