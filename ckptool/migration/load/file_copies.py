"""Copies from mapped files into a live module: as bytes, in threads, and without keeping pages.

So a load takes the time of the memory, and needs little more of it than the module, however large
the file.
"""

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from ckptool.formats.files.source import open_source
from ckptool.modules.dispatch_mode import DispatchMode

_JOB_NBYTES: Final = 16 << 20
_MIN_READ_NBYTES: Final = 1 << 16
"""Fewer bytes are copied from the map: a call of the system for each takes longer."""
_CACHE_LINE_NBYTES: Final = 64
_MAX_THREADS: Final = min(8, os.cpu_count() or 1)
_DROP: Final = getattr(mmap, "MADV_DONTNEED", None)
_COPY: Final = torch.ops.aten.copy_.default
_PLAIN_TYPES: Final = frozenset({Tensor, nn.Parameter})


@dataclass(frozen=True, slots=True, eq=False)
class MappedFile:
    """A local file that is mapped into memory."""

    path: Path
    address: int
    pages: mmap.mmap


class _BytesCopy(NamedTuple):
    """Bytes of a file that go to an address."""

    file: MappedFile
    offset: int
    nbytes: int
    target: int
    """Address."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A part of a tensor, or all of it, as a file has it."""

    offsets: tuple[int, ...]
    """Its first index in the tensor, one per dimension."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Returns its elements."""
    file: MappedFile | None = None
    """File that has its elements side by side and in order; None for any other."""
    start: int = 0
    """Byte of this file where they begin."""


@dataclass(frozen=True, slots=True, eq=False)
class ChunkedTensor:
    """A tensor that no view of a file is: it would have to be put together in memory."""

    stand_in: Tensor
    """On meta, with its shape and dtype: what `load_state_dict` is given in its place."""
    chunks: tuple[Chunk, ...]
    """They cover it, and do not overlap."""

    def list_places(self, target: Tensor) -> list[tuple[Tensor, Chunk]]:
        """Return (part of `target`, chunk that belongs there)."""
        places = []
        for chunk in self.chunks:
            part = target
            for dim, (start, size) in enumerate(zip(chunk.offsets, chunk.shape, strict=True)):
                part = part.narrow(dim, start, size)
            places.append((part, chunk))
        return places


