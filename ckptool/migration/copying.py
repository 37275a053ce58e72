"""Runs of bytes -> where they are going to be, read back, and named: in threads."""

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
    """The bytes of a tensor: where they are, where they are going to be, and what they mean."""

    file: int
    """Number of the file that has them."""
    offset: int
    nbytes: int
    position: int
    dtype: str
    shape: tuple[int, ...]


class Copying:
    """Copies runs in their order, compares each piece with what is in the file then, and names it.

    Every piece is read once, and checked while the processor still has it.
    """

    def __init__(
        self, opened: Callable[[int], Source], descriptor: int, target: Path, progress: Progress
    ) -> None:
        self.done: list[Future[str]] = []
        """Of each run its fingerprint, where that is wanted."""
        self._opened = opened
        self._descriptor = descriptor
        self._target = target
        self._progress = progress
        self._wanted = sys.maxsize
        self._stop = Event()
        self._lock = Lock()
        self._writing = Lock()
        """The kernel lets one write at a time; who waits here instead leaves the core to others."""
        self._pool = ThreadPoolExecutor(_JOBS)

    def start(self, runs: Sequence[Run], *, recorded: bool) -> None:
        """Begin with all runs, and with their fingerprints where they are `recorded`."""
        self.done = [
            self._pool.submit(self._copy, number, run, recorded) for number, run in enumerate(runs)
        ]

    def first(self, wanted: int) -> int:
        """Return how many of the first `wanted` runs are where they should be: all of them.

        Nothing is written any more once this returns.

        Raises:
            WriteError: one could not be written, or read back.
            ReadError: a source cannot be read any more.
        """
        self._wanted = wanted
        for late in self.done[wanted:]:
            late.cancel()
        for done in self.done[:wanted]:
            done.result()
        # What is too late to be cancelled must not write over what comes next.
        wait([late for late in self.done if not late.cancelled()])
        return wanted

    def end(self) -> None:
        """Stop at the next piece, and wait for that."""
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
    """Compare the beginnings; a whole buffer is not copied for it."""
    return one == other if nbytes == len(one) else one[:nbytes] == other[:nbytes]
