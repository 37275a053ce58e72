"""Runs of bytes, in files or made on the way -> the file that is being written."""

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self
from zlib import crc32

from msgspec import Struct

from ckptool.errors import CorruptCheckpointError, WriteError
from ckptool.formats.files import Source, open_source
from ckptool.locations import Location
from ckptool.model import Span

Progress = Callable[[int], None]
"""Told how many bytes have just been written."""

_PIECE: Final = 32 << 20
"""Bytes that the kernel copies at a time: between two of them, progress is shown."""
_CHUNK: Final = 1 << 20
_PAGE: Final = 4096
_OPEN_FILES: Final = 32
_CANNOT_COPY: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY}
)
"""What the kernel answers where two file systems cannot copy between each other."""


class Blob(Struct, frozen=True):
    """A run of bytes that is to be written: where it lies in a file, or what makes it."""

    nbytes: int
    span: Span | None = None
    chunks: Callable[[], Iterable[bytes]] | None = None
    """Makes the bytes, where they lie in no file as they are wanted."""
    crc: int | None = None
    """Its CRC-32, where that is known without reading it."""


def blob_of(data: bytes) -> Blob:
    """Return the blob of bytes that are at hand."""
    return Blob(len(data), chunks=lambda: (data,), crc=crc32(data))


class Sink:
    """Writes one file from its beginning to its end; keeps a few sources open."""

    def __init__(self, target: Path, descriptor: int, progress: Progress) -> None:
        self.position = 0
        self._target = target
        self._descriptor = descriptor
        self._progress = progress
        self._sources: dict[Location, tuple[Source, ExitStack]] = {}
        self._copies = True
        self._buffer = bytearray(_CHUNK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._sources:
            self._close_oldest()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._descriptor, rest, self.position)
            self.position += written
            self._progress(written)
            rest = rest[written:]

    def patch(self, offset: int, data: bytes) -> None:
        """Write over what was written already, as much as was there."""
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + written, data[written:]

    def end(self) -> None:
        """Cut off what an earlier attempt wrote beyond the position."""
        os.ftruncate(self._descriptor, self.position)

    def append(self, blob: Blob, *, checksum: bool = False) -> int:
        """Append a blob and return its CRC-32: 0 unless it is known or asked for.

        Raises:
            CorruptCheckpointError: a source is shorter than it was described.
            ReadError: a source cannot be read.
            WriteError: what was made has another length than was said.
        """
        if blob.span is not None and (blob.crc is not None or not checksum):
            self.copy(blob.span)
            return blob.crc or 0
        before, crc = self.position, 0
        chunks = self._read(blob.span) if blob.span else blob.chunks() if blob.chunks else ()
        for chunk in chunks:
            crc = crc32(chunk, crc) if checksum else 0
            self.write(chunk)
        if self.position - before != blob.nbytes:
            found = self.position - before
            raise WriteError(f"{self._target}: {found} bytes were made of {blob.nbytes}")
        return crc

    def _read(self, span: Span) -> Iterable[bytes]:
        source = self._source(span.path)
        for start in range(0, span.nbytes, _CHUNK):
            yield source.read(span.offset + start, min(_CHUNK, span.nbytes - start))

    def copy(self, span: Span) -> None:
        """Copy a span: by the kernel where pages fall on pages, else through one buffer.

        Where they do not, the kernel takes half as long again as this does.
        """
        source, start = self._source(span.path), span.offset
        if source.remote:
            for chunk in self._read(span):
                self.write(chunk)
            return
        end = start + span.nbytes
        while start < end:
            together = self._copies and (start - self.position) % _PAGE == 0
            step = self._copy_piece if together else self._pass_on
            copied = step(source, start, min(end - start, _PIECE))
            start, self.position = start + copied, self.position + copied
            self._progress(copied)

    def _pass_on(self, source: Source, start: int, nbytes: int) -> int:
        """Copy up to where a page of the target begins, so that all but the first are whole."""
        view = memoryview(self._buffer)[: min(nbytes, _CHUNK - self.position % _PAGE)]
        count = os.preadv(source.fileno(), [view], start)
        if not count:
            reason = f"the file ended at byte {start} while it was read"
            raise CorruptCheckpointError(source.path, reason)
        return os.pwrite(self._descriptor, view[:count], self.position)

    def _copy_piece(self, source: Source, start: int, nbytes: int) -> int:
        try:
            copied = os.copy_file_range(
                source.fileno(), self._descriptor, nbytes, start, self.position
            )
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            self._copies = False
            return 0
        if not copied:
            reason = f"the file ended at byte {start} while it was read"
            raise CorruptCheckpointError(source.path, reason)
        return copied

    def _source(self, path: Location) -> Source:
        found = self._sources.get(path)
        if found is None:
            if len(self._sources) >= _OPEN_FILES:
                self._close_oldest()
            stack = ExitStack()
            found = self._sources[path] = (stack.enter_context(open_source(path)), stack)
        return found[0]

    def _close_oldest(self) -> None:
        _, stack = self._sources.pop(next(iter(self._sources)))
        stack.close()
