"""Contexts in which the tracer looks at live objects without a trace in the user's run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

_TRACER_PACKAGES = ("ckptool.tracing", "ckptool.modules")
_LIBRARY_FOLDERS = ("site-packages", "dist-packages")
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120


@contextmanager
def torch_unobserved() -> Iterator[None]:
    """Keep torch's modes and gradients out: the user's modes see none of our operations."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():  # type: ignore[attr-defined,unused-ignore]  # noqa: SLF001
        yield


def locate_caller() -> str:
    """Return "file:line" of the innermost frame of the user's own code, "" if there is none."""
    from ckptool.modules.assignment_locations import format_location

    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        file = frame.f_code.co_filename
        if is_own_code(file) and not str(frame.f_globals.get("__name__")).startswith(
            _TRACER_PACKAGES
        ):
            return format_location(file, frame.f_lineno)
        frame = frame.f_back
    return ""


@cache
def is_own_code(file: str) -> bool:
    """Whether a file is the user's: not Python's, ckptool's or of an installed package."""
    from ckptool.modules.assignment_locations import is_user_file

    if file.startswith(_STANDARD_LIBRARY) or any(folder in file for folder in _LIBRARY_FOLDERS):
        return False  # the most, and without a look at the disk
    return is_user_file(file)
