"""Small forward reads of a file -> few large ones."""

from typing import Final

from ckptool.formats.files.source import ByteSource, SourceCache
from ckptool.locations import Location
from ckptool.model import Span

NEAR_BYTES: Final = 1 << 14
"""Bytes between two reads up to which one read of `_CHUNK_BYTES` serves both and what follows."""
_CHUNK_BYTES: Final = 1 << 20
_SPARSE_READ_BYTES: Final = 1 << 10
_MAX_WINDOWS: Final = 4


class ReadWindow:
    """Buffer for small forward reads: 1 MiB for dense files, little more than asked for sparse."""

    def __init__(self, source: ByteSource) -> None:
        self.data = b""
        self.start = 0
        """Offset of `data` in the file."""
        self.source = source

    def load_range(self, offset: int, nbytes: int) -> int:
        """Buffer `nbytes` bytes from `offset`; return their index in `data`. Fewer at file end."""
        index = offset - self.start
        if index < 0 or index + nbytes > len(self.data):
            is_nearby = -len(self.data) <= index - len(self.data) < NEAR_BYTES
            min_nbytes = (
                0
                if self.source.is_remote
                else _CHUNK_BYTES
                if is_nearby and self.data
                else _SPARSE_READ_BYTES
            )
            size = min(max(nbytes, min_nbytes), max(0, self.source.nbytes - offset))
            self.data, self.start, index = self.source.read(offset, size), offset, 0
        return index


class SpanReader:
    """Reads spans of several files, small ones through the window of their file."""

    def __init__(self, sources: SourceCache) -> None:
        self._sources = sources
        self._windows: dict[Location, ReadWindow] = {}

    def read_span(self, span: Span) -> bytes:
        """Return the bytes of a span.

        Raises:
            CorruptCheckpointError: it exceeds the file, or the file shrank meanwhile.
            ReadError: the file could not be opened or read.
        """
        source = self._sources.get_source(span.path)
        if span.nbytes < NEAR_BYTES:
            window = self._windows.get(span.path)
            if window is None or window.source is not source:
                window = self._open_window(span.path, source)
            index = window.load_range(span.offset, span.nbytes)
            data = window.data[index : index + span.nbytes]
            if len(data) == span.nbytes:
                return data
        return source.read(span.offset, span.nbytes)

    def _open_window(self, path: Location, source: ByteSource) -> ReadWindow:
        if len(self._windows) >= _MAX_WINDOWS:
            self._windows.clear()
        window = self._windows[path] = ReadWindow(source)
        return window
