"""Bytes of this process's memory under a path of their own, read like those of a file."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Final

from ckptool.formats.files.source import MEMORY_SOURCES, ByteSource

_NUMBERS: Final = count()


class MemorySource(ByteSource):
    """Bytes in memory; they are asked for when they are first read, and let go on `close`."""

    def __init__(self, path: Path, nbytes: int, get_bytes: Callable[[], memoryview]) -> None:
        super().__init__(path, -1, nbytes)
        self._get_bytes = get_bytes

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset`.

        Raises:
            CorruptCheckpointError: the range exceeds the bytes.
        """
        self._check_range(offset, nbytes)
        return bytes(self._get_bytes()[offset : offset + nbytes])

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset`.

        Raises:
            CorruptCheckpointError: the range exceeds the bytes.
        """
        self._check_range(offset, len(buffer))
        buffer[:] = self._get_bytes()[offset : offset + len(buffer)]


def register_memory(nbytes: int, get_bytes: Callable[[], memoryview]) -> Path:
    """Return the path under which bytes in memory are read until they are forgotten."""
    path = Path(f"<memory {next(_NUMBERS)}>")
    MEMORY_SOURCES[path] = MemorySource(path, nbytes, get_bytes)
    return path


def forget_memory(path: Path) -> None:
    """Let go of the bytes under a path; it can no longer be read."""
    MEMORY_SOURCES.pop(path, None)
