"""Batches of items -> results of a task, in order: in threads of this process or an executor."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.values.progress import get_byte_counter

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

JOBS: Final = min(8, os.cpu_count() or 1)
_MIN_ITEM_NBYTES: Final = 1 << 16
"""Bytes of an item from which reading takes longer than the calls around it."""

_T = TypeVar("_T")
_R = TypeVar("_R")
Batch = tuple[int, Sequence[_T]]
"""(bytes read for the items, items); the items are plain data and can be pickled."""
Task = Callable[[Path, Sequence[_T]], _R]
"""Module-level function (so it pickles) of (base folder of relative paths, items of a batch)."""


@contextmanager
def open_process_runner(runner: "BatchRunner") -> Iterator["BatchRunner"]:
    """Yield a runner whose jobs are processes; `runner` if it has one job only, or an executor."""
    if runner.executor is not None or runner.jobs <= 1:
        yield runner
        return
    from ckptool.values.batches.process_pool import ProcessPool

    with ProcessPool(runner.jobs) as pool:
        yield replace(runner, executor=pool, max_pending=2 * runner.jobs)


def is_threadable(nbytes: int, item_count: int) -> bool:
    """Whether threads make the work on `item_count` items of `nbytes` bytes in all faster.

    Small items are calls that hold the interpreter's lock. Threads that pass it on after each read
    take half as long again as one.
    """
    return nbytes >= item_count * _MIN_ITEM_NBYTES


class BatchRunner(Struct, frozen=True):
    """Runs a task on batches, in threads or an executor, and reports progress."""

    jobs: int = JOBS
    """Number of threads if there is no executor."""
    executor: "Executor | None" = None
    max_pending: int = 64
    """Maximum number of batches submitted to the executor and not yet returned."""
    folder: Path = Path()
    """Base of relative paths, for workers with another current directory."""
    progress: Callable[[int], None] | None = None
    """Called with the number of bytes of each finished batch; None tells the command's listener."""

    def map_batches(
        self, task: Task[_T, _R], batches: Iterable[Batch[_T]]
    ) -> Iterator[tuple[Sequence[_T], _R]]:
        """Yield (items, result of `task`) of each batch, in order.

        `batches` is consumed lazily, so earlier results can influence later batches.
        """
        batch_iterator = iter(batches)
        first_batches = list(islice(batch_iterator, 2))
        all_batches = chain(first_batches, batch_iterator)
        if self.executor is not None:
            executor = self.executor
            yield from self._run_ahead(
                lambda batch: executor.submit(task, self.folder, batch[1]),
                self.max_pending,
                all_batches,
            )
        elif self.jobs <= 1 or len(first_batches) < 2:
            for nbytes, items in all_batches:
                yield items, task(self.folder, items)
                self._report_progress(nbytes)
        else:
            yield from self._run_in_threads(task, all_batches)

    def _run_in_threads(
        self, task: Task[_T, _R], batches: Iterator[Batch[_T]]
    ) -> Iterator[tuple[Sequence[_T], _R]]:
        from concurrent.futures import Future, ThreadPoolExecutor

        pool = ThreadPoolExecutor(self.jobs)

        def submit(batch: Batch[_T]) -> Future[_R]:
            nbytes, items = batch
            if is_threadable(nbytes, len(items)):
                return pool.submit(task, self.folder, items)
            future = Future[_R]()
            future.set_result(task(self.folder, items))
            return future

        try:
            yield from self._run_ahead(submit, 2 * self.jobs, batches)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _run_ahead(
        self,
        submit: "Callable[[Batch[_T]], Future[_R]]",
        max_pending: int,
        batches: Iterator[Batch[_T]],
    ) -> Iterator[tuple[Sequence[_T], _R]]:
        pending: deque[tuple[Batch[_T], Future[_R]]] = deque()
        try:
            while True:
                for batch in islice(batches, max_pending - len(pending)):
                    pending.append((batch, submit(batch)))
                if not pending:
                    return
                (nbytes, items), future = pending[0]
                result = future.result()
                pending.popleft()
                self._report_progress(nbytes)
                yield items, result
        finally:
            for _, future in pending:
                future.cancel()

    def _report_progress(self, nbytes: int) -> None:
        (self.progress or get_byte_counter())(nbytes)
