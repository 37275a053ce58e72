"""Sequential reader of pickles and raw bytes in a range of a file."""

from collections.abc import Iterable

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.nodes import GlobalName
from ckptool.formats.pickle.reader import ParsedPickle, parse_pickle, scan_globals, select_dangerous
from ckptool.model import Skipped


class PickleStream:
    """Read position in a range of a file; skipped bytes are never read."""

    def __init__(self, source: ByteSource, limits: Limits, start: int = 0, end: int = -1) -> None:
        self.source = source
        self.position = start
        self.end = source.nbytes if end < 0 else end
        self.global_names: list[GlobalName] = []
        """Globals of all pickles read so far."""
        self.refusal = ""
        """What torch.load(weights_only=True) refuses in the pickles read so far; "" if nothing."""
        self.skipped: list[Skipped] = []
        """Checks that were omitted."""
        self.limits = limits
        self._data = b""
        self._data_offset = start

    def read_pickle(self, description: str) -> ParsedPickle:
        """Return the pickle at `position` and advance past it; `description` names it in errors.

        Raises:
            CorruptCheckpointError: there is none, or it is invalid.
        """
        pickle = self._read_next_pickle()
        self.global_names += pickle.globals
        self.refusal = self.refusal or pickle.refusal
        if pickle.error:
            self.global_names += select_dangerous(
                scan_globals(self._data, self.limits, self.position - self._data_offset)
            )
            raise CorruptCheckpointError(self.source.path, f"{description}: {pickle.error}")
        self.position = self._data_offset + pickle.end
        return pickle

    def find_blob_offset(self, pickle: ParsedPickle, blob: bytes) -> int:
        """Return the file offset of a byte string of the last pickle; -1 if unknown."""
        offset = pickle.blob_offsets.get(id(blob), -1)
        return offset if offset < 0 else self._data_offset + offset

    def scan_remaining(self) -> list[GlobalName]:
        """Return the globals of pickles in unexpected trailing data (first 256 KiB)."""
        size = min(self.end - self.position, _WINDOW_BYTES)
        return scan_globals(self.source.read(self.position, size), self.limits)

    def read_int64(self) -> int:
        """Return the next little-endian int64, an element count, and advance.

        Raises:
            CorruptCheckpointError: it is negative, or the range ends.
        """
        value = int.from_bytes(self.read_bytes(8), "little", signed=True)
        if value < 0:
            raise CorruptCheckpointError(self.source.path, f"a storage of {value} elements")
        return value

    def read_bytes(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes and advance."""
        start = self.position
        self.skip_bytes(nbytes)
        index = start - self._data_offset
        if index + nbytes <= len(self._data):
            return self._data[index : index + nbytes]
        return self.source.read(start, nbytes)

    def skip_bytes(self, nbytes: int) -> None:
        """Advance without reading.

        Raises:
            CorruptCheckpointError: fewer bytes are left in the range.
        """
        if nbytes > self.end - self.position:
            reason = (
                f"{nbytes} bytes should follow but {self.end - self.position} are left: it is "
                "truncated"
            )
            raise CorruptCheckpointError(self.source.path, reason)
        self.position += nbytes

    def _read_next_pickle(self) -> ParsedPickle:
        """Read more and more until the pickle is complete or `limits.pickle_bytes` is reached."""
        index = self.position - self._data_offset
        if 0 <= index < len(self._data):
            pickle = parse_pickle(self._data, self.limits, index)
            if not pickle.is_truncated:
                return pickle
        size = _WINDOW_BYTES
        while True:
            max_nbytes = min(self.end - self.position, self.limits.pickle_bytes)
            self._data, self._data_offset = (
                self.source.read(self.position, min(size, max_nbytes)),
                self.position,
            )
            pickle = parse_pickle(self._data, self.limits)
            if not pickle.is_truncated or size >= max_nbytes:
                return pickle
            size *= 4


_WINDOW_BYTES = 1 << 18


class SourceSlice(ByteSource):
    """Byte range of a ByteSource, read as a file of its own."""

    def __init__(self, source: ByteSource, start: int, nbytes: int) -> None:
        self.path = source.path
        self.nbytes = nbytes
        self.start = start
        self.is_remote = source.is_remote
        self._source = source

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Announce (offset, nbytes) ranges of the slice to be read."""
        self._source.prefetch((self.start + offset, nbytes) for offset, nbytes in ranges)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset` of the slice.

        Raises:
            CorruptCheckpointError: the range exceeds the slice.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise CorruptCheckpointError(self.path, "a storage inside the pickle is truncated")
        return self._source.read(self.start + offset, nbytes)
