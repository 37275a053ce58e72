"""A range of a file -> the pickles and the raw bytes that stand in it, one after the other."""

from collections.abc import Iterable

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global
from ckptool.formats.pickles import Pickle, dangerous, scan, unpickle
from ckptool.model import Skipped


class Stream:
    """A position in a range of a file. What lies between the pickles is passed over, never read."""

    def __init__(self, source: Source, limits: Limits, start: int = 0, end: int = -1) -> None:
        self.source = source
        self.pos = start
        self.end = source.nbytes if end < 0 else end
        self.names: list[Global] = []
        """Every name that the pickles so far use."""
        self.skipped: list[Skipped] = []
        """What of it was not looked at."""
        self.limits = limits
        self._data = b""
        self._base = start

    def pickle(self, what: str) -> Pickle:
        """Return the pickle that starts here, and move behind it.

        Raises:
            CorruptCheckpointError: there is none, or it is broken.
        """
        found = self._found()
        self.names += found.globals
        if found.fault:
            self.names += dangerous(scan(self._data, self.limits, self.pos - self._base))
            raise CorruptCheckpointError(self.source.path, f"{what}: {found.fault}")
        self.pos = self._base + found.end
        return found

    def peek(self) -> Pickle:
        """Return the pickle that starts here, however broken, and stay."""
        return self._found()

    def start_of(self, pickle: Pickle, blob: bytes) -> int:
        """Return where a byte string of the last pickle stands in the file, -1 if that is lost."""
        found = pickle.blobs.get(id(blob), -1)
        return found if found < 0 else self._base + found

    def rest(self) -> list[Global]:
        """Return what pickles that follow here would use: nothing should follow."""
        size = min(self.end - self.pos, _WINDOW)
        return scan(self.source.read(self.pos, size), self.limits)

    def number(self) -> int:
        """Return the 64 bit number that stands here, and move behind it."""
        value = int.from_bytes(self.raw(8), "little", signed=True)
        if value < 0:
            raise CorruptCheckpointError(self.source.path, f"a storage of {value} elements")
        return value

    def raw(self, nbytes: int) -> bytes:
        """Return the next bytes, and move behind them."""
        start = self.pos
        self.skip(nbytes)
        at = start - self._base
        if at + nbytes <= len(self._data):
            return self._data[at : at + nbytes]
        return self.source.read(start, nbytes)

    def skip(self, nbytes: int) -> None:
        """Move on without reading."""
        if nbytes > self.end - self.pos:
            reason = (
                f"{nbytes} bytes are to follow and {self.end - self.pos} are left: it is cut short"
            )
            raise CorruptCheckpointError(self.source.path, reason)
        self.pos += nbytes

    def _found(self) -> Pickle:
        """Read more and more of the range, until the pickle is whole or its limit is reached."""
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
    """A part of a file, read as if it were one."""

    def __init__(self, source: Source, start: int, nbytes: int) -> None:
        self.path = source.path
        self.nbytes = nbytes
        self.start = start
        self.remote = source.remote
        self._source = source

    def ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which ranges of the part will be read."""
        self._source.ahead((self.start + offset, nbytes) for offset, nbytes in ranges)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset` of the part."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise CorruptCheckpointError(self.path, "a storage within the pickle is cut short")
        return self._source.read(self.start + offset, nbytes)
