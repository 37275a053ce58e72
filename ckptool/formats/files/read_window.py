"""Small forward reads of a file -> few large ones."""

from typing import Final

from ckptool.formats.files.source import ByteSource

NEAR_BYTES: Final = 1 << 14
"""Bytes between two reads up to which one read of `_CHUNK_BYTES` serves both and what follows."""
_CHUNK_BYTES: Final = 1 << 20
_SPARSE_READ_BYTES: Final = 1 << 10


class ReadWindow:
    """Buffer for small forward reads: 1 MiB for dense files, little more than asked for sparse."""

    def __init__(self, source: ByteSource) -> None:
        self.data = b""
        self.start = 0
        """Offset of `data` in the file."""
        self._source = source

    def load_range(self, offset: int, nbytes: int) -> int:
        """Buffer `nbytes` bytes from `offset`; return their index in `data`. Fewer at file end."""
        index = offset - self.start
        if index < 0 or index + nbytes > len(self.data):
            is_nearby = -len(self.data) <= index - len(self.data) < NEAR_BYTES
            min_nbytes = (
                0
                if self._source.is_remote
                else _CHUNK_BYTES
                if is_nearby and self.data
                else _SPARSE_READ_BYTES
            )
            size = min(max(nbytes, min_nbytes), max(0, self._source.nbytes - offset))
            self.data, self.start, index = self._source.read(offset, size), offset, 0
        return index
