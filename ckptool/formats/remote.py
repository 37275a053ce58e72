"""A remote location -> a Source that asks for ranges, keeps few of them, and trusts no answer."""

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
"""Bytes that are asked for at least, once a request is made at all."""
_LARGEST: Final = 4 << 20
"""Bytes that are read ahead at most, where one read follows on another."""
_NEAR: Final = 32 << 10
"""Bytes between two ranges that are fetched along: another request takes longer."""
_REQUESTS: Final = 16
"""At once."""
_MOST_RANGES: Final = 4096
"""Of one file, at once: more would take minutes."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class File(Protocol):
    """A file of a server: what it was when it was first seen, and its bytes."""

    nbytes: int
    first: bytes
    """What came along when it was opened; b"" if nothing did."""

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return exactly these bytes, or raise a ReadError. Many threads may call it."""

    def check(self) -> None:
        """Raise a ReadError if what was fetched is of another state of the file."""


class Server(Protocol):
    """Where the locations of one visit lie."""

    def open(self, path: RemotePath) -> File: ...

    def is_directory(self, path: RemotePath) -> bool: ...

    def names_in(self, path: RemotePath) -> list[str]: ...


class MissingFileError(ReadError):
    """There is nothing at a remote location."""


class RemoteSource(Source):
    """Reads by range. What is likely to be read again, or next, is kept while it is open."""

    remote = True

    def __init__(self, path: RemotePath, file: File) -> None:
        self.path = path
        self.nbytes = file.nbytes
        self._file = file
        self._kept: dict[int, bytes] = {}
        self._starts: list[int] = []
        self._last = (0, b"")
        """What the last read brought: a reader that goes on finds its next bytes there."""
        self._block = BLOCK
        self._keep(0, file.first)

    def fileno(self) -> int:
        raise ReadError(self.path, "is remote, and has no descriptor")

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset`.

        Raises:
            CorruptCheckpointError: the range leaves the file.
            ReadError: the server does not give it.
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
        """Fill `buffer` with the bytes from `offset`."""
        buffer[:] = self.read(offset, len(buffer))

    def tail(self, nbytes: int) -> bytes:
        """Return the last `nbytes` bytes, or all there are."""
        size = min(nbytes, self.nbytes)
        self.ahead([(max(0, self.nbytes - max(size, BLOCK)), min(max(size, BLOCK), self.nbytes))])
        return self.read(self.nbytes - size, size)

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch what will be read: ranges that lie near each other at once, the others together.

        Raises:
            ReadError: the server does not give it, or it would take too many requests.
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
        """Return how much is asked for: twice as much each time a read follows on the last."""
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
    """Return (offset, nbytes) within `end`, in order, with what lies near each other as one."""
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
    """Open the file at `path`; when all is read, it must be what it was.

    Raises:
        ReadError: it cannot be reached, or was changed meanwhile.
    """
    file = _seen(path)
    yield RemoteSource(path, file)
    file.check()


def is_directory(path: RemotePath) -> bool:
    """Whether `path` is a folder; False where nothing is there."""
    return _session(path).server.is_directory(path)


def names_in(path: RemotePath) -> list[str]:
    """Return the names in a folder, sorted.

    Raises:
        ReadError: it cannot be listed.
    """
    return sorted(_session(path).server.names_in(path))


def exists(path: RemotePath) -> bool:
    """Whether a file is there; what was learnt of it is not asked for again."""
    try:
        _seen(path)
    except MissingFileError:
        return False
    return True


def check(path: RemotePath) -> None:
    """Look whether the file at `path` is what it was when this visit first saw it.

    Raises:
        ReadError: it is not.
    """
    seen = _seen(path)
    seen.fetch(0, min(1, seen.nbytes))
    seen.check()


def together(work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Return what `work` gives for each item, in order, with many requests under way."""
    if len(items) < 2:
        return list(map(work, items))
    pool = ThreadPoolExecutor(min(_REQUESTS, len(items)))
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)


class _Session:
    """What is kept for a visit."""

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
    """Return the file as it was when this visit first saw it."""
    session = _session(path)
    if path.url not in session.files:
        session.files.setdefault(path.url, session.server.open(path))
    return session.files[path.url]
