"""RemotePath -> RemoteSource: range reads with a small cache; every response is validated."""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Final, Protocol, TypeVar

from ckptool.errors import ReadError
from ckptool.formats.files import Source
from ckptool.locations import RemotePath

BLOCK: Final = 16 << 10
"""Minimum bytes of one request."""
_LARGEST: Final = 4 << 20
"""Maximum bytes of one request when reads are sequential."""
_NEAR: Final = 32 << 10
"""Gap in bytes up to which two ranges are merged: another request takes longer."""
_REQUESTS: Final = 16
"""Maximum number of concurrent requests."""
_MOST_RANGES: Final = 4096
"""Maximum ranges of one prefetch: more would take minutes."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class File(Protocol):
    """File on a server, identified (ETag, size ...) when it was first opened."""

    nbytes: int
    first: bytes
    """Leading bytes received when it was opened; b"" if none."""

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return exactly these bytes, or raise ReadError. Thread-safe."""

    def check(self) -> None:
        """Raise ReadError if the file changed since it was opened."""


class Server(Protocol):
    """Server or file system that holds remote locations, one per session."""

    def open(self, path: RemotePath) -> File: ...

    def is_directory(self, path: RemotePath) -> bool: ...

    def names_in(self, path: RemotePath) -> list[str]: ...


class MissingFileError(ReadError):
    """A remote location does not exist."""


class RemoteSource(Source):
    """ByteSource that reads a RemoteFile by range, with a cache and read-ahead."""

    remote = True

    def __init__(self, path: RemotePath, file: File) -> None:
        self.path = path
        self.nbytes = file.nbytes
        self._file = file
        self._kept: dict[int, bytes] = {}
        self._starts: list[int] = []
        self._last = (0, b"")
        """(offset, bytes) of the last request, for sequential reads."""
        self._block = BLOCK
        self._keep(0, file.first)

    def fileno(self) -> int:
        raise ReadError(self.path, "is remote, and has no descriptor")

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset`.

        Raises:
            CorruptCheckpointError: the range exceeds the file.
            ReadError: the server does not return it.
        """
        self._check_range(offset, nbytes)
        found = self._held(offset, nbytes)
        if found is not None:
            return found
        size = min(max(nbytes, self._grown(offset)), self.nbytes - offset)
        data = self._file.fetch(offset, size)
        self._last = offset, data
        return data[:nbytes]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset`; raises as `read`."""
        buffer[:] = self.read(offset, len(buffer))

    def tail(self, nbytes: int) -> bytes:
        """Return the last `nbytes` bytes, or the whole file if it is shorter."""
        size = min(nbytes, self.nbytes)
        self.ahead([(max(0, self.nbytes - max(size, BLOCK)), min(max(size, BLOCK), self.nbytes))])
        return self.read(self.nbytes - size, size)

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch (offset, nbytes) ranges concurrently; nearby ranges are merged into one request.

        Raises:
            ReadError: the server does not return one, or there are more than 4096 requests.
        """
        wanted = [r for r in coalesced(ranges, self.nbytes) if self._held(*r) is None]
        if len(wanted) > _MOST_RANGES:
            reason = f"{len(wanted)} pieces of it would have to be asked for: download it first"
            raise ReadError(self.path, reason)
        for (start, _), data in zip(
            wanted, together(lambda r: self._file.fetch(*r), wanted), strict=True
        ):
            self._keep(start, data)

    def _grown(self, offset: int) -> int:
        """Return the bytes to request: doubled for each sequential read, up to 4 MiB."""
        start, data = self._last
        follows = 0 <= offset - start <= len(data) + BLOCK and data
        self._block = min(2 * self._block, _LARGEST) if follows else BLOCK
        return self._block

    def _held(self, offset: int, nbytes: int) -> bytes | None:
        if not nbytes:
            return b""
        at = bisect_right(self._starts, offset)
        kept = [(self._starts[at - 1], self._kept[self._starts[at - 1]])] if at else []
        for start, data in (self._last, *kept):
            if start <= offset and offset + nbytes <= start + len(data):
                return data[offset - start : offset - start + nbytes]
        return None

    def _keep(self, start: int, data: bytes) -> None:
        if len(data) > len(self._kept.get(start, b"")):
            if start not in self._kept:
                insort(self._starts, start)
            self._kept[start] = data


def coalesced(
    ranges: Iterable[tuple[int, int]], end: int, near: int = _NEAR
) -> list[tuple[int, int]]:
    """Return sorted (offset, nbytes) ranges clipped to `end`; gaps up to `max_gap` bytes merged."""
    found: list[tuple[int, int]] = []
    for offset, nbytes in sorted(ranges):
        start, stop = max(0, offset), min(end, offset + nbytes)
        if stop <= start:
            continue
        if found and start - sum(found[-1]) <= near:
            first = found[-1][0]
            found[-1] = first, max(stop, sum(found[-1])) - first
        else:
            found.append((start, stop - start))
    return found


@contextmanager
def open_source(path: RemotePath) -> Iterator[RemoteSource]:
    """Open the file at `path`; on exit, check that it did not change.

    Raises:
        ReadError: it cannot be reached, or was changed while it was read.
    """
    file = _seen(path)
    yield RemoteSource(path, file)
    file.check()


def is_directory(path: RemotePath) -> bool:
    """Whether `path` is a folder; False if it does not exist."""
    return _session(path).server.is_directory(path)


def names_in(path: RemotePath) -> list[str]:
    """Return the sorted names in a folder.

    Raises:
        ReadError: it cannot be listed.
    """
    return sorted(_session(path).server.names_in(path))


def exists(path: RemotePath) -> bool:
    """Whether a file exists; the opened file is cached in the session."""
    try:
        _seen(path)
    except MissingFileError:
        return False
    return True


def check(path: RemotePath) -> None:
    """Check that the file at `path` is unchanged since this session first opened it.

    Raises:
        ReadError: it was changed.
    """
    seen = _seen(path)
    seen.fetch(0, min(1, seen.nbytes))
    seen.check()


def together(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Return `function(item)` for each item, in order, computed by up to 16 threads."""
    if len(items) < 2:
        return list(map(work, items))
    pool = ThreadPoolExecutor(min(_REQUESTS, len(items)))
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


class _Session:
    """Server and opened files (by URL) of one `RemotePath.visit`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.files: dict[str, File] = {}


_lock = Lock()


def _session(path: RemotePath) -> _Session:
    with _lock:
        found = path.visit.session
        if not isinstance(found, _Session):
            found = path.visit.session = _Session(_server(path))
        return found


def _server(path: RemotePath) -> Server:
    if path.is_web:
        from ckptool.formats import web

        return web.Web(path)
    from ckptool.formats import stores

    return stores.Store(path)


def _seen(path: RemotePath) -> File:
    """Return the RemoteFile of `path`, opened once per session."""
    session = _session(path)
    if path.url not in session.files:
        session.files.setdefault(path.url, session.server.open(path))
    return session.files[path.url]
