"""Record of a simulated pass -> DeviceMismatch with its operation, line and module."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from ckptool.modules.assignment_locations import format_location, is_user_file
from ckptool.verification.backends.simulated.device_tags import CPU, DeviceTags, Origin
from ckptool.verification.result import DeviceMismatch

_SIMULATION_FOLDER: Final = str(Path(__file__).parent)
_ENTRY_FILE: Final = str(Path(__file__).with_name("__init__.py"))
"""File of the frame that calls the module: its callers are not part of forward."""
_TORCH_NN_FOLDER: Final = str(Path(nn.__file__).parent)


class DeviceTracker:
    """Device mismatches, unmodelled operations and first uses in one simulated pass."""

    def __init__(self, tags: DeviceTags, target: torch.device) -> None:
        self.tags = tags
        self.target = target
        self.ambient_device: torch.device | None = None
        """Device of tensors created by the running torch call without tensor arguments."""
        self.is_moving = False
        """Whether `module.to` is running, before forward."""
        self.first_uses: dict[str, str] = {}
        """Path of a tensor that the module holds -> "file:line" of its first use in forward."""
        self._mismatches: dict[DeviceMismatch, None] = {}
        self._unmodelled_ops: dict[str, None] = {}
        self._module_stack: list[tuple[str, nn.Module]] = []

    @property
    def device_mismatches(self) -> tuple[DeviceMismatch, ...]:
        return tuple(self._mismatches)

    @property
    def unmodelled_operations(self) -> tuple[str, ...]:
        return tuple(self._unmodelled_ops)

    def add_mismatch(self, tensor: Tensor, required_device: torch.device, op: str) -> None:
        """Record that `op` requires `tensor` on another device."""
        tag = self.tags.get_tag(tensor)
        if self._is_in_script():
            # Scripted code reads real devices, not ours: on a real device it may be right.
            self.add_unmodelled("a scripted module, whose device checks are not visible")
            return
        mismatch = DeviceMismatch(
            attribute=tag.origin.path,
            description=tag.origin.text,
            devices=(str(tag.device), str(required_device)),
            op=op,
            where=innermost_user_frame(),
            module=self._module_stack[-1][0] if self._module_stack else "",
        )
        self._mismatches[mismatch] = None

    def record_use(self, tensor: Tensor) -> None:
        """Record the line of the first use of a tensor of the module in forward."""
        path = self.tags.get_tag(tensor).origin.path
        if path and path not in self.first_uses and not self.is_moving:
            self.first_uses[path] = innermost_user_frame()

    def add_unmodelled(self, description: str) -> None:
        self._unmodelled_ops[description] = None

    def tag_created(self, tensor: Tensor, device: torch.device) -> None:
        """Tag a tensor that was not computed from another tensor."""
        array_origin = self.tags.find_array_origin(tensor)
        text = f"created at {innermost_user_frame() or 'an unknown place'}"
        self.tags.set_tag(tensor, device, array_origin or Origin("", text))

    def find_device(self, tensors: list[Tensor]) -> torch.device | None:
        """Return the device of the first of `tensors` that is not on the CPU, else None."""
        devices = map(self.tags.get_device, tensors)
        return next((device for device in devices if device != CPU), None)

    @contextmanager
    def set_ambient_device(self, device: torch.device | None) -> Iterator[None]:
        """Context manager that sets the ambient device."""
        old_device, self.ambient_device = self.ambient_device, device
        try:
            yield
        finally:
            self.ambient_device = old_device

    @contextmanager
    def track_modules(self, root: nn.Module) -> Iterator[None]:
        """Context manager that tracks the stack of modules whose forward is running."""
        names = {id(member): name for name, member in root.named_modules()}

        def push_module(member: nn.Module, _: Any) -> None:
            parent_name = self._module_stack[-1][0] if self._module_stack else ""
            self._module_stack.append((names.get(id(member), parent_name), member))

        def pop_module(*_: Any) -> None:
            self._module_stack.pop()

        pre_hook = register_module_forward_pre_hook(push_module)
        forward_hook = register_module_forward_hook(pop_module, always_call=True)
        try:
            with warnings.catch_warnings():
                # A compiled module warns about global hooks; it is not run compiled here.
                warnings.filterwarnings("ignore", message=".*global hooks on modules")
                yield
        finally:
            pre_hook.remove()
            forward_hook.remove()

    def _is_in_script(self) -> bool:
        return any(isinstance(member, torch.jit.ScriptModule) for _, member in self._module_stack)


def innermost_user_frame() -> str:
    """Return "file:line" of the innermost frame of user code, else of torch.nn, else ""."""
    torch_frame = ""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None and frame.f_code.co_filename != _ENTRY_FILE:
        file = frame.f_code.co_filename
        if not file.startswith(_SIMULATION_FOLDER):
            if is_user_file(file):
                return format_location(file, frame.f_lineno)
            if not torch_frame and file.startswith(_TORCH_NN_FOLDER):
                torch_frame = format_location(file, frame.f_lineno)
        frame = frame.f_back
    return torch_frame
