"""CopyRange -> bytes in the output file, read back and fingerprinted, in threads."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock
from typing import Final

from msgspec import Struct

from ckptool.errors import WriteError
from ckptool.formats.files.atomic import translate_os_errors
from ckptool.formats.files.source import ByteSource
from ckptool.formats.files.writer import ProgressCallback
from ckptool.values.fingerprint import fingerprint_chunks

_THREAD_COUNT: Final = 2
_CHUNK_NBYTES: Final = 1 << 20


class CopyRange(Struct, frozen=True, gc=False):
    """Bytes of one tensor to copy: source file and offset, target position, dtype and shape."""

    file: int
    """Index of the source file."""
    offset: int
    nbytes: int
    position: int
    """Offset in the output file, in bytes."""
    dtype: str
    shape: tuple[int, ...]


class CopyThreads:
    """Threads that copy ranges in order; each chunk is read back, compared and fingerprinted.

    Every chunk is read from the source once, and compared while it is still in the CPU cache.
    """

    def __init__(
        self,
        open_file: Callable[[int], ByteSource],
        descriptor: int,
        target: Path,
        progress: ProgressCallback,
    ) -> None:
        self.futures: list[Future[str]] = []
        """Fingerprint of each range; "" without fingerprints."""
        self._open_file = open_file
        self._descriptor = descriptor
        self._target = target
        self._progress = progress
        self._keep_count = sys.maxsize
        self._stop = Event()
        self._lock = Lock()
        self._write_lock = Lock()
        """Serializes writes: concurrent pwrite calls contend in the kernel."""
        self._pool = ThreadPoolExecutor(_THREAD_COUNT)

    def submit_ranges(self, ranges: Sequence[CopyRange], *, with_fingerprints: bool) -> None:
        """Submit all ranges; compute their fingerprints if `with_fingerprints`."""
        self.futures = [
            self._pool.submit(
                self._copy_range, index, copy_range, with_fingerprint=with_fingerprints
            )
            for index, copy_range in enumerate(ranges)
        ]

    def finish_first(self, count: int) -> int:
        """Wait for the first `count` ranges, cancel the rest, and return `count`.

        Nothing is written after this returns.

        Raises:
            WriteError: a range could not be written, or read back.
            ReadError: a source can no longer be read.
        """
        self._keep_count = count
        for late_future in self.futures[count:]:
            late_future.cancel()
        for future in self.futures[:count]:
            future.result()
        # Ranges that are already running must not overwrite what the caller writes next.
        wait([late_future for late_future in self.futures if not late_future.cancelled()])
        return count

    def stop_copying(self) -> None:
        """Stop after the current chunks, and wait for the threads."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _copy_range(self, index: int, copy_range: CopyRange, *, with_fingerprint: bool) -> str:
        chunks = self._copy_chunks(index, copy_range)
        if with_fingerprint:
            return fingerprint_chunks(copy_range.dtype, copy_range.shape, chunks)
        return "".join("" for _ in chunks)

    def _copy_chunks(self, index: int, copy_range: CopyRange) -> Iterator[memoryview]:
        source = self._open_file(copy_range.file)
        source_buffer = bytearray(min(_CHUNK_NBYTES, copy_range.nbytes))
        read_back_buffer = bytearray(len(source_buffer))
        with translate_os_errors(self._target):
            for start in range(0, copy_range.nbytes, _CHUNK_NBYTES):
                if self._stop.is_set() or index >= self._keep_count:
                    raise WriteError(f"{self._target}: not written: interrupted")
                chunk = memoryview(source_buffer)[: copy_range.nbytes - start]
                source.read_into(chunk, copy_range.offset + start)
                self._write_all(chunk, copy_range.position + start)
                view = memoryview(read_back_buffer)[: len(chunk)]
                count = os.preadv(self._descriptor, [view], copy_range.position + start)
                if count != len(chunk) or not _has_equal_prefix(
                    source_buffer, read_back_buffer, count
                ):
                    raise WriteError(
                        f"{self._target}: not written: read back, byte"
                        f" {copy_range.position + start} or one after it differs"
                    )
                with self._lock:
                    self._progress(len(chunk))
                yield chunk

    def _write_all(self, remaining: memoryview, position: int) -> None:
        with self._write_lock:
            while remaining:
                written_nbytes = os.pwrite(self._descriptor, remaining, position)
                position, remaining = position + written_nbytes, remaining[written_nbytes:]


def _has_equal_prefix(expected: bytearray, actual: bytearray, nbytes: int) -> bool:
    """Compare the first `nbytes` bytes; avoids a copy if that is the whole buffer."""
    return expected == actual if nbytes == len(expected) else expected[:nbytes] == actual[:nbytes]
