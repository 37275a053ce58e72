"""ValueUse: what loading code asks of tensors on meta, and is answered otherwise with memory."""

import os
import sys
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ckptool.modules.assignment_locations import format_location

_TORCH_ROOT: Final = os.path.dirname(torch.__file__) + os.sep  # noqa: PTH120
_FORWARDING_FILES: Final = tuple(
    _TORCH_ROOT + name for name in ("_tensor.py", "overrides.py", "functional.py", "storage.py")
)
"""Files of torch whose frames stand between the code that asks and the operator."""
_TELLING: Final = frozenset((
    "device", "get_device", "is_cpu", "is_cuda", "is_meta", "is_xpu", "is_mps", "is_hpu",
    "is_pinned", "is_shared", "data_ptr", "storage", "untyped_storage", "_typed_storage", "type",
    "__repr__", "__format__", "__str__",
))  # fmt: skip
"""Attributes of a tensor that tell of its memory, and that a tensor on meta has."""


class ValueUse(TorchFunctionMode):
    """While entered, records the first question about a tensor on meta that memory would decide.

    It is one that torch refuses for want of values, also if the code catches the exception, or one
    about devices and memory by code that is not torch's. Code that asks neither does the same
    with values.
    """

    def __init__(self, *, has_values: bool) -> None:
        """Make a recorder.

        Args:
            has_values: whether a tensor of the file is on meta only if it was saved there: what
                torch's own code says of it is then true.
        """
        super().__init__()
        self._has_values = has_values
        self.first = ""
        """What was asked and where, "" if nothing."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        try:
            result = func(*args, **(kwargs or {}))
        except Exception as error:
            frame = _find_asking_frame(sys._getframe(1))  # noqa: SLF001
            is_true = self._has_values and _is_of_torch(frame)
            if not self.first and not is_true and lacks_values(str(error)):
                self.first = _describe_use(func, frame)
            raise
        if not self.first and args and _is_on_meta(args[0]) and _get_name(func) in _TELLING:
            frame = _find_asking_frame(sys._getframe(1))  # noqa: SLF001
            if not _is_of_torch(frame) and len(args) == 1:
                self.first = _describe_use(func, frame)
        return result


def lacks_values(text: str) -> bool:
    """Whether the text of an exception is torch's refusal of a tensor without memory."""
    return "meta" in text.lower() or "no data" in text


def _is_on_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _get_name(func: Any) -> str:
    """Return the name of a method, or of the attribute that a getter reads."""
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name


def _find_asking_frame(frame: FrameType) -> FrameType:
    while frame.f_code.co_filename in _FORWARDING_FILES and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_of_torch(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_TORCH_ROOT)


def _describe_use(func: Any, frame: FrameType) -> str:
    place = format_location(frame.f_code.co_filename, frame.f_lineno)
    return f"`{_get_name(func)}` of a tensor (at {place})"
