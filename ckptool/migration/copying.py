"""CopyRange -> bytes in the output file, read back and fingerprinted, in threads."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock
from typing import Final

from msgspec import Struct

from ckptool.content import fingerprint
from ckptool.errors import WriteError
from ckptool.formats.atomic import failing
from ckptool.formats.blobs import Progress
from ckptool.formats.files import Source

_JOBS: Final = 2
_CHUNK: Final = 1 << 20


class Run(Struct, frozen=True, gc=False):
    """Bytes of one tensor to copy: source file and offset, target position, dtype and shape."""

    file: int
    """Index of the source file."""
    offset: int
    nbytes: int
    position: int
    """Offset in the output file, in bytes."""
    dtype: str
    shape: tuple[int, ...]


class Copying:
    """Threads that copy ranges in order; each chunk is read back, compared and fingerprinted.

    Every chunk is read from the source once, and compared while it is still in the CPU cache.
    """

    def __init__(
        self, opened: Callable[[int], Source], descriptor: int, target: Path, progress: Progress
    ) -> None:
        self.done: list[Future[str]] = []
        """Fingerprint of each range; "" without fingerprints."""
        self._opened = opened
        self._descriptor = descriptor
        self._target = target
        self._progress = progress
        self._wanted = sys.maxsize
        self._stop = Event()
        self._lock = Lock()
        self._writing = Lock()
        """Serializes writes: concurrent pwrite calls contend in the kernel."""
        self._pool = ThreadPoolExecutor(_JOBS)

    def start(self, runs: Sequence[Run], *, recorded: bool) -> None:
        """Submit all ranges; compute their fingerprints if `with_fingerprints`."""
        self.done = [
            self._pool.submit(self._copy, number, run, recorded) for number, run in enumerate(runs)
        ]

    def first(self, wanted: int) -> int:
        """Wait for the first `count` ranges, cancel the rest, and return `count`.

        Nothing is written after this returns.

        Raises:
            WriteError: a range could not be written, or read back.
            ReadError: a source can no longer be read.
        """
        self._wanted = wanted
        for late in self.done[wanted:]:
            late.cancel()
        for done in self.done[:wanted]:
            done.result()
        # Ranges that are already running must not overwrite what the caller writes next.
        wait([late for late in self.done if not late.cancelled()])
        return wanted

    def end(self) -> None:
        """Stop after the current chunks, and wait for the threads."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _copy(self, number: int, run: Run, recorded: bool) -> str:  # noqa: FBT001 (a thread's)
        pieces = self._pieces(number, run)
        if recorded:
            return fingerprint(run.dtype, run.shape, pieces)
        return "".join("" for _ in pieces)

    def _pieces(self, number: int, run: Run) -> Iterator[memoryview]:
        source = self._opened(run.file)
        there = bytearray(min(_CHUNK, run.nbytes))
        back = bytearray(len(there))
        with failing(self._target):
            for start in range(0, run.nbytes, _CHUNK):
                if self._stop.is_set() or number >= self._wanted:
                    raise WriteError(f"{self._target}: not written: it was ended")
                piece = memoryview(there)[: run.nbytes - start]
                source.read_into(piece, run.offset + start)
                self._write(piece, run.position + start)
                view = memoryview(back)[: len(piece)]
                count = os.preadv(self._descriptor, [view], run.position + start)
                if count != len(piece) or not _alike(there, back, count):
                    raise WriteError(
                        f"{self._target}: not written: read back, byte {run.position + start} or "
                        "one after it differs"
                    )
                with self._lock:
                    self._progress(len(piece))
                yield piece

    def _write(self, rest: memoryview, position: int) -> None:
        with self._writing:
            while rest:
                written = os.pwrite(self._descriptor, rest, position)
                position, rest = position + written, rest[written:]


def _alike(one: bytearray, other: bytearray, nbytes: int) -> bool:
    """Compare the first `nbytes` bytes; avoids a copy if that is the whole buffer."""
    return one == other if nbytes == len(one) else one[:nbytes] == other[:nbytes]
