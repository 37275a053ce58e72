"""Location -> ByteSource: the only module that opens checkpoint files."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.locations import Location, RemotePath

_COLLAPSED: Final = r"([a-z][a-z0-9+.-]+):/[^/]"
"""URL whose double slash `pathlib.Path` collapsed: "s3:/bucket"."""
_COPIED: Final = 8 << 20


class Source:
    """Open local checkpoint file, read by offset, never beyond its size at opening."""

    remote = False
    """Whether reads are network requests: optional reads are then omitted and listed in skipped."""

    def __init__(self, path: Path, descriptor: int, nbytes: int) -> None:
        self.path: Location = path
        self.nbytes = nbytes
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the file descriptor, for copy_file_range; RemoteSource raises ReadError."""
        return self._descriptor

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset`.

        Raises:
            CorruptCheckpointError: the range exceeds the file, or the file shrank meanwhile.
            ReadError: the operating system could not read it.
        """
        self._check_range(offset, nbytes)
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
            CorruptCheckpointError: the range exceeds the file, or the file shrank meanwhile.
            ReadError: the operating system could not read it.
        """
        self._check_range(offset, len(buffer))
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

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Announce (offset, nbytes) ranges to be read; RemoteSource batches their requests."""

    def head(self, nbytes: int) -> bytes:
        """Return the first `nbytes` bytes, or the whole file if it is shorter."""
        return self.read(0, min(nbytes, self.nbytes))

    def tail(self, nbytes: int) -> bytes:
        """Return the last `nbytes` bytes, or the whole file if it is shorter."""
        size = min(nbytes, self.nbytes)
        return self.read(self.nbytes - size, size)

    def _check_range(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise CorruptCheckpointError(
                self.path,
                f"bytes {offset} to {offset + nbytes} are wanted and the file has {self.nbytes}: "
                "it is cut short or damaged",
            )


@contextmanager
def open_source(path: Location) -> Iterator[Source]:
    """Open the regular file at `path` for reading; pipes and devices are rejected without blocking.

    Raises:
        ReadError: it does not exist, is not readable, or is not a regular file.
    """
    if isinstance(path, RemotePath):
        from ckptool.formats import remote

        with remote.open_source(path) as found:
            yield found
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ReadError(path, _why(error, path)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            hint = "; `-` reads standard input" if stat.S_ISFIFO(status.st_mode) else ""
            raise ReadError(path, f"is {_kind(status.st_mode)}, not a file{hint}")
        yield Source(path, descriptor, status.st_size)
    finally:
        os.close(descriptor)


def is_directory(path: Location) -> bool:
    """Whether `path` is a folder; False if it cannot be examined (opening it gives the reason)."""
    if isinstance(path, RemotePath):
        from ckptool.formats import remote

        return remote.is_directory(path)
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def names_in(directory: Location) -> list[str]:
    """Return the sorted names in a folder.

    Raises:
        ReadError: it cannot be listed.
    """
    if isinstance(directory, RemotePath):
        from ckptool.formats import remote

        return remote.names_in(directory)
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise ReadError(directory, error.strerror or str(error)) from error


def exists(path: Location) -> bool:
    """Whether `path` exists; True if it cannot be examined (opening it gives the reason)."""
    if isinstance(path, RemotePath):
        from ckptool.formats import remote

        return remote.exists(path)
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def local_copy(path: Location) -> Iterator[Path]:
    """Yield a local path for other libraries: `path` itself, or a temporary copy of a remote file.

    Raises:
        ReadError: it cannot be read.
    """
    if isinstance(path, Path):
        yield path
        return
    from tempfile import NamedTemporaryFile

    with open_source(path) as source, NamedTemporaryFile(prefix="ckptool-") as copy:
        try:
            for start in range(0, source.nbytes, _COPIED):
                copy.write(source.read(start, min(_COPIED, source.nbytes - start)))
            copy.flush()
        except OSError as error:
            raise ReadError(path, f"cannot be copied here: {error.strerror or error}") from error
        yield Path(copy.name)


def _why(error: OSError | ValueError, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        if re.match(_COLLAPSED, str(path)):
            return "no such file; a remote location is given as a str, not as a pathlib.Path"
        if any(sign in str(path) for sign in "*?["):
            return "no such file: a pattern is for the shell to expand, and here it matched nothing"
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
