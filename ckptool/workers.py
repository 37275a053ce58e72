"""Tasks -> their results, in order: by this process's threads, or by any executor."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

JOBS: Final = min(8, os.cpu_count() or 1)

_T = TypeVar("_T")
_R = TypeVar("_R")
Batch = tuple[int, Sequence[_T]]
"""The bytes that are read for some items, and the items: plain data, that can be sent away."""
Task = Callable[[Path, Sequence[_T]], _R]
"""What is done with a batch: a function of a module, given where relative paths start."""


class Workers(Struct, frozen=True):
    """Who does the work, and who is told how far it has come."""

    jobs: int = JOBS
    """Threads, where no executor is given."""
    executor: "Executor | None" = None
    window: int = 64
    """Batches that an executor is given ahead of the one that is waited for."""
    folder: Path = Path()
    """Where relative paths start, for workers that were started elsewhere."""
    progress: Callable[[int], None] | None = None
    """Is given the bytes of each batch that is done."""

    def each(
        self, task: Task[_T, _R], batches: Iterable[Batch[_T]]
    ) -> Iterator[tuple[Sequence[_T], _R]]:
        """Yield each batch's items with what `task` makes of them, in order.

        Batches are asked for as they are needed, so what is known by then can change them.
        """
        coming = iter(batches)
        first = list(islice(coming, 2))
        together = chain(first, coming)
        if self.executor is not None:
            yield from self._over(self.executor, self.window, task, together)
        elif self.jobs <= 1 or len(first) < 2:
            for nbytes, items in together:
                yield items, task(self.folder, items)
                self._tell(nbytes)
        else:
            yield from self._in_threads(task, together)

    def _in_threads(
        self, task: Task[_T, _R], batches: Iterator[Batch[_T]]
    ) -> Iterator[tuple[Sequence[_T], _R]]:
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(self.jobs)
        try:
            yield from self._over(pool, 2 * self.jobs, task, batches)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _over(
        self, executor: "Executor", window: int, task: Task[_T, _R], batches: Iterator[Batch[_T]]
    ) -> Iterator[tuple[Sequence[_T], _R]]:
        waiting: deque[tuple[Batch[_T], Future[_R]]] = deque()
        try:
            while True:
                for batch in islice(batches, window - len(waiting)):
                    waiting.append((batch, executor.submit(task, self.folder, batch[1])))
                if not waiting:
                    return
                (nbytes, items), future = waiting[0]
                result = future.result()
                waiting.popleft()
                self._tell(nbytes)
                yield items, result
        finally:
            for _, future in waiting:
                future.cancel()

    def _tell(self, nbytes: int) -> None:
        if self.progress is not None:
            self.progress(nbytes)
