"""Bytes that user code printed -> the last lines of it, safe to show."""

from typing import Final

from ckptool.phrases import make_printable

MAX_SHOWN_NBYTES: Final = 20_000
"""Bytes of the output of user code that are shown; the last ones."""
_MARK: Final = "| "
"""Start of each line: no line of user code is taken for one of ours, or for a command to CI."""


class UserOutput:
    """What user code printed, to either stream: the last bytes of it, and the number of all."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self._nbytes = 0

    def add(self, content: bytes) -> None:
        """Add bytes in the order in which they were printed."""
        self._nbytes += len(content)
        self._tail += content
        if len(self._tail) > 2 * MAX_SHOWN_NBYTES:
            del self._tail[:-MAX_SHOWN_NBYTES]

    def take_lines(self) -> list[str]:
        """Return the last lines, marked and without control characters, and forget all."""
        shown = bytes(self._tail[-MAX_SHOWN_NBYTES:])
        cut_nbytes = self._nbytes - len(shown)
        self.__init__()  # type: ignore[misc]
        lines = shown.decode("utf-8", "backslashreplace").splitlines()
        text = [f"{_MARK}{make_printable(line.expandtabs())}" for line in lines if line.strip()]
        if cut_nbytes:
            text.insert(0, f"{_MARK}[{cut_nbytes:,} bytes that the code printed before are cut]")
        return text
