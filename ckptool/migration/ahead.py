"""A state -> the file, begun before the plan is known: most plans leave most bytes as they are."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock
from typing import Final, Self

from ckptool.content import fingerprint
from ckptool.errors import WriteError
from ckptool.formats.atomic import Pending, failing, pending
from ckptool.formats.blobs import Progress
from ckptool.formats.files import Source, open_source
from ckptool.locations import Location
from ckptool.migration.prints import Fingerprints
from ckptool.model import Span, State, TensorInfo
from ckptool.values import fingerprint_many

LEAST: Final = 64 << 20
"""Bytes of a state from which on it is worth it."""
_JOBS: Final = 2
_CHUNK: Final = 1 << 20
_PAUSE: Final = 0.05
"""Seconds between two looks at whether there is anything to bring to the disk."""
_SWITCH: Final = 1e-4
"""Seconds that a thread which imports torch may keep the others from their next system call."""


class Ahead:
    """Copies tensors to where they will be, reads them back, and takes their fingerprints.

    Every piece is read once, and checked while the processor still has it. What the plan then puts
    elsewhere is written again by who knows the plan.
    """

    def __init__(self) -> None:
        self.out: Pending | None = None
        """The file that was begun; None where nothing was."""
        self.begin = 0
        """Where the first tensor's bytes are."""
        self._spans: list[Span] = []
        self._running: list[Future[str]] = []
        self._prints: dict[tuple[Span, str, tuple[int, ...]], Future[str]] = {}
        self._kept = sys.maxsize
        self._stop = Event()
        self._flushing: Future[None] | None = None
        self._lock = Lock()
        self._writing = Lock()
        """The kernel lets one write at a time; who waits here instead leaves the core to others."""
        self._stack = ExitStack()
        self._sources: dict[Location, Source] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._stack.close()

    def start(
        self, tensors: Sequence[TensorInfo], begin: int, target: Path, *,
        force: bool, recorded: bool, progress: Progress,
    ) -> None:  # fmt: skip
        """Begin the file beside `target`, with the first of `tensors` at byte `begin`.

        Args:
            tensors: in their order in the file; each has a span.
            begin: where the first one's bytes are going to be.
            target: what the file will be called.
            force: whether it may replace another.
            recorded: whether fingerprints are wanted.
            progress: told how many bytes have just been written.
        """
        self.begin = begin
        self.out = self._stack.enter_context(pending(target, force=force))
        self._stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(_SWITCH)
        pool = self._stack.enter_context(ThreadPoolExecutor(_JOBS + 1))
        self._stack.callback(self._stop.set)
        self._flushing = pool.submit(self._flush, self.out.descriptor)

        def carry(number: int, tensor: TensorInfo, span: Span, position: int) -> str:
            pieces = self._carried(number, span, position, progress)
            if recorded:
                return fingerprint(tensor.dtype, tensor.shape, pieces)
            return "".join("" for _ in pieces)

        for number, tensor in enumerate(tensors):
            assert tensor.span is not None
            done = pool.submit(carry, number, tensor, tensor.span, begin)
            self._spans.append(tensor.span)
            self._running.append(done)
            if recorded:
                self._prints[_identity(tensor)] = done
            begin += tensor.nbytes

    def keep(self, begin: int, wanted: Sequence[Span | None]) -> int:
        """Return how many tensors at the beginning of the file are what the plan wants there.

        Raises:
            WriteError: one could not be written, or read back.
            ReadError: the source cannot be read any more.
        """
        pairs = zip(self._spans, wanted, strict=False)
        same = begin == self.begin and self.out is not None
        kept = (
            next((n for n, (a, b) in enumerate(pairs) if a != b), len(self._spans)) if same else 0
        )
        self._kept = min(kept, len(wanted))
        for late in self._running[self._kept :]:
            late.cancel()
        for done in self._running[: self._kept]:
            done.result()
        # What is too late to be cancelled must not write over what comes next.
        wait([late for late in self._running if not late.cancelled()])
        self._stop.set()
        if self._flushing is not None:
            self._flushing.result()
        return self._kept

    def proved(self) -> dict[int, Span]:
        """Return what was read back: position in the file -> where the bytes came from."""
        found, position = {}, self.begin
        for span in self._spans[: self._kept]:
            found[position] = span
            position += span.nbytes
        return found

    def prints(self, state: State) -> Fingerprints:
        """Return the fingerprints of a state by key: those at hand, and the others."""
        found: dict[str, str | None] = {}
        for key, tensor in state.tensors.items():
            done = self._prints.get(_identity(tensor)) if tensor.span else None
            if done is not None and not done.cancelled() and done.exception() is None:
                found[key] = done.result()
        rest = [key for key in state.tensors if key not in found]
        found |= zip(rest, fingerprint_many(state.tensors[key] for key in rest), strict=True)
        return found

    def _carried(
        self, number: int, span: Span, position: int, progress: Progress
    ) -> Iterator[memoryview]:
        """Copy a span piece by piece, compare each with what is in the file then, and yield it."""
        assert self.out is not None
        source, descriptor = self._source(span.path), self.out.descriptor
        there = bytearray(min(_CHUNK, span.nbytes))
        back = bytearray(len(there))
        with failing(self.out.target):
            for start in range(0, span.nbytes, _CHUNK):
                if self._stop.is_set() or number >= self._kept:
                    raise WriteError(f"{self.out.target}: not written: it was ended")
                piece = memoryview(there)[: span.nbytes - start]
                source.read_into(piece, span.offset + start)
                with self._writing:
                    _write(descriptor, piece, position + start)
                count = os.preadv(descriptor, [memoryview(back)[: len(piece)]], position + start)
                if count != len(piece) or not _alike(there, back, count):
                    raise WriteError(
                        f"{self.out.target}: not written: read back, byte {position + start} or "
                        "one after it differs"
                    )
                with self._lock:
                    progress(len(piece))
                yield piece

    def _flush(self, descriptor: int) -> None:
        """Keep the disk at work, which else has it all before it in the end."""
        while not self._stop.wait(_PAUSE):
            os.fdatasync(descriptor)

    def _source(self, path: Location) -> Source:
        with self._lock:
            if path not in self._sources:
                self._sources[path] = self._stack.enter_context(open_source(path))
            return self._sources[path]


def _identity(tensor: TensorInfo) -> tuple[Span, str, tuple[int, ...]]:
    assert tensor.span is not None
    return tensor.span, tensor.dtype, tensor.shape


def _alike(one: bytearray, other: bytearray, nbytes: int) -> bool:
    """Compare the beginnings; a whole buffer is not copied for it."""
    return one == other if nbytes == len(one) else one[:nbytes] == other[:nbytes]


def _write(descriptor: int, rest: memoryview, position: int) -> None:
    while rest:
        written = os.pwrite(descriptor, rest, position)
        position, rest = position + written, rest[written:]


def same_tensor(one: TensorInfo, other: TensorInfo, proved: Mapping[int, Span]) -> bool:
    """Tell whether `other`, of the file, was read back against `one`, of the source."""
    if (one.dtype, one.shape) != (other.dtype, other.shape) or other.span is None:
        return False
    return proved.get(other.span.offset) == one.span and one.nbytes == other.nbytes