class FileCopies(DispatchMode):
    """Puts off each `copy_` of bytes from a mapped file, and makes all of them when it is left.

    Only where nothing writes into those maps, and nothing but operators reads what was copied.
    Other copies (casts, other devices, other layouts) are torch's. A tensor in chunks is copied
    chunk by chunk, so that it is put together in the module alone.
    """

    def __init__(self, files: Iterable[MappedFile], chunked: Iterable[ChunkedTensor] = ()) -> None:
        super().__init__()
        self._files = sorted(files, key=lambda file: file.address)
        self._addresses = [file.address for file in self._files]
        self._chunked = {id(tensor.stand_in): tensor for tensor in chunked}
        self._copies: dict[int, tuple[_BytesCopy, ...]] = {}
        """Address of the storage that is written -> the copies into it, of one tensor."""

    def __exit__(self, kind: type[BaseException] | None, *error_info: object) -> None:
        """Make the copies, also where torch has raised meanwhile: it makes them before it does.

        Raises:
            ReadError: a file cannot be read, or is shorter than it was.
        """
        super().__exit__(kind, *error_info)  # type: ignore[no-untyped-call]
        if kind is None or issubclass(kind, Exception):
            self._finish()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Put off a copy of bytes; call anything else, after what was put off.

        Raises:
            ReadError: a file cannot be read, or is shorter than it was.
        """
        if func is not _COPY:
            self._finish()
            return func(*args, **(kwargs or {}))
        target, source = args[:2]
        chunked = self._chunked.get(id(source))
        if chunked is None:
            self._copy_tensor(target, source)
        else:
            with torch.no_grad():
                self._copy_chunks(chunked, target)
        return target

    def _copy_tensor(self, target: Tensor, source: Tensor) -> None:
        file = self._find_file(source)
        if file is None:
            self._finish()
            target.copy_(source)
            return
        start = source.data_ptr() - file.address
        if _is_block(target) and target.dtype is source.dtype and target.shape == source.shape:
            copy = _BytesCopy(file, start, target.nbytes, target.data_ptr())
            self._put_off(target, (copy,))
            return
        self._finish()
        target.copy_(source)
        _drop_pages(file, start, start + source.nbytes)

    def _copy_chunks(self, chunked: ChunkedTensor, target: Tensor) -> None:
        """Copy chunk by chunk: later, if all are bytes of files that arrive side by side."""
        places = chunked.list_places(target)
        copies = tuple(
            _BytesCopy(chunk.file, chunk.start, part.nbytes, part.data_ptr())
            for part, chunk in places
            if chunk.file is not None and _is_block(part)
        )
        if len(copies) == len(places) and target.dtype is chunked.stand_in.dtype:
            self._put_off(target, copies)
            return
        self._finish()
        for part, chunk in places:
            part.copy_(chunk.read())
            if chunk.file is not None:
                nbytes = part.numel() * chunked.stand_in.itemsize
                _drop_pages(chunk.file, chunk.start, chunk.start + nbytes)

    def _find_file(self, tensor: Any) -> MappedFile | None:
        """Return the file that a contiguous tensor is a view of; None for another tensor."""
        if not _is_block(tensor):
            return None
        address = tensor.data_ptr()
        index = bisect_right(self._addresses, address) - 1
        file = self._files[index] if index >= 0 else None
        is_inside = file and address + tensor.nbytes <= file.address + len(file.pages)
        return file if is_inside else None

    def _put_off(self, target: Tensor, copies: tuple[_BytesCopy, ...]) -> None:
        storage = target.untyped_storage().data_ptr()
        before = self._copies.get(storage)
        if before is not None and _list_places(before) != _list_places(copies):
            self._finish()  # the two may overlap; of two into one place the second stays
        self._copies[storage] = copies

    def _finish(self) -> None:
        copies = chain.from_iterable(self._copies.values())
        jobs = list(_group_copies(chain.from_iterable(map(_cut_copy, copies))))
        self._copies.clear()
        if len(jobs) <= 1:
            for job in jobs:
                _run_job(job)
            return
        with ThreadPoolExecutor(min(len(jobs), _MAX_THREADS)) as pool:
            for _ in pool.map(_run_job, jobs):  # which cancels the rest where one raises
                pass


def _is_block(tensor: Any) -> bool:
    """Whether it is a plain tensor in the memory of the CPU, in one block and in order."""
    return (
        type(tensor) in _PLAIN_TYPES
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _list_places(copies: Iterable[_BytesCopy]) -> list[tuple[int, int]]:
    return [(copy.target, copy.nbytes) for copy in copies]


def _cut_copy(copy: _BytesCopy) -> Iterator[_BytesCopy]:
    for start in range(0, copy.nbytes, _JOB_NBYTES):
        nbytes = min(_JOB_NBYTES, copy.nbytes - start)
        yield _BytesCopy(copy.file, copy.offset + start, nbytes, copy.target + start)


def _group_copies(copies: Iterable[_BytesCopy]) -> Iterator[list[_BytesCopy]]:
    """Yield lists of copies from one file, each of about as many bytes as are worth a job."""
    job: list[_BytesCopy] = []
    nbytes = 0
    for copy in copies:
        if job and (nbytes + copy.nbytes > _JOB_NBYTES or copy.file is not job[0].file):
            yield job
            job, nbytes = [], 0
        job.append(copy)
        nbytes += copy.nbytes
    if job:
        yield job


def _run_job(job: Sequence[_BytesCopy]) -> None:
    """Make the copies.

    Raises:
        ReadError: the file cannot be read, or is shorter than it was.
    """
    file = job[0].file
    mapped = [copy for copy in job if not _is_read_faster(copy)]
    read = [copy for copy in job if _is_read_faster(copy)]
    if read:
        with open_source(file.path) as source:
            for copy in read:
                memory = (ctypes.c_ubyte * copy.nbytes).from_address(copy.target)
                source.read_into(memoryview(memory).cast("B"), copy.offset)
    for copy in mapped:
        ctypes.memmove(copy.target, file.address + copy.offset, copy.nbytes)
    if mapped:
        end = max(copy.offset + copy.nbytes for copy in mapped)
        _drop_pages(file, min(copy.offset for copy in mapped), end)


def _is_read_faster(copy: _BytesCopy) -> bool:
    """Whether the system copies faster than the processor from the map.

    It maps no page then; but it copies slowly between addresses that are not aligned alike, as in
    most safetensors files.
    """
    is_aligned = (copy.target - copy.file.address - copy.offset) % _CACHE_LINE_NBYTES == 0
    return is_aligned and copy.nbytes >= _MIN_READ_NBYTES


def _drop_pages(file: MappedFile, start: int, end: int) -> None:
    """Let go of pages that were read from the map; they stay in the cache of the system."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    if _DROP is not None and end > first:
        with suppress(OSError, ValueError):
            file.pages.madvise(_DROP, first, end - first)
