"""Stack frames and source lines -> "file:line" of the assignment of module attributes."""

import os
import sys
import sysconfig
import weakref
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_OURS = str(Path(__file__).absolute().parents[1]) + os.sep
_PASSING_ON = frozenset({"__setattr__", "register_buffer", "register_parameter"})
"""Methods that a class may override to forward an assignment: the caller made it."""


def place(file: str, line: int) -> str:
    """Format "file:line", relative to the working directory if `file` is inside it."""
    here = Path.cwd()
    path = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow symbolic links
    for candidate in (path, path.resolve()):
        if candidate.is_relative_to(here):
            return f"{candidate.relative_to(here).as_posix()}:{line}"
    return f"{path.as_posix()}:{line}"


@cache
def is_users(file: str) -> bool:
    """Whether `file` is a source file outside torch, ckptool and the standard library."""
    import torch

    foreign = (os.path.dirname(torch.__file__) + os.sep, _OURS)  # noqa: PTH120
    if file.startswith(("<", *foreign)) or not Path(file).is_file():
        return False
    standard = sysconfig.get_paths()["stdlib"] + os.sep
    return not file.startswith(standard) or "-packages" in file.removeprefix(standard)


class Places:
    """Location of the last assignment of each module attribute, recorded during construction."""

    def __init__(self, builder: str) -> None:
        self._builder = builder
        """File whose frame calls the constructor; frames above it are not user code."""
        self._noted: dict[int, tuple[weakref.ref[nn.Module], dict[str, tuple[str, int]]]] = {}

    def note(self, module: "nn.Module", name: str) -> None:
        """Record the innermost frame of user code as the assignment of `module.name`."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
        while frame is not None and frame.f_code.co_filename != self._builder:
            code = frame.f_code
            if is_users(code.co_filename) and code.co_name not in _PASSING_ON:
                self._of(module)[name] = (code.co_filename, frame.f_lineno)
                return
            frame = frame.f_back

    def of(self, module: "nn.Module", name: str) -> str:
        """Return "file:line" of the assignment of `module.name`, "" if none was recorded."""
        found = self._of(module).get(name)
        return place(*found) if found else ""

    def _of(self, module: "nn.Module") -> dict[str, tuple[str, int]]:
        # By identity, since a user's class may define __eq__; the weak reference detects an older
        # module with the same address.
        known = self._noted.get(id(module))
        if known is None or known[0]() is not module:
            known = self._noted[id(module)] = (weakref.ref(module), {})
        return known[1]
