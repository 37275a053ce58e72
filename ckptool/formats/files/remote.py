"""RemotePath -> RemoteSource: range reads with a small cache; every response is validated."""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Final, Protocol, TypeVar

from ckptool.errors import ReadError
from ckptool.formats.files.source import ByteSource
from ckptool.locations import RemotePath

MIN_REQUEST_BYTES: Final = 16 << 10
"""Minimum bytes of one request."""
_MAX_READ_AHEAD_BYTES: Final = 4 << 20
"""Maximum bytes of one request when reads are sequential."""
_MAX_GAP_BYTES: Final = 32 << 10
"""Gap in bytes up to which two ranges are merged: another request takes longer."""
_MAX_CONCURRENT_REQUESTS: Final = 16
"""Maximum number of concurrent requests."""
_MAX_RANGES: Final = 4096
"""Maximum ranges of one prefetch: more would take minutes."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class RemoteFile(Protocol):
    """File on a server, identified (ETag, size ...) when it was first opened."""

    nbytes: int
    first_bytes: bytes
    """Leading bytes received when it was opened; b"" if none."""

    def fetch_range(self, offset: int, nbytes: int) -> bytes:
        """Return exactly these bytes, or raise ReadError. Thread-safe."""

    def check_unchanged(self) -> None:
        """Raise ReadError if the file changed since it was opened."""


class RemoteServer(Protocol):
    """Server or file system that holds remote locations, one per session."""

    def open_file(self, path: RemotePath) -> RemoteFile: ...

    def is_directory(self, path: RemotePath) -> bool: ...

    def list_names(self, path: RemotePath) -> list[str]: ...


class MissingFileError(ReadError):
    """A remote location does not exist."""


class RemoteSource(ByteSource):
    """ByteSource that reads a RemoteFile by range, with a cache and read-ahead."""

    is_remote = True

    def __init__(self, path: RemotePath, file: RemoteFile) -> None:
        self.path = path
        self.nbytes = file.nbytes
        self._file = file
        self._cache: dict[int, bytes] = {}
        self._cache_offsets: list[int] = []
        self._last_read = (0, b"")
        """(offset, bytes) of the last request, for sequential reads."""
        self._request_nbytes = MIN_REQUEST_BYTES
        self._cache_range(0, file.first_bytes)

    def fileno(self) -> int:
        raise ReadError(self.path, "is remote and has no file descriptor")

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset`.

        Raises:
            CorruptCheckpointError: the range exceeds the file.
            ReadError: the server does not return it.
        """
        self._check_range(offset, nbytes)
        cached_bytes = self._find_cached(offset, nbytes)
        if cached_bytes is not None:
            return cached_bytes
        size = min(max(nbytes, self._choose_request_nbytes(offset)), self.nbytes - offset)
        data = self._file.fetch_range(offset, size)
        self._last_read = offset, data
        return data[:nbytes]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset`; raises as `read`."""
        buffer[:] = self.read(offset, len(buffer))

    def read_tail(self, nbytes: int) -> bytes:
        """Return the last `nbytes` bytes, or the whole file if it is shorter."""
        size = min(nbytes, self.nbytes)
        self.prefetch(
            [
                (
                    max(0, self.nbytes - max(size, MIN_REQUEST_BYTES)),
                    min(max(size, MIN_REQUEST_BYTES), self.nbytes),
                )
            ]
        )
        return self.read(self.nbytes - size, size)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch (offset, nbytes) ranges concurrently; nearby ranges are merged into one request.

        Raises:
            ReadError: the server does not return one, or there are more than 4096 requests.
        """
        missing_ranges = [
            byte_range
            for byte_range in coalesce_ranges(ranges, self.nbytes)
            if self._find_cached(*byte_range) is None
        ]
        if len(missing_ranges) > _MAX_RANGES:
            reason = (
                f"{len(missing_ranges)} pieces of it would have to be requested: download it first"
            )
            raise ReadError(self.path, reason)
        for (start, _), data in zip(
            missing_ranges,
            map_concurrently(
                lambda byte_range: self._file.fetch_range(*byte_range), missing_ranges
            ),
            strict=True,
        ):
            self._cache_range(start, data)

    def _choose_request_nbytes(self, offset: int) -> int:
        """Return the bytes to request: doubled for each sequential read, up to 4 MiB."""
        start, data = self._last_read
        is_sequential = 0 <= offset - start <= len(data) + MIN_REQUEST_BYTES and data
        self._request_nbytes = (
            min(2 * self._request_nbytes, _MAX_READ_AHEAD_BYTES)
            if is_sequential
            else MIN_REQUEST_BYTES
        )
        return self._request_nbytes

    def _find_cached(self, offset: int, nbytes: int) -> bytes | None:
        if not nbytes:
            return b""
        index = bisect_right(self._cache_offsets, offset)
        cached_range = (
            [(self._cache_offsets[index - 1], self._cache[self._cache_offsets[index - 1]])]
            if index
            else []
        )
        for start, data in (self._last_read, *cached_range):
            if start <= offset and offset + nbytes <= start + len(data):
                return data[offset - start : offset - start + nbytes]
        return None

    def _cache_range(self, start: int, data: bytes) -> None:
        if len(data) > len(self._cache.get(start, b"")):
            if start not in self._cache:
                insort(self._cache_offsets, start)
            self._cache[start] = data


def coalesce_ranges(
    ranges: Iterable[tuple[int, int]], end: int, max_gap: int = _MAX_GAP_BYTES
) -> list[tuple[int, int]]:
    """Return sorted (offset, nbytes) ranges clipped to `end`; gaps up to `max_gap` bytes merged."""
    merged_ranges: list[tuple[int, int]] = []
    for offset, nbytes in sorted(ranges):
        start, stop = max(0, offset), min(end, offset + nbytes)
        if stop <= start:
            continue
        if merged_ranges and start - sum(merged_ranges[-1]) <= max_gap:
            first_start = merged_ranges[-1][0]
            merged_ranges[-1] = first_start, max(stop, sum(merged_ranges[-1])) - first_start
        else:
            merged_ranges.append((start, stop - start))
    return merged_ranges


@contextmanager
def open_source(path: RemotePath) -> Iterator[RemoteSource]:
    """Open the file at `path`; on exit, check that it did not change.

    Raises:
        ReadError: it cannot be reached, or was changed while it was read.
    """
    file = _get_file(path)
    yield RemoteSource(path, file)
    file.check_unchanged()


def is_directory(path: RemotePath) -> bool:
    """Whether `path` is a folder; False if it does not exist."""
    return _get_session(path).server.is_directory(path)


def list_names(path: RemotePath) -> list[str]:
    """Return the sorted names in a folder.

    Raises:
        ReadError: it cannot be listed.
    """
    return sorted(_get_session(path).server.list_names(path))


def path_exists(path: RemotePath) -> bool:
    """Whether a file exists; the opened file is cached in the session."""
    try:
        _get_file(path)
    except MissingFileError:
        return False
    return True


def check_unchanged(path: RemotePath) -> None:
    """Check that the file at `path` is unchanged since this session first opened it.

    Raises:
        ReadError: it was changed.
    """
    file = _get_file(path)
    file.fetch_range(0, min(1, file.nbytes))
    file.check_unchanged()


def map_concurrently(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Return `function(item)` for each item, in order, computed by up to 16 threads."""
    if len(items) < 2:
        return list(map(function, items))
    pool = ThreadPoolExecutor(min(_MAX_CONCURRENT_REQUESTS, len(items)))
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


class _RemoteSession:
    """Server and opened files (by URL) of one `RemotePath.visit`."""

    def __init__(self, server: RemoteServer) -> None:
        self.server = server
        self.files: dict[str, RemoteFile] = {}


_session_lock = Lock()


def _get_session(path: RemotePath) -> _RemoteSession:
    with _session_lock:
        session = path.context.session
        if not isinstance(session, _RemoteSession):
            session = path.context.session = _RemoteSession(_create_server(path))
        return session


def _create_server(path: RemotePath) -> RemoteServer:
    if path.is_web:
        from ckptool.formats.files import http

        return http.HttpServer(path)
    from ckptool.formats.files import fsspec_store

    return fsspec_store.FsspecFileSystem(path)


def _get_file(path: RemotePath) -> RemoteFile:
    """Return the RemoteFile of `path`, opened once per session."""
    session = _get_session(path)
    if path.url not in session.files:
        session.files.setdefault(path.url, session.server.open_file(path))
    return session.files[path.url]
