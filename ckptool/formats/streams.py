"""Sequential reader of pickles and raw bytes in a range of a file."""

from collections.abc import Iterable

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global
from ckptool.formats.pickles import Pickle, dangerous, scan, unpickle
from ckptool.model import Skipped


class Stream:
    """Read position in a range of a file; skipped bytes are never read."""

    def __init__(self, source: Source, limits: Limits, start: int = 0, end: int = -1) -> None:
        self.source = source
        self.pos = start
        self.end = source.nbytes if end < 0 else end
        self.names: list[Global] = []
        """Globals of all pickles read so far."""
        self.skipped: list[Skipped] = []
        """Checks that were omitted."""
        self.limits = limits
        self._data = b""
        self._base = start

    def pickle(self, what: str) -> Pickle:
        """Return the pickle at `position` and advance past it; `description` names it in errors.

        Raises:
            CorruptCheckpointError: there is none, or it is invalid.
        """
        found = self._found()
        self.names += found.globals
        if found.fault:
            self.names += dangerous(scan(self._data, self.limits, self.pos - self._base))
            raise CorruptCheckpointError(self.source.path, f"{what}: {found.fault}")
        self.pos = self._base + found.end
        return found

    def peek(self) -> Pickle:
        """Return the pickle at `position`, valid or not, without advancing."""
        return self._found()

    def start_of(self, pickle: Pickle, blob: bytes) -> int:
        """Return the file offset of a byte string of the last pickle; -1 if unknown."""
        found = pickle.blobs.get(id(blob), -1)
        return found if found < 0 else self._base + found

    def rest(self) -> list[Global]:
        """Return the globals of pickles in unexpected trailing data (first 256 KiB)."""
        size = min(self.end - self.pos, _WINDOW)
        return scan(self.source.read(self.pos, size), self.limits)

    def number(self) -> int:
        """Return the next little-endian int64, an element count, and advance.

        Raises:
            CorruptCheckpointError: it is negative, or the range ends.
        """
        value = int.from_bytes(self.raw(8), "little", signed=True)
        if value < 0:
            raise CorruptCheckpointError(self.source.path, f"a storage of {value} elements")
        return value

    def raw(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes and advance."""
        start = self.pos
        self.skip(nbytes)
        at = start - self._base
        if at + nbytes <= len(self._data):
            return self._data[at : at + nbytes]
        return self.source.read(start, nbytes)

    def skip(self, nbytes: int) -> None:
        """Advance without reading.

        Raises:
            CorruptCheckpointError: fewer bytes are left in the range.
        """
        if nbytes > self.end - self.pos:
            reason = (
                f"{nbytes} bytes are to follow and {self.end - self.pos} are left: it is cut short"
            )
            raise CorruptCheckpointError(self.source.path, reason)
        self.pos += nbytes

    def _found(self) -> Pickle:
        """Read more and more until the pickle is complete or `limits.pickle_bytes` is reached."""
        at = self.pos - self._base
        if 0 <= at < len(self._data):
            found = unpickle(self._data, self.limits, at)
            if not found.starved:
                return found
        size = _WINDOW
        while True:
            most = min(self.end - self.pos, self.limits.pickle_bytes)
            self._data, self._base = self.source.read(self.pos, min(size, most)), self.pos
            found = unpickle(self._data, self.limits)
            if not found.starved or size >= most:
                return found
            size *= 4


_WINDOW = 1 << 18


class Slice(Source):
    """Byte range of a ByteSource, read as a file of its own."""

    def __init__(self, source: Source, start: int, nbytes: int) -> None:
        self.path = source.path
        self.nbytes = nbytes
        self.start = start
        self.remote = source.remote
        self._source = source

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Announce (offset, nbytes) ranges of the slice to be read."""
        self._source.ahead((self.start + offset, nbytes) for offset, nbytes in ranges)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset` of the slice.

        Raises:
            CorruptCheckpointError: the range exceeds the slice.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise CorruptCheckpointError(self.path, "a storage within the pickle is cut short")
        return self._source.read(self.start + offset, nbytes)
