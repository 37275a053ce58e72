"""StorageInfo -> torch.UntypedStorage over the mapped file; bytes are read where they are used."""

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from ckptool.errors import ReadError
from ckptool.formats.files.source import SourceCache, open_source
from ckptool.locations import Location, RemotePath
from ckptool.migration.load.file_copies import MappedFile
from ckptool.migration.source_guard import SourceGuard
from ckptool.model import DTYPE_BITS, Span, StorageInfo

if TYPE_CHECKING:
    from torch import UntypedStorage

_MAX_OPEN_FILES: Final = 16


class MappedFiles:
    """Maps local files privately: what is written into a tensor never reaches the file.

    Of a remote file, each storage is read when it is asked for, and kept.
    """

    def __init__(self, source_guard: SourceGuard | None) -> None:
        """With a guard, a file that was changed is refused at each access; else nobody asks."""
        self._source_guard = source_guard
        self._maps: dict[Path, tuple[MappedFile, UntypedStorage]] = {}
        self._storages: dict[tuple[StorageInfo, int], UntypedStorage] = {}
        self._remote_sources = SourceCache(_MAX_OPEN_FILES)
        self.is_closed = False

    def close(self) -> None:
        """Let go of the files; tensors that were made before stay as they are."""
        self.is_closed = True
        self._maps.clear()
        self._storages.clear()
        self._remote_sources.close()

    @property
    def mapped(self) -> tuple[MappedFile, ...]:
        """The local files that were mapped so far."""
        return tuple(mapped_file for mapped_file, _ in self._maps.values())

    def get_storage(self, storage: StorageInfo, dtype: str) -> "UntypedStorage":
        """Return the storage of a tensor of `dtype`, the same one for all tensors that share it.

        Args:
            storage: it has a span or content.
            dtype: decides the alignment, and in a big-endian file which bytes are swapped.

        Raises:
            ReadError: the file cannot be read, or was changed since the guard saw it.
        """
        span = storage.span
        if span is not None and self._source_guard and self._source_guard.has_changed(span.path):
            raise ReadError(span.path, "was changed after it was opened: open it again")
        nbytes = DTYPE_BITS[dtype] // 8
        is_swapped = storage.byteorder != "little" and nbytes > 1
        word_nbytes = (nbytes // 2 if dtype.startswith("complex") else nbytes) if is_swapped else 1
        form = storage, word_nbytes
        found_storage = self._storages.get(form)
        if found_storage is None:
            found_storage = _swap_bytes(self._make_storage(storage, nbytes), word_nbytes)
            self._storages[form] = found_storage
        return found_storage

    def _make_storage(self, storage: StorageInfo, alignment: int) -> "UntypedStorage":
        if storage.span is None:
            return _copy_bytes(storage.content or b"")
        span = storage.span
        if isinstance(span.path, RemotePath):
            source = self._remote_sources.get_source(span.path)
            return _copy_bytes(source.read(span.offset, span.nbytes))
        mapped: UntypedStorage = self._map_span(span.path, span)
        is_aligned = span.offset % max(alignment, 1) == 0
        return mapped if is_aligned else mapped.clone()  # type: ignore[no-untyped-call]

    def _map_span(self, path: Path, span: Span) -> "UntypedStorage":
        if not span.nbytes:
            return _copy_bytes(b"")
        if path not in self._maps:
            pages = _map_file(path)
            mapped = torch.frombuffer(pages, dtype=torch.uint8)
            mapped_file = MappedFile(path, mapped.data_ptr(), pages)
            self._maps[path] = mapped_file, mapped.untyped_storage()
        _, whole = self._maps[path]
        if span.offset + span.nbytes > whole.nbytes():
            raise ReadError(path, f"has only {whole.nbytes()} bytes now: it was changed")
        part: UntypedStorage = whole[span.offset : span.offset + span.nbytes]
        return part


def _map_file(path: Location) -> mmap.mmap:
    """Return a private map of a file.

    Raises:
        ReadError: it cannot be opened or mapped.
    """
    with open_source(path) as source:
        nbytes = os.fstat(source.fileno()).st_size
        try:
            return mmap.mmap(source.fileno(), nbytes, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise ReadError(path, f"cannot be mapped into memory: {error}") from error


def _copy_bytes(content: bytes) -> "UntypedStorage":
    if not content:  # which frombuffer() rejects
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()


def _swap_bytes(storage: "UntypedStorage", word_nbytes: int) -> "UntypedStorage":
    """Return a storage with the bytes of each word reversed; the same one for words of one byte."""
    if word_nbytes == 1:
        return storage
    elements = torch.empty(0, dtype=torch.uint8).set_(storage)
    whole = elements[: len(elements) - len(elements) % word_nbytes]
    return whole.view(-1, word_nbytes).flip(1).contiguous().untyped_storage()
