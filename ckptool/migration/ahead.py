"""StateDict -> safetensors file, started before the plan is known: most plans move few bytes."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock
from typing import Final, Self

from ckptool.formats.atomic import Pending, pending
from ckptool.formats.blobs import Progress
from ckptool.formats.files import Source, open_source
from ckptool.locations import Location
from ckptool.migration.apart import Apart, apart
from ckptool.migration.copying import Copying, Run
from ckptool.migration.prints import Fingerprints
from ckptool.model import Span, State, TensorInfo
from ckptool.values import fingerprint_many

LEAST: Final = 64 << 20
"""Minimum size in bytes of a state_dict for an early copy."""
_FILES: Final = 128
"""Maximum number of source files kept open; a state_dict in more files is not copied early."""
_PAUSE: Final = 0.05
"""Interval between two calls of fdatasync, in seconds."""
_SWITCH: Final = 1e-4
"""GIL switch interval in seconds: building the module must not stall the copy threads."""


class Ahead:
    """Copy of the tensors into the new file, started before the plan is known.

    `keep_matching` returns how many tensors the plan leaves at their place; the caller writes the
    others. Fingerprints and read-back results of the copied tensors are kept.
    """

    def __init__(self) -> None:
        self.out: Pending | None = None
        """The pending output file; None if no copy was started."""
        self.begin = 0
        """Position in the file of the first tensor, in bytes."""
        self._spans: list[Span] = []
        self._copying: Copying | Apart | None = None
        self._prints: dict[tuple[Span, str, tuple[int, ...]], Future[str]] = {}
        self._kept = 0
        self._stop = Event()
        self._flushing: Future[None] | None = None
        self._lock = Lock()
        self._stack = ExitStack()
        self._sources: dict[Location, Source] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(
        self, tensors: Sequence[TensorInfo], begin: int, target: Path, *,
        force: bool, recorded: bool, busy: bool, progress: Progress,
    ) -> None:  # fmt: skip
        """Create the temporary file of `target` and copy `tensors` to it, from byte `data_start`.

        Does nothing if the tensors lie in too many source files.

        Args:
            tensors: tensors in file order; each has a span.
            data_start: position of the first tensor, in bytes.
            target: final path of the file.
            force: whether an existing file may be replaced.
            with_fingerprints: whether to compute fingerprints while copying.
            importing_torch: whether this process is about to import torch, which starves threads;
                local files are then copied by a child process.
            progress: called with the number of bytes written since the last call.
        """
        self._spans = [tensor.span for tensor in tensors if tensor.span]
        places = list(dict.fromkeys(span.path for span in self._spans))
        if len(places) > _FILES:
            return
        self.begin = begin
        self.out = self._stack.enter_context(pending(target, force=force))
        runs = list(_runs(tensors, places, begin))
        here = [place for place in places if isinstance(place, Path)]
        if busy and here == places:
            self._copying = self._stack.enter_context(
                apart(here, runs, self.out, progress, recorded=recorded)
            )
        if self._copying is None:
            self._copying = self._in_threads(places, runs, self.out, progress, recorded=recorded)
        pool = self._stack.enter_context(ThreadPoolExecutor(1))
        self._stack.callback(self._stop.set)
        self._flushing = pool.submit(self._flush, self.out.descriptor)
        if recorded:
            self._prints = dict(zip(map(_identity, tensors), self._copying.done, strict=True))

    def keep(self, begin: int, wanted: Sequence[Span | None]) -> int:
        """Return the number of leading tensors that the plan leaves where they were copied.

        `planned_spans` has the source span of each tensor of the plan, in file order. Copying has
        stopped when this returns.

        Raises:
            WriteError: a tensor could not be written, or read back.
            ReadError: the source can no longer be read.
        """
        if self._copying is None:
            return 0
        pairs = zip(self._spans, wanted, strict=False)
        both = min(len(self._spans), len(wanted))
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), both)
        self._kept = self._copying.first(same if begin == self.begin else 0)
        self._stop.set()
        if self._flushing is not None:
            self._flushing.result()
        return self._kept

    def proved(self) -> dict[int, Span]:
        """Return the verified copies: position in the file -> source span."""
        found, position = {}, self.begin
        for span in self._spans[: self._kept]:
            found[position] = span
            position += span.nbytes
        return found

    def prints(self, state: State) -> Fingerprints:
        """Return the fingerprints of a state_dict by key; missing ones are computed now."""
        found: dict[str, str | None] = {}
        for key, tensor in state.tensors.items():
            done = self._prints.get(_identity(tensor)) if tensor.span else None
            if done is not None and not done.cancelled() and done.exception() is None:
                found[key] = done.result()
        rest = [key for key in state.tensors if key not in found]
        found |= zip(rest, fingerprint_many(state.tensors[key] for key in rest), strict=True)
        return found

    def _in_threads(
        self, places: Sequence[Location], runs: Sequence[Run], out: Pending, progress: Progress, *,
        recorded: bool,
    ) -> Copying:  # fmt: skip
        self._stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(_SWITCH)

        def opened(file: int) -> Source:
            return self._source(places[file])

        copying = Copying(opened, out.descriptor, out.target, progress)
        self._stack.callback(copying.end)
        copying.start(runs, recorded=recorded)
        return copying

    def _flush(self, descriptor: int) -> None:
        """Flush while copying, so that the final sync has little left to write."""
        while not self._stop.wait(_PAUSE):
            os.fdatasync(descriptor)

    def _source(self, path: Location) -> Source:
        with self._lock:
            if path not in self._sources:
                self._sources[path] = self._stack.enter_context(open_source(path))
            return self._sources[path]


def _runs(
    tensors: Sequence[TensorInfo], places: Sequence[Location], position: int
) -> Iterator[Run]:
    numbers = {place: number for number, place in enumerate(places)}
    for tensor in tensors:
        span = tensor.span
        assert span is not None
        file = numbers[span.path]
        yield Run(file, span.offset, span.nbytes, position, tensor.dtype, tensor.shape)
        position += span.nbytes


def _identity(tensor: TensorInfo) -> tuple[Span, str, tuple[int, ...]]:
    assert tensor.span is not None
    return tensor.span, tensor.dtype, tensor.shape


def same_tensor(one: TensorInfo, other: TensorInfo, proved: Mapping[int, Span]) -> bool:
    """Return whether tensor `written` of the file was verified against `source` while copying."""
    if (one.dtype, one.shape) != (other.dtype, other.shape) or other.span is None:
        return False
    return proved.get(other.span.offset) == one.span and one.nbytes == other.nbytes
