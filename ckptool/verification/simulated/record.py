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

from ckptool.modules.places import is_users, place
from ckptool.verification.facts import Clash
from ckptool.verification.simulated.tags import CPU, Origin, Tags

_OURS: Final = str(Path(__file__).parent)
_BELOW: Final = str(Path(__file__).with_name("__init__.py"))
"""File of the frame that calls the module: its callers are not part of forward."""
_TORCHS_MODULES: Final = str(Path(nn.__file__).parent)


class Record:
    """Device mismatches, unmodelled operations and first uses in one simulated pass."""

    def __init__(self, tags: Tags, target: torch.device) -> None:
        self.tags = tags
        self.target = target
        self.ambient: torch.device | None = None
        """Device of tensors created by the running torch call without tensor arguments."""
        self.moving = False
        """Whether `module.to` is running, before forward."""
        self.used: dict[str, str] = {}
        """Path of a tensor that the module holds -> "file:line" of its first use in forward."""
        self._clashes: dict[Clash, None] = {}
        self._unmodelled: dict[str, None] = {}
        self._running: list[tuple[str, nn.Module]] = []

    @property
    def clashes(self) -> tuple[Clash, ...]:
        return tuple(self._clashes)

    @property
    def unmodelled(self) -> tuple[str, ...]:
        return tuple(self._unmodelled)

    def clash(self, tensor: Tensor, needed: torch.device, op: str) -> None:
        """Record that `op` requires `tensor` on another device."""
        tag = self.tags.of(tensor)
        if self._in_script():
            # Scripted code reads real devices, not ours: on a real device it may be right.
            self.cannot_model("a scripted module, whose own questions about devices are not seen")
            return
        found = Clash(
            attribute=tag.origin.path,
            what=tag.origin.text,
            devices=(str(tag.device), str(needed)),
            op=op,
            where=here(),
            module=self._running[-1][0] if self._running else "",
        )
        self._clashes[found] = None

    def use(self, tensor: Tensor) -> None:
        """Record the line of the first use of a tensor of the module in forward."""
        path = self.tags.of(tensor).origin.path
        if path and path not in self.used and not self.moving:
            self.used[path] = here()

    def cannot_model(self, what: str) -> None:
        self._unmodelled[what] = None

    def created(self, tensor: Tensor, device: torch.device) -> None:
        """Tag a tensor that was not computed from another tensor."""
        held = self.tags.array(tensor)
        text = f"created at {here() or 'an unknown place'}"
        self.tags.put(tensor, device, held or Origin("", text))

    def home(self, tensors: list[Tensor]) -> torch.device | None:
        """Return the device of the first of `tensors` that is not on the CPU, else None."""
        devices = map(self.tags.device, tensors)
        return next((device for device in devices if device != CPU), None)

    @contextmanager
    def within(self, device: torch.device | None) -> Iterator[None]:
        """Context manager that sets the ambient device."""
        before, self.ambient = self.ambient, device
        try:
            yield
        finally:
            self.ambient = before

    @contextmanager
    def following(self, root: nn.Module) -> Iterator[None]:
        """Context manager that tracks the stack of modules whose forward is running."""
        names = {id(member): name for name, member in root.named_modules()}

        def enter(member: nn.Module, _: Any) -> None:
            inherited = self._running[-1][0] if self._running else ""
            self._running.append((names.get(id(member), inherited), member))

        def leave(*_: Any) -> None:
            self._running.pop()

        entering = register_module_forward_pre_hook(enter)
        leaving = register_module_forward_hook(leave, always_call=True)
        try:
            with warnings.catch_warnings():
                # A compiled module warns about global hooks; it is not run compiled here.
                warnings.filterwarnings("ignore", message=".*global hooks on modules")
                yield
        finally:
            entering.remove()
            leaving.remove()

    def _in_script(self) -> bool:
        return any(isinstance(member, torch.jit.ScriptModule) for _, member in self._running)


def here() -> str:
    """Return "file:line" of the innermost frame of user code, else of torch.nn, else ""."""
    inside_torch = ""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None and frame.f_code.co_filename != _BELOW:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS):
            if is_users(file):
                return place(file, frame.f_lineno)
            if not inside_torch and file.startswith(_TORCHS_MODULES):
                inside_torch = place(file, frame.f_lineno)
        frame = frame.f_back
    return inside_torch
