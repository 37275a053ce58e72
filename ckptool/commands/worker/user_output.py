"""Bytes that user code prints -> lines that are safe to show: the first at once, then the last."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from ckptool.phrases import make_printable

MAX_HEAD_NBYTES: Final = 10_000
"""Bytes of the output of user code that are shown as they come."""
MAX_TAIL_NBYTES: Final = 10_000
"""Bytes of what follows that are shown at the end; what is in between is counted."""
_MARK: Final = "| "
"""Start of each line: no line of user code is taken for one of ours, or for a command to CI."""
_LINE_ENDS: Final = re.compile(rb"[\r\n]+")


class UserOutput:
    """What user code prints, to either stream, in the order in which it comes."""

    def __init__(self, show_lines: Callable[[Sequence[str]], None]) -> None:
        self._show_lines = show_lines
        self._unshown = bytearray()
        """What is not shown yet: the start of a line, or all since MAX_HEAD_NBYTES were shown."""
        self._head_nbytes = self._cut_nbytes = 0

    def add(self, content: bytes) -> None:
        """Take bytes; whole lines are shown at once, as long as they are not many."""
        self._unshown += content
        if self._head_nbytes < MAX_HEAD_NBYTES:
            end = max(self._unshown.rfind(b"\n"), self._unshown.rfind(b"\r")) + 1
            end = min(end, MAX_HEAD_NBYTES - self._head_nbytes)
            self._head_nbytes += end
            self._show(bytes(self._unshown[:end]))
            del self._unshown[:end]
        if len(self._unshown) > 2 * MAX_TAIL_NBYTES:
            self._cut_unshown()

    def finish(self) -> None:
        """Show the last lines, and how many bytes before them are not shown."""
        if len(self._unshown) > MAX_TAIL_NBYTES:
            self._cut_unshown()
        if self._cut_nbytes:
            note = f"[{self._cut_nbytes:,} bytes of its output are not shown]"
            self._show_lines([f"{_MARK}{note}"])
        self._show(bytes(self._unshown))
        self._unshown.clear()
        self._cut_nbytes = 0

    def _cut_unshown(self) -> None:
        self._cut_nbytes += len(self._unshown) - MAX_TAIL_NBYTES
        del self._unshown[:-MAX_TAIL_NBYTES]

    def _show(self, content: bytes) -> None:
        texts = (line.decode("utf-8", "backslashreplace") for line in _LINE_ENDS.split(content))
        lines = [f"{_MARK}{make_printable(text.expandtabs())}" for text in texts if text.strip()]
        if lines:
            self._show_lines(lines)
