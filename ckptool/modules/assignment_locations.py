"""Stack frames and source lines -> "file:line" of the assignment of module attributes."""

import linecache
import os
import re
import sys
import sysconfig
import weakref
from functools import cache, lru_cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_PACKAGE_ROOT = str(Path(__file__).absolute().parents[1]) + os.sep
_FORWARDING_METHODS = frozenset({"__setattr__", "register_buffer", "register_parameter"})
"""Methods that a class may override to forward an assignment: the caller made it."""


def format_location(file: str, line: int) -> str:
    """Format "file:line", relative to the working directory if `file` is inside it."""
    return f"{_format_path(file, Path.cwd())}:{line}"


@lru_cache(maxsize=256)
def _format_path(file: str, working_directory: Path) -> str:
    path = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow symbolic links
    for candidate in (path, path.resolve()):
        if candidate.is_relative_to(working_directory):
            return candidate.relative_to(working_directory).as_posix()
    return path.as_posix()


def read_assignment_target(location: str, path: str) -> str:
    """Return what the source line at `location` assigns to, "self.encoder.mask".

    Returns:
        "" if the line is no plain assignment of the attribute of `path` ("net.banks['k']").
    """
    file, _, line = location.rpartition(":")
    name = path.partition("[")[0].rpartition(".")[2]
    if not file or not name.isidentifier():
        return ""
    # linecache keeps lines by name, and a relative one is another file after a change of folder.
    text = linecache.getline(os.path.abspath(file), int(line)).strip()  # noqa: PTH100
    match = re.match(rf"((?:\w+(?:\[[\w'\"]+\])*\.)+{name})\s*(?::[^=]+)?=(?!=)", text)
    return match[1] if match else ""


@cache
def is_user_file(file: str) -> bool:
    """Whether `file` is a source file outside torch, ckptool and the standard library."""
    import torch

    library_roots = (os.path.dirname(torch.__file__) + os.sep, _PACKAGE_ROOT)  # noqa: PTH120
    if file.startswith(("<", *library_roots)) or not Path(file).is_file():
        return False
    stdlib_root = sysconfig.get_paths()["stdlib"] + os.sep
    return not file.startswith(stdlib_root) or "-packages" in file.removeprefix(stdlib_root)


class AssignmentLocations:
    """Location of the last assignment of each module attribute, recorded during construction."""

    def __init__(self, builder_file: str) -> None:
        self._builder_file = builder_file
        """File whose frame calls the constructor; frames above it are not user code."""
        self._entries: dict[int, tuple[weakref.ref[nn.Module], dict[str, tuple[str, int]]]] = {}

    def record_assignment(self, module: "nn.Module", name: str) -> None:
        """Record the innermost frame of user code as the assignment of `module.name`."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
        while frame is not None and frame.f_code.co_filename != self._builder_file:
            code = frame.f_code
            if is_user_file(code.co_filename) and code.co_name not in _FORWARDING_METHODS:
                self._get_module_locations(module)[name] = (code.co_filename, frame.f_lineno)
                return
            frame = frame.f_back

    def get_location(self, module: "nn.Module", name: str) -> str:
        """Return "file:line" of the assignment of `module.name`, "" if none was recorded."""
        location = self._get_module_locations(module).get(name)
        return format_location(*location) if location else ""

    def _get_module_locations(self, module: "nn.Module") -> dict[str, tuple[str, int]]:
        # By identity, since a user's class may define __eq__; the weak reference detects an older
        # module with the same address.
        entry = self._entries.get(id(module))
        if entry is None or entry[0]() is not module:
            entry = self._entries[id(module)] = (weakref.ref(module), {})
        return entry[1]
