"""An executor of interpreters of their own, for tasks of many short calls.

Threads share one lock, which a call of numpy gives away and takes again: two threads are hardly
faster than one. Unlike those of multiprocessing, these interpreters do not import the script that
runs, so it needs no `if __name__ == "__main__"`.
"""

import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from subprocess import PIPE, Popen, _args_from_interpreter_flags  # type: ignore[attr-defined]
from threading import local
from typing import Any, TypeVar

_CODE = (
    "import sys; _, *sys.path[:] = sys.argv; "
    "from ckptool.values.batches.process_pool import run_tasks; run_tasks()"
)
_R = TypeVar("_R")


class ProcessPool(Executor):
    """Runs tasks in `count` other interpreters, each started when it is first needed.

    A task whose interpreter cannot be started, or ends, runs in this one.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._own = local()
        """`process` of each thread."""
        self._processes: list[Popen[bytes]] = []

    def submit(self, task: Callable[..., _R], /, *arguments: Any, **options: Any) -> Future[_R]:
        """Run a function of a module, with arguments that can be pickled."""
        return self._threads.submit(self._run_task, task, arguments, options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 (as the base class)
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for process in self._processes:
            process.kill()
            process.communicate()

    def _run_task(
        self, task: Callable[..., _R], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> _R:
        try:
            process = self._get_process()
            assert process.stdin is not None
            assert process.stdout is not None
            pickle.dump((task, arguments, options), process.stdin)
            process.stdin.flush()
            result, error = pickle.load(process.stdout)  # noqa: S301 (our own code wrote it)
        except (OSError, EOFError, pickle.UnpicklingError):
            return task(*arguments, **options)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _get_process(self) -> Popen[bytes]:
        """Return the interpreter of this thread.

        Raises:
            OSError: none can be started.
        """
        process: Popen[bytes] | None = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = Popen(  # noqa: S603 (this interpreter, our own code)
                [sys.executable, *_args_from_interpreter_flags(), "-c", _CODE, *sys.path],
                stdin=PIPE,
                stdout=PIPE,
                process_group=0 if os.name == "posix" else None,  # Ctrl-C is for the parent alone
            )
            self._processes.append(process)
        return process


def run_tasks() -> None:
    """Run the tasks that come on standard input, and write (result, error) of each, until it ends.

    What else is printed goes to standard error.
    """
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            task, arguments, options = pickle.load(sys.stdin.buffer)  # noqa: S301 (of the parent)
        except EOFError:
            return
        result = error = None
        try:
            result = task(*arguments, **options)
        except Exception as task_error:  # noqa: BLE001 (the parent raises it)
            error = task_error
        pickle.dump((result, error), answers)
        answers.flush()
