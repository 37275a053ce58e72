"""StateDict -> safetensors file, started before the plan is known: most plans move few bytes."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock
from typing import Final, Self

from ckptool.formats.files.atomic import PendingOutput, open_pending_output
from ckptool.formats.files.source import ByteSource, open_source
from ckptool.formats.files.writer import ProgressCallback
from ckptool.locations import Location
from ckptool.migration.write.background_fingerprints import Fingerprints
from ckptool.migration.write.copy_threads import CopyRange, CopyThreads
from ckptool.model import Span, StateDict, TensorInfo
from ckptool.values.fingerprint_many import fingerprint_many

MIN_EARLY_COPY_NBYTES: Final = 64 << 20
"""Minimum size in bytes of a state_dict for an early copy."""
_MAX_OPEN_FILES: Final = 128
"""Maximum number of source files kept open; a state_dict in more files is not copied early."""
_FLUSH_INTERVAL: Final = 0.05
"""Interval between two calls of fdatasync, in seconds."""
_SWITCH_INTERVAL: Final = 1e-4
"""GIL switch interval in seconds: building the module must not stall the copy threads."""


class EarlyCopy:
    """Copy of the tensors into the new file, started before the plan is known.

    `keep_matching` returns how many tensors the plan leaves at their place; the caller writes the
    others. Fingerprints and read-back results of the copied tensors are kept.
    """

    def __init__(self) -> None:
        self.output: PendingOutput | None = None
        """The pending output file; None if no copy was started."""
        self.data_start = 0
        """Position in the file of the first tensor, in bytes."""
        self._spans: list[Span] = []
        self._copier: CopyThreads | None = None
        self._fingerprints: dict[tuple[Span, str, tuple[int, ...]], Future[str]] = {}
        self._kept_count = 0
        self._stop = Event()
        self._flush_future: Future[None] | None = None
        self._lock = Lock()
        self._stack = ExitStack()
        self._sources: dict[Location, ByteSource] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_copying(
        self, tensors: Sequence[TensorInfo], data_start: int, target: Path, *,
        force: bool, with_fingerprints: bool, progress: ProgressCallback,
    ) -> None:  # fmt: skip
        """Create the temporary file of `target` and copy `tensors` to it, from byte `data_start`.

        Does nothing if the tensors lie in too many source files.

        Args:
            tensors: tensors in file order; each has a span.
            data_start: position of the first tensor, in bytes.
            target: final path of the file.
            force: whether an existing file may be replaced.
            with_fingerprints: whether to compute fingerprints while copying.
            progress: called with the number of bytes written since the last call.
        """
        self._spans = [tensor.span for tensor in tensors if tensor.span]
        paths = list(dict.fromkeys(span.path for span in self._spans))
        if len(paths) > _MAX_OPEN_FILES:
            return
        self.data_start = data_start
        self.output = self._stack.enter_context(open_pending_output(target, force=force))
        ranges = list(_iter_ranges(tensors, paths, data_start))
        self._copier = self._start_threads(
            paths, ranges, self.output, progress, with_fingerprints=with_fingerprints
        )
        pool = self._stack.enter_context(ThreadPoolExecutor(1))
        self._stack.callback(self._stop.set)
        self._flush_future = pool.submit(self._flush_periodically, self.output.descriptor)
        if with_fingerprints:
            self._fingerprints = dict(
                zip(map(_build_fingerprint_key, tensors), self._copier.futures, strict=True)
            )

    def keep_matching(self, data_start: int, planned_spans: Sequence[Span | None]) -> int:
        """Return the number of leading tensors that the plan leaves where they were copied.

        `planned_spans` has the source span of each tensor of the plan, in file order. Copying has
        stopped when this returns.

        Raises:
            WriteError: a tensor could not be written, or read back.
            ReadError: the source can no longer be read.
        """
        if self._copier is None:
            return 0
        pairs = zip(self._spans, planned_spans, strict=False)
        common_count = min(len(self._spans), len(planned_spans))
        match_count = next((n for n, (a, b) in enumerate(pairs) if a != b), common_count)
        self._kept_count = self._copier.finish_first(
            match_count if data_start == self.data_start else 0
        )
        self._stop.set()
        if self._flush_future is not None:
            self._flush_future.result()
        return self._kept_count

    def map_verified_spans(self) -> dict[int, Span]:
        """Return the verified copies: position in the file -> source span."""
        spans, position = {}, self.data_start
        for span in self._spans[: self._kept_count]:
            spans[position] = span
            position += span.nbytes
        return spans

    def get_fingerprints(self, state: StateDict) -> Fingerprints:
        """Return the fingerprints of a state_dict by key; missing ones are computed now."""
        fingerprints: dict[str, str | None] = {}
        for key, tensor in state.tensors.items():
            future = self._fingerprints.get(_build_fingerprint_key(tensor)) if tensor.span else None
            if future is not None and not future.cancelled() and future.exception() is None:
                fingerprints[key] = future.result()
        remaining = [key for key in state.tensors if key not in fingerprints]
        fingerprints |= zip(
            remaining, fingerprint_many(state.tensors[key] for key in remaining), strict=True
        )
        return fingerprints

    def _start_threads(
        self,
        paths: Sequence[Location],
        ranges: Sequence[CopyRange],
        output: PendingOutput,
        progress: ProgressCallback,
        *,
        with_fingerprints: bool,
    ) -> CopyThreads:
        self._stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(_SWITCH_INTERVAL)

        def open_file(file_index: int) -> ByteSource:
            return self._get_source(paths[file_index])

        copier = CopyThreads(open_file, output.descriptor, output.target, progress)
        self._stack.callback(copier.stop_copying)
        copier.submit_ranges(ranges, with_fingerprints=with_fingerprints)
        return copier

    def _flush_periodically(self, descriptor: int) -> None:
        """Flush while copying, so that the final sync has little left to write."""
        while not self._stop.wait(_FLUSH_INTERVAL):
            os.fdatasync(descriptor)

    def _get_source(self, path: Location) -> ByteSource:
        with self._lock:
            if path not in self._sources:
                self._sources[path] = self._stack.enter_context(open_source(path))
            return self._sources[path]


def _iter_ranges(
    tensors: Sequence[TensorInfo], paths: Sequence[Location], position: int
) -> Iterator[CopyRange]:
    path_indices = {path: index for index, path in enumerate(paths)}
    for tensor in tensors:
        span = tensor.span
        assert span is not None
        file_index = path_indices[span.path]
        yield CopyRange(file_index, span.offset, span.nbytes, position, tensor.dtype, tensor.shape)
        position += span.nbytes


def _build_fingerprint_key(tensor: TensorInfo) -> tuple[Span, str, tuple[int, ...]]:
    assert tensor.span is not None
    return tensor.span, tensor.dtype, tensor.shape


def is_verified_copy(
    source: TensorInfo, target: TensorInfo, verified_spans: Mapping[int, Span]
) -> bool:
    """Return whether tensor `written` of the file was verified against `source` while copying."""
    if (source.dtype, source.shape) != (target.dtype, target.shape) or target.span is None:
        return False
    return verified_spans.get(target.span.offset) == source.span and source.nbytes == target.nbytes
