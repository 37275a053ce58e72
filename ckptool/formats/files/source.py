"""Location -> ByteSource: the only module that opens checkpoint files."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from ckptool.errors import CorruptCheckpointError, ReadError, describe_os_error
from ckptool.locations import Location, RemotePath, resolve_in, suggest_module_option

_COLLAPSED_URL: Final = r"([a-z][a-z0-9+.-]+):/[^/]"
"""URL whose double slash `pathlib.Path` collapsed: "s3:/bucket"."""
_COPY_CHUNK_BYTES: Final = 8 << 20


class ByteSource:
    """Open local checkpoint file, read by offset, never beyond its size at opening."""

    is_remote = False
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
        chunks: list[bytes] = []
        while nbytes:
            try:
                chunk = os.pread(self._descriptor, nbytes, offset)
            except OSError as error:
                raise ReadError(self.path, describe_os_error(error)) from error
            if not chunk:
                raise CorruptCheckpointError(
                    self.path, f"the file ended at byte {offset} while it was read"
                )
            chunks.append(chunk)
            offset += len(chunk)
            nbytes -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset`.

        Raises:
            CorruptCheckpointError: the range exceeds the file, or the file shrank meanwhile.
            ReadError: the operating system could not read it.
        """
        self._check_range(offset, len(buffer))
        while buffer:
            try:
                read_nbytes = os.preadv(self._descriptor, [buffer], offset)
            except OSError as error:
                raise ReadError(self.path, describe_os_error(error)) from error
            if not read_nbytes:
                raise CorruptCheckpointError(
                    self.path, f"the file ended at byte {offset} while it was read"
                )
            offset, buffer = offset + read_nbytes, buffer[read_nbytes:]

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Announce (offset, nbytes) ranges to be read; RemoteSource batches their requests."""

    def read_head(self, nbytes: int) -> bytes:
        """Return the first `nbytes` bytes, or the whole file if it is shorter."""
        return self.read(0, min(nbytes, self.nbytes))

    def read_tail(self, nbytes: int) -> bytes:
        """Return the last `nbytes` bytes, or the whole file if it is shorter."""
        size = min(nbytes, self.nbytes)
        return self.read(self.nbytes - size, size)

    def _check_range(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise CorruptCheckpointError(
                self.path,
                f"bytes {offset} to {offset + nbytes} are needed but the file has {self.nbytes}: "
                "it is truncated or damaged",
            )


MEMORY_SOURCES: Final[dict[Path, ByteSource]] = {}
"""Bytes of live objects in this process's memory, by the path that stands for them."""


@contextmanager
def open_source(path: Location) -> Iterator[ByteSource]:
    """Open the regular file at `path` for reading; pipes and devices are rejected without blocking.

    Raises:
        ReadError: it does not exist, is not readable, or is not a regular file.
    """
    if isinstance(path, RemotePath):
        from ckptool.formats.files import remote

        with remote.open_source(path) as remote_source:
            yield remote_source
        return
    if path in MEMORY_SOURCES:
        yield MEMORY_SOURCES[path]
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ReadError(path, _explain_open_error(error, path)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            hint = "; `-` reads standard input" if stat.S_ISFIFO(status.st_mode) else ""
            raise ReadError(path, f"is {_describe_file_type(status.st_mode)}, not a file{hint}")
        yield ByteSource(path, descriptor, status.st_size)
    finally:
        os.close(descriptor)


class SourceCache:
    """Open files of one thread: at most `limit`, the least recently used closed first."""

    def __init__(self, limit: int, folder: Path = Path()) -> None:
        """Relative paths are resolved in `folder`."""
        self._limit = limit
        self._folder = folder
        self._entries: dict[Location, tuple[ByteSource, ExitStack]] = {}
        self._newest: tuple[Location | None, ByteSource | None] = (None, None)
        """The path that was asked for last, and its file: the last that is closed."""

    def get_source(self, path: Location) -> ByteSource:
        """Return the open file at `path`.

        Raises:
            ReadError: it cannot be opened.
        """
        newest_path, newest_source = self._newest
        if newest_source is not None and newest_path is path:
            return newest_source
        entry = self._entries.pop(path, None) or self._open_path(path)
        self._entries[path] = entry
        self._newest = path, entry[0]
        return entry[0]

    def close(self) -> None:
        self._newest = None, None
        while self._entries:
            self._close_oldest()

    def _open_path(self, path: Location) -> tuple[ByteSource, ExitStack]:
        if len(self._entries) >= self._limit:
            self._close_oldest()
        stack = ExitStack()
        return stack.enter_context(open_source(resolve_in(self._folder, path))), stack

    def _close_oldest(self) -> None:
        _, stack = self._entries.pop(next(iter(self._entries)))
        stack.close()


def is_shared_file(path: Location) -> bool:
    """Whether another process of this machine finds the same bytes at `path`."""
    return (
        isinstance(path, Path)
        and path not in MEMORY_SOURCES
        and not str(path).startswith(("/dev/fd/", "/proc/self/"))
    )


def is_directory(path: Location) -> bool:
    """Whether `path` is a folder; False if it cannot be examined (opening it gives the reason)."""
    if isinstance(path, RemotePath):
        from ckptool.formats.files import remote

        return remote.is_directory(path)
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def list_names(directory: Location) -> list[str]:
    """Return the sorted names in a folder.

    Raises:
        ReadError: it cannot be listed.
    """
    if isinstance(directory, RemotePath):
        from ckptool.formats.files import remote

        return remote.list_names(directory)
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise ReadError(directory, describe_os_error(error)) from error


def path_exists(path: Location) -> bool:
    """Whether `path` exists; True if it cannot be examined (opening it gives the reason)."""
    if isinstance(path, RemotePath):
        from ckptool.formats.files import remote

        return remote.path_exists(path)
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def open_local_copy(path: Location) -> Iterator[Path]:
    """Yield a local path for other libraries: `path` itself, or a temporary copy of a remote file.

    Raises:
        ReadError: it cannot be read.
    """
    if isinstance(path, Path):
        yield path
        return
    from tempfile import NamedTemporaryFile

    with open_source(path) as source, NamedTemporaryFile(prefix="ckptool-") as copy_file:
        try:
            for start in range(0, source.nbytes, _COPY_CHUNK_BYTES):
                copy_file.write(source.read(start, min(_COPY_CHUNK_BYTES, source.nbytes - start)))
            copy_file.flush()
        except OSError as error:
            raise ReadError(path, f"cannot be copied here: {describe_os_error(error)}") from error
        yield Path(copy_file.name)


def _explain_open_error(error: OSError | ValueError, path: Path) -> str:
    if isinstance(error, FileNotFoundError) and not path.is_symlink():
        if str(path) == "-":
            return "standard input is not read here: save it to a file first"
        if re.match(_COLLAPSED_URL, str(path)):
            return "no such file; a remote location is given as a str, not as a pathlib.Path"
        if any(wildcard in str(path) for wildcard in "*?["):
            return "no such file: patterns are expanded by the shell, and this one matched nothing"
        if hint := suggest_module_option(str(path)):
            return f"no such file: {hint}"
    return describe_os_error(error, path)


def _describe_file_type(mode: int) -> str:
    names = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return names.get(stat.S_IFMT(mode), "something special")
