"""StorageInfo -> torch.UntypedStorage over the mapped file; bytes are read where they are used."""

import mmap
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import torch
from torch import Tensor

from ckptool.errors import ReadError
from ckptool.formats.files.source import SourceCache, open_source
from ckptool.locations import Location, RemotePath
from ckptool.migration.load.file_copies import MappedFile
from ckptool.migration.source_guard import SourceGuard
from ckptool.model import DTYPE_BITS, Span, StorageInfo, TensorInfo

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
        self._maps: dict[Path, _MappedStorages] = {}
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
        return tuple(storages.file for storages in self._maps.values())

    def view_storage(self, info: TensorInfo, dtype: torch.dtype) -> Tensor | None:
        """Return a new tensor that is its whole storage in a local file; None for any other.

        Also None where the storage is mapped already: `get_storage` returns that.

        Raises:
            ReadError: as `get_storage`.
        """
        storage = info.storage
        span = storage.span if storage is not None else None
        if storage is None or span is None or not span.nbytes or isinstance(span.path, RemotePath):
            return None
        itemsize, numel = dtype.itemsize, prod(info.shape)
        is_native = storage.byteorder == "little" or itemsize == 1
        is_whole = not info.storage_offset and numel * itemsize == span.nbytes
        is_aligned = span.offset % itemsize == 0
        if not (is_native and is_whole and is_aligned and info.is_contiguous):
            return None
        self._require_unchanged(span)
        storages = self._map_storages(span)
        place = span.offset, span.nbytes
        if place in storages.views:
            return None
        pages = storages.file.pages
        elements = torch.frombuffer(pages, dtype=dtype, count=numel, offset=span.offset)
        storages.views[place] = elements
        return elements.view(info.shape)

    def map_file(self, span: Span) -> MappedFile:
        """Return the mapped file of a span of a local file.

        Raises:
            ReadError: as `get_storage`.
        """
        self._require_unchanged(span)
        return self._map_storages(span).file

    def get_storage(self, storage: StorageInfo, dtype: str) -> "UntypedStorage":
        """Return the storage of a tensor of `dtype`, the same one for all tensors that share it.

        Args:
            storage: it has a span or content.
            dtype: decides the alignment, and in a big-endian file which bytes are swapped.

        Raises:
            ReadError: the file cannot be read, or was changed since the guard saw it.
        """
        if storage.span is not None:
            self._require_unchanged(storage.span)
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
        mapped = self._map_span(span)
        is_aligned = span.offset % max(alignment, 1) == 0
        return mapped if is_aligned else mapped.clone()  # type: ignore[no-untyped-call]

    def _map_span(self, span: Span) -> "UntypedStorage":
        if not span.nbytes:
            return _copy_bytes(b"")
        storages = self._map_storages(span)
        viewed = storages.views.get((span.offset, span.nbytes))
        if viewed is not None:
            return viewed.untyped_storage()
        part: UntypedStorage = storages.whole[span.offset : span.offset + span.nbytes]
        return part

    def _map_storages(self, span: Span) -> "_MappedStorages":
        """Return the map of the file of a span.

        Raises:
            ReadError: it cannot be mapped, or is too short now.
        """
        path = span.path
        assert isinstance(path, Path)
        storages = self._maps.get(path)
        if storages is None:
            storages = self._maps[path] = _MappedStorages.map_file(path)
        if span.offset + span.nbytes > len(storages.file.pages):
            nbytes = len(storages.file.pages)
            raise ReadError(path, f"has only {nbytes} bytes now: it was changed")
        return storages

    def _require_unchanged(self, span: Span) -> None:
        if self._source_guard and self._source_guard.has_changed(span.path):
            raise ReadError(span.path, "was changed after it was opened: open it again")


@dataclass(frozen=True, slots=True, eq=False)
class _MappedStorages:
    """The storages of one mapped file."""

    file: MappedFile
    whole: "UntypedStorage"
    """All its bytes."""
    views: dict[tuple[int, int], Tensor]
    """(offset, bytes) of a storage of its own -> a tensor over it, made without `whole`."""

    @classmethod
    def map_file(cls, path: Path) -> Self:
        """Map a file.

        Raises:
            ReadError: it cannot be mapped.
        """
        pages = _map_pages(path)
        elements = torch.frombuffer(pages, dtype=torch.uint8)
        file = MappedFile(path, elements.data_ptr(), pages)
        return cls(file, elements.untyped_storage(), {})


def _map_pages(path: Location) -> mmap.mmap:
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
