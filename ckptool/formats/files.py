"""A path -> bytes of a regular file: the only place where a checkpoint is opened for reading."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptool.errors import CorruptCheckpointError, ReadError


class Source:
    """An open checkpoint file, read by position and never beyond the size it had when opened."""

    def __init__(self, path: Path, descriptor: int, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the descriptor, for a copy that the kernel makes."""
        return self._descriptor

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset`.

        Raises:
            CorruptCheckpointError: the range leaves the file, or the file shrank meanwhile.
            ReadError: the operating system could not read it.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise CorruptCheckpointError(
                self.path,
                f"bytes {offset} to {offset + nbytes} are wanted and the file has {self.nbytes}: "
                "it is cut short or damaged",
            )
        pieces: list[bytes] = []
        while nbytes:
            try:
                piece = os.pread(self._descriptor, nbytes, offset)
            except OSError as error:
                raise ReadError(self.path, error.strerror or str(error)) from error
            if not piece:
                raise CorruptCheckpointError(
                    self.path, f"the file ended at byte {offset} while it was read"
                )
            pieces.append(piece)
            offset += len(piece)
            nbytes -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset`.

        Raises:
            CorruptCheckpointError: the file ends before, or shrank meanwhile.
            ReadError: the operating system could not read it.
        """
        while buffer:
            try:
                count = os.preadv(self._descriptor, [buffer], offset)
            except OSError as error:
                raise ReadError(self.path, error.strerror or str(error)) from error
            if not count:
                raise CorruptCheckpointError(
                    self.path, f"the file ended at byte {offset} while it was read"
                )
            offset, buffer = offset + count, buffer[count:]

    def head(self, nbytes: int) -> bytes:
        """Return the first `nbytes` bytes, or all there are."""
        return self.read(0, min(nbytes, self.nbytes))

    def tail(self, nbytes: int) -> bytes:
        """Return the last `nbytes` bytes, or all there are."""
        size = min(nbytes, self.nbytes)
        return self.read(self.nbytes - size, size)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open the regular file at `path` for reading; a pipe or a device is refused without waiting.

    Raises:
        ReadError: it does not exist, may not be read, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ReadError(path, _why(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ReadError(path, f"is {_kind(status.st_mode)}, not a file")
        yield Source(path, descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _kind(mode: int) -> str:
    names = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return names.get(stat.S_IFMT(mode), "something special")
